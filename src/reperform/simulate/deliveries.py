"""The raw folder: what every institution delivers, the labels of case handling, the exchange rates."""

import shutil
from collections.abc import Iterator
from pathlib import Path

import polars as pl

from reperform.errors import ReperformError, nearest
from reperform.simulate.arrival import STATEMENTS, statement_zone
from reperform.simulate.camt import daily_files
from reperform.simulate.dialects import DIALECTS, monthly_files
from reperform.simulate.world import Institution
from reperform.tables import write_bytes

_ISO_UTC = "%Y-%m-%dT%H:%M:%SZ"
CAMT_MESSAGES = ("camt.053.001.02", "camt.053.001.08")
NOTHING_HERE = """No demo world was asked for (simulate.world: none).

This run reads its data from elsewhere: see `ingest.raw` in params.yaml.
"""


def emptied(raw: Path) -> Path:
    """The raw folder without anything from an earlier run, whose files would be read as if they were of this one."""
    if raw.is_dir():
        shutil.rmtree(raw)
    raw.mkdir(parents=True)
    return raw


def write_nothing(raw: Path) -> None:
    """An empty raw folder that says why it is empty."""
    write_bytes(NOTHING_HERE.encode(), emptied(raw) / "README.txt")


def write_institution(
    institution: Institution, transactions: pl.DataFrame, accounts: pl.DataFrame, raw: Path
) -> dict[str, int]:
    """One institution's folder.

    Args:
        institution: whose.
        transactions: its own rows alone.
        accounts: its own accounts alone.
        raw: the raw folder.

    Returns:
        How many files and bytes were written.
    """
    files = [("accounts.csv", _accounts(accounts)), *_transaction_files(institution, transactions)]
    for name, content in files:
        write_bytes(content, raw / institution.name / name)
    return {"files": len(files), "bytes": sum(len(content) for _, content in files)}


def _transaction_files(institution: Institution, rows: pl.DataFrame) -> Iterator[tuple[str, bytes]]:
    style = institution.format
    if style in DIALECTS:
        return monthly_files(rows, DIALECTS[style])
    if style in CAMT_MESSAGES:
        return daily_files(rows, institution.name, style, statement_zone(institution))
    known = [*DIALECTS, *CAMT_MESSAGES]
    raise ReperformError(
        f"Unknown format {style!r} of institution {institution.name}.",
        expected=", ".join(known),
        got=style,
        where=f"simulate.institutions.{institution.name}.format",
        fix=nearest(style, known) if not style.startswith(STATEMENTS) else f"choose from {', '.join(CAMT_MESSAGES)}",
    )


def _accounts(accounts: pl.DataFrame) -> bytes:
    listed = accounts.sort("account_id").select(
        "account_id", pl.col("opened_at").dt.date(), "timezone", "segment", "home_country"
    )
    return listed.write_csv().encode()


def write_labels(labels: pl.DataFrame, raw: Path) -> None:
    """What case handling has confirmed, in order of confirmation."""
    listed = labels.sort("confirmed_at", "transaction_id").with_columns(pl.col("confirmed_at").dt.strftime(_ISO_UTC))
    write_bytes(listed.write_csv().encode(), raw / "labels.csv")


def write_rates(rates: pl.DataFrame, raw: Path) -> None:
    """Exchange rates to the base currency, in order of publication."""
    published = pl.from_epoch(pl.col("published_s")).dt.strftime(_ISO_UTC).alias("published_at")
    write_bytes(rates.select("currency", "rate_to_base", published).write_csv().encode(), raw / "rates.csv")
