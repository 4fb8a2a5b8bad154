"""Transactions that grow row by row: columns in order of arrival, and rows per key in order of time."""

from collections.abc import Iterable, Sequence
from dataclasses import dataclass, field, replace
from typing import Any

import numpy as np
import polars as pl

from reperform import schemas
from reperform.featurize.days import NEVER, known_days
from reperform.featurize.kernels import I64
from reperform.featurize.ledger import UNKNOWN_SEGMENT, UNKNOWN_TIME_US, Ledger
from reperform.featurize.windows import FOREVER_US, Rows

NOTHING = 0  # the first slot holds no row; it stands, later than all times, where a key has room for more
PARTIES = ("account_id", "counterparty_id")
SCHEMA = schemas.polars_schema(schemas.TRANSACTIONS)
TEXTS = tuple(name for name, kind in SCHEMA.items() if kind == pl.String and name != "transaction_id")
NUMBERS = tuple(name for name, kind in SCHEMA.items() if kind in {pl.Float64, pl.Int64})
DERIVED = ("time", "known", "enter", "local", "local_known", "day", "known_day", "cents", "payer", "payee")
CONFIRMED = ("said", "confirmed")


@dataclass
class Names:
    """Text as whole numbers, in order of first appearance; -1 is null."""

    code: dict[str, int] = field(default_factory=dict)
    text: list[str | None] = field(default_factory=lambda: [None])

    def encode(self, names: Iterable[str | None]) -> I64:
        """Codes of names; new ones get new codes."""
        return np.array([-1 if name is None else self._code(name) for name in names], np.int64)

    def _code(self, name: str) -> int:
        found = self.code.get(name)
        if found is None:
            found = self.code[name] = len(self.code)
            self.text.append(name)
        return found

    def series(self, name: str, codes: I64) -> pl.Series:
        """The text of codes."""
        text = self.text
        if len(codes) and (codes == codes[0]).all():
            return pl.Series(name, [text[codes[0] + 1]], dtype=pl.String).new_from_index(0, len(codes))
        return pl.Series(name, [text[code] for code in (codes + 1).tolist()], dtype=pl.String)

    def __len__(self) -> int:
        return len(self.code)


class Columns:
    """Arrays that grow together."""

    def __init__(self, kinds: dict[str, Any]) -> None:
        self.size = 0
        self._held = {name: np.zeros(16, kind) for name, kind in kinds.items()}

    def __getitem__(self, name: str) -> Any:
        return self._held[name][: self.size]

    def append(self, more: dict[str, Any]) -> None:
        """Add rows at the end."""
        added = len(next(iter(more.values()), ()))
        for name, held in self._held.items():
            if self.size + added > len(held):
                wider = np.zeros(max(2 * len(held), self.size + added), held.dtype)
                wider[: self.size] = held[: self.size]
                self._held[name] = wider
            self._held[name][self.size : self.size + added] = more[name]
        self.size += added

    @property
    def names(self) -> list[str]:
        """Names of the columns."""
        return list(self._held)

    @property
    def bytes(self) -> int:
        """Memory."""
        return sum(held.nbytes for held in self._held.values())


class Lists:
    """Slots per key in order of time, one key after the other in one array, each with room for more.

    Compiled functions read them as `Rows`: a place that is still free holds the slot `NOTHING`, later than all others.
    """

    def __init__(self, codes: I64, order: I64, keys: int) -> None:
        kept = order[codes[order] >= 0]
        kept = kept[np.argsort(codes[kept], kind="stable")]
        self.used = np.bincount(codes[kept], minlength=keys).astype(np.int64)
        self.starts, self.slots = np.zeros(1, np.int64), np.zeros(0, np.int64)
        self._spread(kept)

    def _spread(self, packed: I64) -> None:
        """Lay the keys out anew, with room for half as many more."""
        room = self.used + self.used // 2 + 4
        self.starts = np.concatenate([[0], np.cumsum(room)]).astype(np.int64)
        self.slots = np.full(self.starts[-1], NOTHING)
        before = np.repeat(self.starts[:-1] - (np.cumsum(self.used) - self.used), self.used)
        self.slots[before + np.arange(len(packed))] = packed

    def _packed(self) -> I64:
        key = np.repeat(np.arange(len(self.used)), self.used)
        first = np.cumsum(self.used) - self.used
        return self.slots[self.starts[key] + np.arange(len(key)) - first[key]]

    def of(self, key: int) -> I64:
        """Slots of a key, in order of time."""
        if key < 0 or key >= len(self.used):
            return np.zeros(0, np.int64)
        return self.slots[self.starts[key] : self.starts[key] + self.used[key]]

    def between(self, key: int, time: I64, first_us: int, end_us: int) -> I64:
        """Slots of a key in [first, end)."""
        slots = self.of(key)
        low, high = np.searchsorted(time[slots], [first_us, end_us])
        return slots[low:high]

    def insert(self, key: int, slot: int, time: I64, ids: Sequence[str]) -> None:
        """Put a slot where it belongs by (time, id)."""
        if key < 0:
            return
        self.make_room(key + 1)
        if self.starts[key] + self.used[key] == self.starts[key + 1]:
            self._spread(self._packed())
        begin, size = self.starts[key], self.used[key]
        held = self.slots[begin : begin + size]
        at = size
        if size and (time[held[-1]], ids[held[-1]]) > (time[slot], ids[slot]):
            low, high = (
                np.searchsorted(time[held], time[slot], "left"),
                np.searchsorted(time[held], time[slot], "right"),
            )
            at = low + sum(ids[other] < ids[slot] for other in held[low:high])
        self.slots[begin + at + 1 : begin + size + 1] = held[at:].copy()
        self.slots[begin + at] = slot
        self.used[key] += 1

    def make_room(self, keys: int) -> None:
        """Have places for so many keys, and for some to come."""
        if keys <= len(self.used):
            return
        added = keys - len(self.used) + keys // 8
        self.used = np.concatenate([self.used, np.zeros(added, np.int64)])
        self.starts = np.concatenate([self.starts, self.starts[-1] + 4 * np.arange(1, added + 1)])
        self.slots = np.concatenate([self.slots, np.full(4 * added, NOTHING)])

    @property
    def rows(self) -> Rows:
        """For compiled functions."""
        return Rows(self.starts, self.slots)

    @property
    def bytes(self) -> int:
        """Memory."""
        return self.starts.nbytes + self.slots.nbytes + self.used.nbytes


class Register:
    """What is known of accounts, by party. Parties that the table of accounts does not name have defaults.

    Args:
        parties: names of accounts and counterparties.
        default_timezone: for accounts whose timezone is not given.
    """

    def __init__(self, parties: Names, default_timezone: str) -> None:
        self.parties = parties
        self.default_timezone = default_timezone
        self.names = {"zone": Names(), "segment": Names(), "home": Names()}
        self.defaults = {
            "registered": 0, "opened": UNKNOWN_TIME_US, "opened_day": NEVER, "home": -1,
            "zone": self.names["zone"].encode([default_timezone])[0],
            "segment": self.names["segment"].encode([UNKNOWN_SEGMENT])[0],
        }  # fmt: skip
        self.columns = Columns(dict.fromkeys(self.defaults, np.int64))

    def __getitem__(self, name: str) -> Any:
        """A column, by party."""
        missing = len(self.parties) - self.columns.size
        if missing:
            self.columns.append({key: np.full(missing, value) for key, value in self.defaults.items()})
        return self.columns[name]

    def add(self, accounts: pl.DataFrame) -> I64:
        """Enter accounts; returns their codes."""
        party = self.parties.encode(accounts["account_id"])
        opened = accounts["opened_at"].cast(schemas.UTC_US)
        known = {
            "opened": opened.dt.epoch("us").fill_null(UNKNOWN_TIME_US),
            "opened_day": opened.dt.date().cast(pl.Int32).cast(pl.Int64).fill_null(NEVER),
            "zone": self.names["zone"].encode(accounts["timezone"].fill_null(self.default_timezone)),
            "segment": self.names["segment"].encode(accounts["segment"].fill_null(UNKNOWN_SEGMENT)),
            "home": self.names["home"].encode(accounts["home_country"]),
            "registered": np.ones(len(party), np.int64),
        }
        for name, values in known.items():
            self[name][party] = np.asarray(values)
        return party


class Table:
    """All rows, columns as whole numbers and floats, by slot: the order in which they came.

    Args:
        about: a ledger without rows: accounts and default timezone.
    """

    def __init__(self, about: Ledger) -> None:
        self.about = about
        self.ids: list[str] = [""]
        self.slot_of: dict[str, int] = {}
        self.parties = Names()
        self.names = {name: self.parties if name in PARTIES else Names() for name in TEXTS}
        kinds = dict.fromkeys((*TEXTS, *DERIVED, *CONFIRMED), np.int64) | dict.fromkeys(NUMBERS, np.float64)
        self.columns = Columns(kinds)
        nothing = {name: np.zeros(1, kind) for name, kind in kinds.items()}
        nothing |= {name: np.full(1, FOREVER_US) for name in ("time", "known", "enter", "day", "known_day")}
        nothing |= {name: np.full(1, -1) for name in (*TEXTS, "said", "payer", "payee")}
        self.columns.append(nothing)

    def __getitem__(self, name: str) -> Any:
        return self.columns[name]

    def __len__(self) -> int:
        return self.columns.size - 1

    def append(self, rows: pl.DataFrame, zones: pl.Series) -> I64:
        """Add rows that are not held yet.

        Args:
            rows: as `schemas.TRANSACTIONS`.
            zones: timezone of each row's account.
        """
        ledger = self._ledger(rows, zones)
        said, confirmed = np.full(len(ledger), -1), np.full(len(ledger), UNKNOWN_TIME_US)
        more = {
            "time": ledger.time, "known": ledger.known, "cents": ledger.cents, "said": said, "confirmed": confirmed,
            **_by_the_wall(ledger),
        }  # fmt: skip
        more |= {name: self.names[name].encode(rows[name]) for name in TEXTS}
        more |= {name: rows[name].cast(pl.Float64).to_numpy() for name in NUMBERS}
        more |= {"enter": np.maximum(ledger.known, ledger.time + 1)} | _sides(ledger, more)
        first = self.columns.size
        self.columns.append(more)
        ids = rows["transaction_id"].to_list()
        self.ids += ids
        self.slot_of |= {name: first + place for place, name in enumerate(ids)}
        return np.arange(first, first + len(ids))

    def set_clock(self, slots: I64, zones: pl.Series) -> None:
        """Read rows' times by the clocks of accounts that have become known."""
        for name, values in _by_the_wall(self._ledger(self.frame(slots, tuple(SCHEMA)), zones)).items():
            self[name][slots] = values

    def _ledger(self, rows: pl.DataFrame, zones: pl.Series) -> Ledger:
        ledger = replace(self.about, transactions=rows, span=None)
        vars(ledger)["_details"] = zones.alias("timezone").to_frame()  # all that clocks ask for; no join for one row
        return ledger

    def in_order(self, slots: I64) -> I64:
        """Slots in the order of a table of transactions: by time, then by id."""
        time = self["time"][slots]
        by_time = slots[np.argsort(time, kind="stable")]
        same = np.flatnonzero(np.diff(self["time"][by_time]) == 0)
        for first, last in _runs(same):
            by_time[first : last + 1] = sorted(by_time[first : last + 1], key=self.ids.__getitem__)
        return by_time

    def frame(self, slots: I64, names: Sequence[str]) -> pl.DataFrame:
        """Columns of `schemas.TRANSACTIONS`, by slot."""
        return pl.DataFrame([self._series(name, slots) for name in SCHEMA if name in names])

    def _series(self, name: str, slots: I64) -> pl.Series:
        if name == "transaction_id":
            ids = self.ids
            return pl.Series(name, [ids[slot] for slot in slots.tolist()], dtype=pl.String)
        if name in self.names:
            return self.names[name].series(name, self[name][slots])
        if name in NUMBERS:
            return pl.Series(name, self[name][slots], nan_to_null=True).cast(SCHEMA[name])
        moments: I64 = self["time" if name == "booked_at" else "known"][slots]
        return pl.Series(name, moments).cast(schemas.UTC_US)

    @property
    def bytes(self) -> int:
        """Memory of the columns, and about that of the ids."""
        return self.columns.bytes + 250 * len(self.ids)  # text, list and dictionary


def _sides(ledger: Ledger, encoded: dict[str, Any]) -> dict[str, I64]:
    """Who pays whom, by party; -1 for both where no counterparty is named."""
    account, other = encoded["account_id"], encoded["counterparty_id"]
    named = other >= 0
    payer = np.where(named, np.where(ledger.incoming, other, account), -1)
    return {"payer": payer, "payee": np.where(named, np.where(ledger.incoming, account, other), -1)}


def _by_the_wall(ledger: Ledger) -> dict[str, I64]:
    local, known = (times.dt.epoch("us").to_numpy() for times in (ledger.local, ledger.local_known))
    return {"local": local, "local_known": known, "day": ledger.local_day, "known_day": known_days(ledger)}


def _runs(same: I64) -> list[tuple[int, int]]:
    """First and last place of each run of equal neighbours, given the places that equal the next one."""
    if not len(same):
        return []
    breaks = np.flatnonzero(np.diff(same) > 1)
    firsts, lasts = same[np.concatenate([[0], breaks + 1])], same[np.concatenate([breaks, [len(same) - 1]])] + 1
    return list(zip(firsts.tolist(), lasts.tolist(), strict=True))
