"""What single values give away: text in the wrong encoding, words for nothing, ids that a spreadsheet has spoiled."""

from collections.abc import Sequence

import polars as pl

from reperform import iso_codes
from reperform.feeds.batches import Feed, usual_span
from reperform.feeds.finding import FeedFinding

TEXTS = ("transaction_id", "account_id", "counterparty_id", "channel", "country", "currency")
IDS = ("account_id", "counterparty_id")
# UTF-8 read as Latin-1 or Windows-1252, and what decoders put where they give up.
MOJIBAKE = "\ufffd|[\u00c2-\u00c5\u00ce\u00cf][\u0080-\u00bf\u0152\u0153\u0160\u0161\u0178\u017d\u017e\u0192\u02c6\u02dc\u2013-\u203a\u20ac\u2122]|\u00e2\u20ac"  # noqa: E501
NULL_WORD = r"(?i)^\s*(\(null\)|\[null\]|<null>|null|none|nan|n/a|#n/a|#ref!|nil|undefined|\\n)\s*$"
SCIENTIFIC = r"^\d(?:[.,]\d+)?[eE]\+?\d{1,3}$"
EARLIEST = pl.datetime(1990, 1, 1, time_zone="UTC")
_BY = ["source", "source_file"]


def findings(feed: Feed, refused: pl.DataFrame) -> list[FeedFinding]:
    """What values alone give away, per source and file.

    Args:
        feed: the transactions.
        refused: the quarantine of ingest with `source`: a number that is a word is refused there.
    """
    return [
        *_texts(feed, "mojibake", MOJIBAKE, TEXTS),
        *_texts(feed, "null_words", NULL_WORD, TEXTS),
        *_texts(feed, "ids_scientific", SCIENTIFIC, ("transaction_id", *IDS)),
        *_refused_words(refused),
        *_respelled(feed),
        *_country_style(feed),
        *_negative(feed),
        *_dates(feed),
    ]


def _texts(feed: Feed, rule: str, pattern: str, columns: Sequence[str]) -> list[FeedFinding]:
    says = {"mojibake": "text in its own encoding", "null_words": "an empty field", "ids_scientific": "all digits"}[
        rule
    ]
    found = []
    for column in columns:
        odd = feed.rows.get_column(column).unique().drop_nulls()
        odd = odd.filter(odd.str.contains(pattern))
        if odd.len():
            found += _per_file(feed, rule, pl.col(column).is_in(odd.implode()), column, says)
    return found


def _per_file(feed: Feed, rule: str, condition: pl.Expr, column: str, expected: str) -> list[FeedFinding]:
    """One finding for each file with rows that meet a condition, with an example."""
    hit = (
        feed.rows.filter(condition)
        .group_by(_BY)
        .agg(n=pl.len(), value=pl.col(column).cast(pl.String).drop_nulls().min(), days=pl.col("day").unique().sort())
        .sort(_BY)
    )
    return [
        FeedFinding(
            row["source"], rule, row["source_file"], row["n"], f"{column} such as {row['value']!r}", expected,
            day=row["days"][0] if len(row["days"]) == 1 else None, files=(row["source_file"],),
        )
        for row in hit.iter_rows(named=True)
    ]  # fmt: skip


def _refused_words(refused: pl.DataFrame) -> list[FeedFinding]:
    """Words for nothing in fields that are no text: ingest has refused the records."""
    odd = refused.filter(pl.col("value").str.contains(NULL_WORD) & pl.col("column").is_not_null())
    grouped = odd.group_by("source", "source_file", "column", "table").agg(n=pl.len(), value=pl.col("value").min())
    return [
        FeedFinding(
            row["source"], "null_words", row["source_file"], row["n"],
            f"{row['column']} such as {row['value']!r}", "an empty field",
            table=row["table"], files=(row["source_file"],),
        )
        for row in grouped.sort("source", "source_file", "column", "table").iter_rows(named=True)
    ]  # fmt: skip


def _respelled(feed: Feed) -> list[FeedFinding]:
    """Identifiers that differ from one seen earlier by case, blanks, or leading zeros alone."""
    first = pl.concat(
        [
            feed.accounts.select(id="account_id", batch=pl.lit(-1, pl.Int64)),
            *(feed.rows.select(pl.col(name).alias("id"), "batch") for name in IDS),
        ]
    ).drop_nulls()
    spelled = first.group_by("id").agg(pl.col("batch").min()).with_columns(plain=_plain(pl.col("id")))
    among = pl.col("plain").count().over("plain") > 1
    later = pl.col("batch") > pl.col("batch").min().over("plain")
    respelled = spelled.filter(among).filter(later).get_column("id")
    found: list[FeedFinding] = []
    if respelled.is_empty():
        return found
    for column in IDS:
        here = _per_file(
            feed, "ids_respelled", pl.col(column).is_in(respelled.implode()), column, "as it was spelled before"
        )
        found += [one for one in here if one.rows >= feed.limits["respelled_rows"]]
    return found


def _plain(identifier: pl.Expr) -> pl.Expr:
    bare = identifier.str.replace_all(r"[\s\-\u00a0]", "").str.to_uppercase()
    return bare.str.strip_chars_start("0")


def _country_style(feed: Feed) -> list[FeedFinding]:
    """Codes that are no ISO 3166-1 alpha-2 as they stand, and seem to be meant as such."""
    known = sorted(iso_codes.COUNTRIES)
    country = pl.col("country")
    meant = country.str.strip_chars().str.to_uppercase().is_in(known) | country.str.contains(r"^\s*[A-Za-z]{3}\s*$")
    return _per_file(feed, "country_style", ~country.is_in(known) & meant, "country", "two capital letters, such as DE")


def _negative(feed: Feed) -> list[FeedFinding]:
    return _per_file(feed, "negative_amounts", pl.col("amount") < 0, "amount", "amounts above zero")


def _dates(feed: Feed) -> list[FeedFinding]:
    """Bookings in another century, and few bookings far from all others: nothing lies between them."""
    first, last = usual_span(feed.rows, feed.limits["stray_gap_days"])
    odd = (pl.col("booked_at") < EARLIEST) | (pl.col("day") < first) | (pl.col("day") > last)
    return _per_file(feed, "implausible_date", odd, "booked_at", f"from {first} to {last}, as all others")
