"""Receipt logs: who filed what for which period, when it was due, and when it came in."""

import json
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from datetime import UTC, date, datetime, time, timedelta
from pathlib import Path
from typing import Any
from zoneinfo import ZoneInfo

import polars as pl

from reperform.errors import ReperformError
from reperform.ingest.source import located

COLUMNS = ("file", "filing_id", "entity_id", "form", "period_start", "period_end", "due_at", "filed_at")
MAY_BE_EMPTY = ("period_start", "due_at")
SATURDAY = 5


@dataclass(frozen=True)
class Receipt:
    """One filing as it was received; times in UTC."""

    file: str
    filing_id: str
    entity_id: str
    form: str
    period_start: date | None
    period_end: date
    due_at: datetime | None
    filed_at: datetime


@dataclass(frozen=True)
class DueDate:
    """The day of the following year by which an annual form is due.

    Args:
        month_day: as in `04-18`.
        time_zone: the day ends at midnight there.
    """

    month_day: str
    time_zone: str

    def after(self, period_end: date) -> datetime:
        """The last second of the due day, in UTC; a day at the weekend moves to Monday."""
        day = date.fromisoformat(f"{period_end.year + 1}-{self.month_day}")
        if day.weekday() >= SATURDAY:
            day += timedelta(days=7 - day.weekday())
        return datetime.combine(day, time(23, 59, 59), ZoneInfo(self.time_zone)).astimezone(UTC)


def from_csv(path: Path, raw: Path) -> dict[str, Receipt]:
    """A log with one row per file, with `COLUMNS`; days and times in ISO 8601.

    Returns:
        Receipts by file name, relative to the raw folder.

    Raises:
        ReperformError: for a missing log or column, a value that cannot be read, or a filing that is listed twice.
    """
    rows = _rows(path, raw)
    receipts: dict[str, Receipt] = {}
    filings: set[str] = set()
    for number, row in enumerate(rows, start=2):
        receipt = _receipt(row, f"{located(path, raw)}, line {number}")
        if receipt.file in receipts or receipt.filing_id in filings:
            raise ReperformError(
                "A filing is listed twice in the receipt log.",
                expected="one row per file and per filing_id",
                got=f"{receipt.file}, {receipt.filing_id}",
                where=f"{located(path, raw)}, line {number}",
                fix="keep one of the rows",
            )
        receipts[receipt.file] = receipt
        filings.add(receipt.filing_id)
    return receipts


def _rows(path: Path, raw: Path) -> list[dict[str, str | None]]:
    if not path.is_file():
        raise ReperformError(
            "The receipt log is missing.",
            expected=located(path, raw),
            got="no such file",
            where=str(raw),
            fix="bring the log, or mend `receipts` of this source in conf/ingest/",
        )
    try:
        frame = pl.read_csv(path, infer_schema=False)
    except pl.exceptions.PolarsError as error:
        raise ReperformError(
            "The receipt log is no readable CSV.", got=str(error)[:200], where=located(path, raw)
        ) from error
    missing = [name for name in COLUMNS if name not in frame.columns]
    if missing:
        raise ReperformError(
            "The receipt log lacks columns.",
            expected=", ".join(COLUMNS),
            got=f"no {', '.join(missing)}",
            where=located(path, raw),
            fix="ask for a complete log",
        )
    return frame.select(COLUMNS).to_dicts()


def _receipt(row: Mapping[str, str | None], where: str) -> Receipt:
    for name in COLUMNS:
        if row[name] is None and name not in MAY_BE_EMPTY:
            raise ReperformError(f"A receipt has no {name}.", expected="a value", got="nothing", where=where)
    text = {name: row[name] or "" for name in COLUMNS}
    try:
        return Receipt(
            text["file"],
            text["filing_id"],
            text["entity_id"],
            text["form"],
            date.fromisoformat(text["period_start"]) if text["period_start"] else None,
            date.fromisoformat(text["period_end"]),
            _moment(text["due_at"]) if text["due_at"] else None,
            _moment(text["filed_at"]),
        )
    except ValueError as error:
        raise ReperformError(
            "A receipt holds a day or time that cannot be read.",
            expected="ISO 8601, times with their offset",
            got=str(error),
            where=where,
            fix="mend the log",
        ) from error


def _moment(text: str) -> datetime:
    moment = datetime.fromisoformat(text)
    if moment.tzinfo is None:
        raise ValueError(f"{text} has no offset from UTC")
    return moment.astimezone(UTC)


def from_ferc_feeds(feeds: Sequence[Path], raw: Path, due: Mapping[str, DueDate]) -> dict[str, Receipt]:
    """FERC's RSS feeds as catalyst-cooperative archives them: JSON, filer to filings, times in UTC.

    Args:
        feeds: `rssfeed` files; each lists the filings in its own folder, and many that are not there.
        raw: the raw folder.
        due: by form (`ferc1`, `ferc6`, `ferc60`).

    Raises:
        ReperformError: for a feed that has another structure.
    """
    receipts = {}
    for feed in feeds:
        try:
            listed = json.loads(feed.read_text(encoding="utf-8"))
            for filing in (filing for filings in listed.values() for filing in filings):
                file = located(feed.with_name(filing["filename"]), raw)
                receipts[file] = _ferc_receipt(file, filing["rss_metadata"], due)
        except (ValueError, KeyError, TypeError, AttributeError) as error:
            raise ReperformError(
                "A feed of filings cannot be read.",
                expected="JSON with filename and rss_metadata for each filing",
                got=f"{type(error).__name__}: {error}",
                where=located(feed, raw),
                fix="fetch the feed again",
            ) from error
    return receipts


def _ferc_receipt(file: str, about: Mapping[str, Any], due: Mapping[str, DueDate]) -> Receipt:
    form = str(about["ferc_formname"]).rsplit("FORM_", 1)[-1].lower()
    form = f"ferc{form}"
    start, end = _ferc_period(int(about["ferc_year"]), str(about["ferc_period"]))
    filed_at = datetime.strptime(about["published_parsed"], "%Y-%m-%d %H:%M:%S").replace(tzinfo=UTC)
    rule = due.get(form)
    return Receipt(
        file,
        Path(file).stem,
        str(about["title"]).strip(),
        form,
        start,
        end,
        rule.after(end) if rule else None,
        filed_at,
    )


def _ferc_period(year: int, period: str) -> tuple[date, date]:
    """The calendar year; annual forms are listed as its fourth quarter."""
    if period != "Q4":
        quarter = int(period.removeprefix("Q"))
        first_after = date(year, 3 * quarter + 1, 1)
        return date(year, 3 * quarter - 2, 1), first_after - timedelta(days=1)
    return date(year, 1, 1), date(year, 12, 31)
