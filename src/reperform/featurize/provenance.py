"""How new the newest record behind each KPI's value is, per row: proof that nothing newer can have entered it.

A KPI sees records of its key that had happened and arrived (and, where it reads labels, labels that were confirmed).
The newest to arrive among them bounds what its value can have used: a record that arrives later changes nothing.
Parameters that were learned stand in fitted.json, with the end of what they were learned from.
"""

# ruff: noqa: PLR0917  # compiled functions take arguments by position

from collections.abc import Callable, Sequence
from functools import cached_property
from typing import Any

import numpy as np
import polars as pl

from reperform.errors import ReperformError
from reperform.featurize.kernels import I64, kernel
from reperform.featurize.ledger import UNKNOWN_TIME_US, Ledger, codes
from reperform.featurize.registry import Kpi
from reperform.featurize.windows import FOREVER_US, History, Rows, length_us
from reperform.params import FeaturizeParams
from reperform.schemas import UTC_US

SUFFIX = "_as_of"
NEVER_US = -(1 << 62)
MOST_ROWS = 20_000_000  # about 100 bytes a row are held at once
READS = ("transaction_id", "account_id", "counterparty_id", "entity_id", "booked_at", "known_at")
# By the day: what they see of a day ends with the day, but a day belongs to a clock; the row's moment bounds it.
BY_DAY = frozenset({"frequency", "frequency_rate", "balance", "correlation", "correlation_peers"})


def provenance(ledger: Ledger, kpis: Sequence[Kpi], stage: FeaturizeParams) -> pl.DataFrame:
    """When the newest record behind each KPI's value arrived.

    Args:
        ledger: all rows; columns `READS` are enough.
        kpis: in order, each after those that it needs.
        stage: settings.

    Returns:
        transaction_id, then `<kpi>_as_of` (UTC) per KPI, in the ledger's order; null where no earlier record stands
        behind the value, so that it rests on the row itself.
    """
    sources = Sources(ledger)
    maker = {c.name: kpi.name for kpi in kpis for c in kpi.columns(kpi.settings_of(stage.settings))}
    made: dict[str, I64] = {}
    for kpi in kpis:
        settings = kpi.settings_of(stage.settings)
        parts = [sources.newest(scope_of(kpi), longest_window_us(kpi, settings))]
        parts += [sources.newest_label(scope_of(kpi))] if "confirmed_at" in kpi.inputs else []
        needed = {maker[name] for name in kpi.needs_of(settings) if name in maker}
        # What a KPI reads of other rows of its key was known when those rows happened.
        parts += [made[name] for name in sorted(needed)]
        made[kpi.name] = np.maximum.reduce(parts)
    columns = {f"{name}{SUFFIX}": _times(values) for name, values in made.items()}
    return ledger.transactions.select("transaction_id").with_columns(**columns)


def of_files(
    transactions: pl.LazyFrame, ledger_of: Callable[[pl.DataFrame], Ledger], kpis: Sequence[Kpi], stage: FeaturizeParams
) -> pl.DataFrame:
    """The checked table of transactions in files; without rows above `MOST_ROWS`, for which it is not made.

    Args:
        transactions: as `schemas.TRANSACTIONS`.
        ledger_of: makes a ledger of the columns `READS`.
        kpis: in order.
        stage: settings.
    """
    if transactions.select(pl.len()).collect().item() > MOST_ROWS:
        return empty(kpis)
    rows = transactions.select(READS).collect()
    return checked(provenance(ledger_of(rows), kpis, stage), rows["booked_at"])


def empty(kpis: Sequence[Kpi]) -> pl.DataFrame:
    """The table without rows."""
    return pl.DataFrame(schema={"transaction_id": pl.String, **{f"{kpi.name}{SUFFIX}": UTC_US for kpi in kpis}})


def scope_of(kpi: Kpi) -> str:
    """Whose records a KPI can see: of the account, the counterparty, the entity, or all."""
    if kpi.key == "entity":
        return "entity" if "entity_id" in kpi.inputs else "all"
    return kpi.key


def longest_window_us(kpi: Kpi, settings: Any) -> int:
    """How far back the records lie that a KPI looks at; the whole past where a column names no window."""
    windows = [column.window for column in kpi.columns(settings)]
    if kpi.name in BY_DAY or kpi.key == "entity" or not all(w and w[-1] in "hd" for w in windows):
        return FOREVER_US
    return max(length_us(window) for window in windows)


class Sources:
    """Records and labels by scope, each walked once per window."""

    def __init__(self, ledger: Ledger) -> None:
        self._ledger = ledger
        self._walked: dict[tuple[str, int], I64] = {}

    def newest(self, scope: str, window_us: int) -> I64:
        """Arrival of the newest record that each row sees, microseconds; `NEVER_US` for none."""
        if (scope, window_us) not in self._walked:
            history = self._history(scope)
            self._walked[scope, window_us] = newest_seen(
                history.by_time.starts, history.by_time.rows, history.time,
                history.by_enter.starts, history.by_enter.rows, history.enter, self._ledger.known, window_us,
            )  # fmt: skip
        return self._walked[scope, window_us]

    def newest_label(self, scope: str) -> I64:
        """Confirmation of the newest label that each row sees."""
        if (scope, 0) not in self._walked:
            history, (codes_, confirmed) = self._history(scope), self._labels(scope)
            enter = np.maximum(confirmed, NEVER_US)
            entering = Rows.ordered(codes_, enter, history.keys)
            self._walked[scope, 0] = newest_seen(
                history.by_time.starts, history.by_time.rows, history.time,
                entering.starts, entering.rows, enter, confirmed, FOREVER_US,
            )  # fmt: skip
        return self._walked[scope, 0]

    def _labels(self, scope: str) -> tuple[I64, I64]:
        """Of rows that have a label: their key, and when the label could be used."""
        said, confirmed = self._ledger.label
        has = np.flatnonzero((said >= 0) & (confirmed != UNKNOWN_TIME_US))
        seen = np.maximum(confirmed, np.maximum(self._ledger.known, self._ledger.time + 1))
        return self._history(scope).codes[has], seen[has]

    def _history(self, scope: str) -> History:
        histories: dict[str, Callable[[], History]] = {
            "account": lambda: self._ledger.by_account,
            "counterparty": lambda: self._ledger.by_counterparty,
            "entity": lambda: self._by_entity,
            "all": lambda: self._together,
        }
        return histories[scope]()

    @cached_property
    def _by_entity(self) -> History:
        entity = codes(self._ledger.transactions["entity_id"])
        return History.of(entity, int(entity.max(initial=-1)) + 1, self._ledger.time, self._ledger.known)

    @cached_property
    def _together(self) -> History:
        one = np.zeros(len(self._ledger), np.int64)
        return History.of(one, 1, self._ledger.time, self._ledger.known)


def _times(values: I64) -> pl.Series:
    return pl.Series(np.where(values == NEVER_US, np.iinfo(np.int64).min, values).view("datetime64[us]")).cast(UTC_US)


@kernel
def newest_seen(
    ask_starts: I64,
    ask_rows: I64,
    time: I64,
    enter_starts: I64,
    enter_rows: I64,
    enter: I64,
    arrived: I64,
    window_us: int,
) -> I64:
    """Newest arrival among records of a key that entered by a row's moment and lie in its window.

    Rows of a key are asked in order of time, so the record that entered last moves forward only. If it lies before the
    window, older arrivals are tried, until one arrived before the window began: those before it cannot lie in it.
    """
    out = np.full(len(time), -(1 << 62), np.int64)
    for key in range(len(ask_starts) - 1):
        upto = enter_starts[key]
        for place in range(ask_starts[key], ask_starts[key + 1]):
            row = ask_rows[place]
            while upto < enter_starts[key + 1] and enter[enter_rows[upto]] <= time[row]:
                upto += 1
            since = time[row] - window_us
            at = upto - 1
            while at >= enter_starts[key]:
                record = enter_rows[at]
                if enter[record] <= since:
                    break
                if window_us >= (1 << 60) or time[record] >= since:
                    out[row] = arrived[record]
                    break
                at -= 1
    return out


def checked(table: pl.DataFrame, booked: pl.Series) -> pl.DataFrame:
    """The table, when nothing in it is newer than the row that used it.

    Args:
        table: see `provenance`.
        booked: when each row happened.

    Raises:
        ReperformError: naming the KPIs; windows are broken where this happens.
    """
    late = [name for name in table.columns[1:] if (table[name] > booked).fill_null(value=False).any()]
    if late:
        raise ReperformError(
            "KPIs would have used records that are newer than the row.",
            expected="sources that had arrived when the row happened",
            got=", ".join(late),
            where="data/featurize/provenance.parquet",
            fix="mend src/reperform/featurize/windows.py; `python -m reperform certify` names the columns",
        )
    return table
