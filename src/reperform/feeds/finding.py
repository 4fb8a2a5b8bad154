"""What a feed check says: which rule, about which source, file and day, what was seen, and what the owner can do."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from datetime import date
from typing import Any

import polars as pl

from reperform import schemas
from reperform.errors import ReperformError, nearest

MOST_FILES = 3  # named in one finding; the table of findings has one row for each


@dataclass(frozen=True)
class FeedFinding:
    """One thing that is wrong with a feed.

    Args:
        source: the source in conf/ingest/, or the institution.
        rule: a name in `FEED_RULES`, or a row rule.
        file: the raw file; several are joined by `, `; empty where none is to blame.
        day: the UTC day of booking that it is about; null for whole files.
        rows: how many rows show it.
        observed: what was seen.
        expected: what the earlier days of the same source make one expect.
        table: whose rows these are.
        severity: as conf/validate/ says; set when all findings are in.
        files: the raw files, one by one.
    """

    source: str
    rule: str
    file: str
    rows: int
    observed: str
    expected: str
    day: date | None = None
    table: str = "transactions"
    severity: str = ""
    files: tuple[str, ...] = ()


# rule: (what must hold, what the owner of the data can do)
FEED_RULES: dict[str, tuple[str, str]] = {
    "missing_day": (
        "a source that has rows on every such weekday has some today",
        "ask the sender for the day; ingest it; nothing else has to be redone by hand",
    ),
    "feed_ended_early": (
        "a source goes on until the others end",
        "ask the sender whether a delivery is outstanding, or was cut",
    ),
    "volume_drop": (
        "a day has about as many rows as the same weekday of earlier weeks",
        "compare the file's count with the sender's control total; ask for the rest",
    ),
    "volume_surge": (
        "a day has about as many rows as the same weekday of earlier weeks",
        "look for a delivery that is in there twice, or a back-fill; ask the sender which rows are new",
    ),
    "time_zone_shift": (
        "the hours of the day in local time are as they were",
        "mend `times.time_zone` in the column map, or ask the sender in which zone the file was written",
    ),
    "times_rounded": (
        "times of booking have the precision that they had",
        "ask the sender for full timestamps; KPIs that look at hours and gaps are blind on these rows",
    ),
    "times_swapped": (
        "booking comes before receipt",
        "exchange the columns of booked_at and known_at in the column map",
    ),
    "implausible_date": (
        "no booking lies before 1990, or after everything was received",
        "ask the sender for the true time; 1970-01-01 and 1899-12-30 stand for an empty field",
    ),
    "amount_scale": (
        "the usual size of an amount stays within a small factor",
        "look at the unit (cents, thousands) and the decimal mark of this file in the column map",
    ),
    "direction_flipped": (
        "channels through which money only goes out, or only comes in, stay so",
        "mend the sign or the debit/credit columns in the column map",
    ),
    "columns_swapped": (
        "the account is ours, the counterparty need not be",
        "exchange the columns of account_id and counterparty_id in the column map",
    ),
    "coordinates_swapped": (
        "places are where they were",
        "exchange latitude and longitude in the column map",
    ),
    "completeness_drop": (
        "a column is filled as often as it was",
        "ask the sender why the field is empty; the KPIs that need it are unknown meanwhile",
    ),
    "constant_column": (
        "a column that varied goes on varying",
        "ask the sender whether a default value was filled in",
    ),
    "currency_changed": ("a source keeps its currencies", "ask the sender; check `currency` in the column map"),
    "channel_changed": (
        "a source keeps its channels",
        "map the new codes with `values` in the column map, or ask the sender what they mean",
    ),
    "country_changed": ("a source keeps most of its countries", "ask the sender what the new codes mean"),
    "country_style": (
        "countries are written as ISO 3166-1 alpha-2",
        "map them with `values` in the column map (de: DE, DEU: DE)",
    ),
    "mojibake": (
        "text is decoded with the encoding that it was written in",
        "set `format.encoding` in the column map, or ask the sender to write UTF-8",
    ),
    "null_words": (
        "an empty field is empty, and not a word for it",
        "name the word in `format.missing` of the column map",
    ),
    "ids_scientific": (
        "identifiers are no numbers like 1.23E+15",
        "the file went through a spreadsheet: ask for the file as the system wrote it; digits are lost",
    ),
    "ids_respelled": (
        "an identifier is always spelled alike",
        "ask for the file as the system wrote it; spreadsheets drop leading zeros, fixed widths add blanks",
    ),
    "duplicate_feed": (
        "rows are told once, whatever their id",
        "drop the second delivery, or ask the sender why ids changed",
    ),
    "stale_file": (
        "a new file brings new payments",
        "the sender has delivered an old file with new dates: ask for the right one",
    ),
    "file_delivered_twice": ("a file is delivered once", "none needed: the second one was left alone"),
    "rows_delivered_twice": (
        "a row is delivered once",
        "none needed for the rows; ask the sender why, and whether others are missing in their place",
    ),
    "file_unreadable": ("a file can be read", "ask the sender for the file again"),
    "truncated_file": (
        "the last record of a file is whole",
        "ask the sender for the file again, with its number of records",
    ),
    "header_repeated": ("a file has one header", "ask the sender not to join files; the line is kept out"),
    "total_row": ("a file has only records", "ask the sender to leave totals out; the line is kept out"),
    "records_refused": ("every record can be read", "mend the column map, or ask the sender; they are in quarantine"),
    "statement_balance": (
        "statements add up, and follow on each other",
        "ask the bank for the statement again: entries are missing, doubled or changed",
    ),
    "negative_amounts": (
        "amounts have no sign of their own where another column tells the direction",
        "set `amounts.negative` in the column map, or ask the sender what a negative amount means",
    ),
    "label_flood": (
        "case handling confirms about as many anomalies a week as before",
        "ask case handling whether a rule confirmed them in bulk; keep them out of training until then",
    ),
    "labels_instant": (
        "a label comes after somebody looked",
        "ask for the time of the decision: a label that is known at booking leaks the answer into training",
    ),
}  # fmt: skip
# These have no rows that could be kept out, or rows that ingest has kept out already.
WITHOUT_ROWS = (
    "missing_day", "feed_ended_early", "volume_drop", "volume_surge", "file_delivered_twice", "rows_delivered_twice",
    "file_unreadable", "truncated_file", "header_repeated", "total_row", "records_refused", "statement_balance",
)  # fmt: skip


def check_severities(feeds: Mapping[str, str]) -> None:
    """Refuse a severity for a rule that does not exist, none for one that does, and one that cannot be acted on.

    Raises:
        ReperformError: naming the rule and the nearest that exists.
    """
    unknown = [name for name in feeds if name not in FEED_RULES]
    missing = [name for name in FEED_RULES if name not in feeds]
    idle = [name for name in WITHOUT_ROWS if feeds.get(name) == "quarantine"]
    if not (unknown or missing or idle):
        return
    name = (unknown or missing or idle)[0]
    problem = "Unknown feed rule {!r}." if unknown else "Feed rule {!r} has no severity."
    raise ReperformError(
        (problem if unknown or missing else "Feed rule {!r} has no rows to keep out.").format(name),
        expected="warn or stop" if name in idle else "warn, quarantine or stop for every feed rule, and for no other",
        got=feeds.get(name, "nothing"),
        where=f"validate.feeds.{name}",
        fix=f"{nearest(name, FEED_RULES) if unknown else 'change it'} in conf/validate/; then run `make params`",
    )


def named(files: Sequence[str]) -> str:
    """Files as one text; of many, the first and the last."""
    if len(files) <= MOST_FILES:
        return ", ".join(files)
    return f"{files[0]} to {files[-1]} ({len(files)} files)"


def as_rows(findings: Sequence[FeedFinding], advice: Mapping[str, str]) -> list[dict[str, Any]]:
    """Findings as documents, in a fixed order, each with what the owner of the data can do."""
    order = {"stop": 0, "quarantine": 1, "warn": 2}
    listed = sorted(
        findings, key=lambda f: (order.get(f.severity, 3), f.source, f.rule, f.file, str(f.day), f.observed)
    )
    return [
        {
            "source": one.source,
            "file": one.file,
            "day": one.day.isoformat() if one.day else None,
            "table": one.table,
            "rule": one.rule,
            "severity": one.severity,
            "rows": one.rows,
            "observed": one.observed,
            "expected": one.expected,
            "fix": advice[one.rule],
        }
        for one in listed
    ]


def as_frame(rows: Sequence[Mapping[str, Any]]) -> pl.DataFrame:
    """The same as `schemas.FINDINGS`."""
    wanted = schemas.polars_schema(schemas.FINDINGS)
    texts = {name: pl.String if name == "day" else kind for name, kind in wanted.items()}
    return pl.DataFrame(list(rows), schema=texts).with_columns(pl.col("day").str.to_date())
