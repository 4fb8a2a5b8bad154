"""Transactions that grow row by row: columns in order of arrival, and rows per key in order of time."""

# ruff: noqa: PLR0917  # compiled functions take arguments by position

from collections.abc import Iterable, Sequence
from dataclasses import dataclass, field
from typing import Any

import numpy as np
import polars as pl

from reperform import schemas
from reperform.featurize.benford import first_digits
from reperform.featurize.days import NEVER
from reperform.featurize.geography import GRID
from reperform.featurize.kernels import I64, Mask, kernel
from reperform.featurize.ledger import UNKNOWN_SEGMENT, UNKNOWN_TIME_US, Ledger, hundredths, wall_clock
from reperform.featurize.timing import THURSDAY
from reperform.featurize.windows import DAY_US, FOREVER_US, HOUR_US, Rows

FEW = 64  # names and moments that are looked up one by one
NOTHING = 0  # the first slot holds no row; it stands, later than all times, where a key has room for more
PARTIES = ("account_id", "counterparty_id")
SCHEMA = schemas.polars_schema(schemas.TRANSACTIONS)
TEXTS = tuple(name for name, kind in SCHEMA.items() if kind == pl.String and name != "transaction_id")
NUMBERS = tuple(name for name, kind in SCHEMA.items() if kind in {pl.Float64, pl.Int64})
DERIVED = (
    "time", "known", "enter", "local", "local_known", "day", "known_day", "cents", "payer", "payee", "hour", "digit",
    "located", "y", "x",
)  # fmt: skip
LOGS = ("log_amount",)
CONFIRMED = ("said", "confirmed")


@dataclass
class Names:
    """Text as whole numbers, in order of first appearance; -1 is null."""

    code: dict[str, int] = field(default_factory=dict)
    text: list[str | None] = field(default_factory=lambda: [None])

    def encode(self, names: Iterable[str | None]) -> I64:
        """Codes of names; new ones get new codes."""
        if isinstance(names, pl.Series) and len(names) > FEW:
            known = names.drop_nulls().unique(maintain_order=True)
            own = np.append(np.array([self._code(name) for name in known.to_list()], np.int64), -1)
            place = names.cast(pl.Enum(known)).to_physical().cast(pl.Int64).fill_null(-1).to_numpy()
            return np.asarray(own[place])
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
                wider = np.zeros(max(2 * len(held), (self.size + added) * 5 // 4), held.dtype)
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


@kernel
def _put(starts: I64, used: I64, slots: I64, codes: I64, new: I64, time: I64) -> Mask:
    """Insert slots by time where there is room; those that meet one of the same time are left to be told apart."""
    tied = np.zeros(len(new), np.bool_)
    for place in range(len(new)):
        key = codes[place]
        if key < 0:
            continue
        begin, moment = starts[key], time[new[place]]
        at = begin + used[key]
        while at > begin and time[slots[at - 1]] > moment:
            at -= 1
        if at > begin and time[slots[at - 1]] == moment:
            tied[place] = True
            continue
        for moved in range(begin + used[key], at, -1):
            slots[moved] = slots[moved - 1]
        slots[at] = new[place]
        used[key] += 1
    return tied


@kernel
def _later(starts: I64, used: I64, slots: I64, time: I64, codes: I64, moments: I64) -> I64:
    """Slots of each key that happened at or after its moment."""
    found, size = np.empty(16, np.int64), 0
    for place in range(len(codes)):
        key = codes[place]
        if key < 0 or key >= len(used):
            continue
        for at in range(starts[key] + used[key] - 1, starts[key] - 1, -1):
            if time[slots[at]] < moments[place]:
                break
            if size == len(found):
                wider = np.empty(2 * size, np.int64)
                wider[:size] = found
                found = wider
            found[size] = slots[at]
            size += 1
    return found[:size]


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

    def _spread(self, packed: I64, held: I64 | None = None) -> None:
        """Lay the keys out anew, with room for half as many more.

        Args:
            packed: slots, key after key.
            held: how many of each key, if there is to be room for others in between.
        """
        room = self.used + self.used // 2 + 4
        self.starts = np.concatenate([[0], np.cumsum(room)]).astype(np.int64)
        self.slots = np.full(self.starts[-1], NOTHING)
        size = self.used if held is None else held
        before = np.repeat(self.starts[:-1] - (np.cumsum(size) - size), size)
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

    def extend(self, codes: I64, slots: I64, time: I64, ids: Sequence[str]) -> None:
        """Put slots where they belong.

        Args:
            codes: key of each; -1 for none.
            slots: in order of (time, id).
            time: by slot.
            ids: by slot.
        """
        if not len(codes) or codes.max() < 0:
            return
        self.make_room(int(codes.max()) + 1)
        more = np.bincount(codes[codes >= 0], minlength=len(self.used))
        if (self.used + more > np.diff(self.starts)).any():
            packed, used = self._packed(), self.used
            self.used = used + more
            self._spread(packed, used)
            self.used = used
        tied = _put(self.starts, self.used, self.slots, codes, slots, time)
        for place in np.flatnonzero(tied).tolist():
            self.insert(int(codes[place]), int(slots[place]), time, ids)

    def later(self, codes: I64, time: I64, moments_us: I64) -> I64:
        """Slots of keys that happened at or after a moment, the same for some keys and moments."""
        return _later(self.starts, self.used, self.slots, time, codes, moments_us)

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
        zones: names of timezones.
        entities: names of entities.
        default_timezone: for accounts whose timezone is not given.
    """

    def __init__(self, parties: Names, zones: Names, entities: Names, default_timezone: str) -> None:
        self.parties = parties
        self.default_timezone = default_timezone
        self.entities = entities
        self.names = {"zone": zones, "segment": Names(), "home": Names()}
        self.defaults = {
            "registered": 0, "entity": -1, "opened": UNKNOWN_TIME_US, "opened_day": NEVER, "home": -1,
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
            "entity": self.entities.encode(accounts["entity_id"]),
            "registered": np.ones(len(party), np.int64),
        }
        for name, values in known.items():
            self[name][party] = np.asarray(values)
        return party


class Clock:
    """Clocks on walls, by timezone: Polars says what they show, and is asked once for each hour.

    Args:
        zones: names of timezones.
    """

    def __init__(self, zones: Names) -> None:
        self.zones = zones
        self._ahead: dict[tuple[int, int], int | None] = {}  # None: the clock is put forward or back in this hour

    def local(self, time: I64, zones: I64) -> I64:
        """What clocks show, as microseconds.

        Args:
            time: microseconds UTC.
            zones: codes of timezones.
        """
        hour = time // HOUR_US
        if len(time) > FEW:
            asked, place = np.unique(np.stack([zones, hour]), axis=1, return_inverse=True)
            keys = list(zip(*asked.tolist(), strict=True))
        else:
            keys, place = list(zip(zones.tolist(), hour.tolist(), strict=True)), np.arange(len(time))
        self._learn([key for key in dict.fromkeys(keys) if key not in self._ahead])
        ahead = [self._ahead[key] for key in keys]
        out = time + np.array([0 if one is None else one for one in ahead], np.int64)[place.ravel()]
        if any(one is None for one in ahead):
            changing = np.array([one is None for one in ahead])[place.ravel()]
            for row in np.flatnonzero(changing).tolist():
                out[row] = self._shown(int(zones[row]), time[row : row + 1])[0]
        return out

    def _shown(self, zone: int, time: I64) -> I64:
        name = self.zones.text[zone + 1]
        shown = wall_clock(pl.Series(time).cast(schemas.UTC_US), str(name))
        return _microseconds(shown)

    def _learn(self, keys: list[tuple[int, int]]) -> None:
        for zone in dict.fromkeys(zone for zone, _ in keys):
            first = np.array([hour for of, hour in keys if of == zone], np.int64) * HOUR_US
            begin, end = (self._shown(zone, first + shift) - first - shift for shift in (0, HOUR_US - 1))
            for moment, one, other in zip(first.tolist(), begin.tolist(), end.tolist(), strict=True):
                self._ahead[zone, moment // HOUR_US] = one if one == other else None


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
        self.zones = Names()
        self.clock = Clock(self.zones)
        self.names = {name: self.parties if name in PARTIES else Names() for name in TEXTS}
        kinds = dict.fromkeys((*TEXTS, *DERIVED, *CONFIRMED), np.int64) | dict.fromkeys((*NUMBERS, *LOGS), np.float64)
        self.columns = Columns(kinds)
        nothing = {name: np.zeros(1, kind) for name, kind in kinds.items()}
        nothing |= {name: np.full(1, FOREVER_US) for name in ("time", "known", "enter", "day", "known_day")}
        nothing |= {name: np.full(1, -1) for name in (*TEXTS, "said", "payer", "payee")}
        self.columns.append(nothing)

    def __getitem__(self, name: str) -> Any:
        return self.columns[name]

    def __len__(self) -> int:
        return self.columns.size - 1

    def append(self, rows: pl.DataFrame, accounts: I64, zones: I64) -> I64:
        """Add rows that are not held yet.

        Args:
            rows: as `schemas.TRANSACTIONS`.
            accounts: their accounts' codes.
            zones: code of the timezone of each row's account.
        """
        n, first = rows.height, self.columns.size
        time = _microseconds(rows["booked_at"])
        known = np.maximum(_microseconds(rows["known_at"]), time)
        more: dict[str, Any] = {
            "time": time, "known": known, "enter": np.maximum(known, time + 1),
            "said": np.full(n, -1), "confirmed": np.full(n, UNKNOWN_TIME_US), **self._by_the_wall(time, known, zones),
        }  # fmt: skip
        for name in TEXTS:
            more[name] = accounts if name == "account_id" else self.names[name].encode(rows[name])
        more |= {name: _number(rows[name]) for name in NUMBERS}
        more["cents"] = hundredths(more["amount_base"])
        more |= self._sides(more) | _of_the_row(more)
        self.columns.append(more)
        ids = rows["transaction_id"].to_list()
        self.ids += ids
        self.slot_of |= {name: first + place for place, name in enumerate(ids)}
        return np.arange(first, first + n)

    def set_clock(self, slots: I64, zones: I64) -> None:
        """Read rows' times by the clocks of accounts that have become known."""
        for name, values in self._by_the_wall(self["time"][slots], self["known"][slots], zones).items():
            self[name][slots] = values

    def _by_the_wall(self, time: I64, known: I64, zones: I64) -> dict[str, I64]:
        local, local_known = self.clock.local(time, zones), self.clock.local(known, zones)
        day = local // DAY_US
        return {
            "local": local, "local_known": local_known, "day": day,
            "known_day": np.maximum(-(-local_known // DAY_US), day + 1),  # as `days.known_days`
            "hour": (day + THURSDAY) % 7 * 24 + (local - day * DAY_US) // HOUR_US,
        }  # fmt: skip

    def _sides(self, encoded: dict[str, Any]) -> dict[str, I64]:
        """Who pays whom, by party; -1 for both where no counterparty is named."""
        account, other = encoded["account_id"], encoded["counterparty_id"]
        named, incoming = other >= 0, encoded["direction"] == self.names["direction"].code.get("in", -2)
        payer = np.where(named, np.where(incoming, other, account), -1)
        return {"payer": payer, "payee": np.where(named, np.where(incoming, account, other), -1)}

    def in_order(self, slots: I64) -> I64:
        """Slots in the order of a table of transactions: by time, then by id."""
        time = self["time"][slots]
        if len(slots) == 1:
            return slots
        by_time = slots[np.argsort(time, kind="stable")]
        same = np.flatnonzero(np.diff(self["time"][by_time]) == 0)
        for first, last in _runs(same):
            by_time[first : last + 1] = sorted(by_time[first : last + 1], key=self.ids.__getitem__)
        return by_time

    def frame(self, slots: I64, names: Sequence[str]) -> pl.DataFrame:
        """Columns of `schemas.TRANSACTIONS`, by slot."""
        return pl.DataFrame([self.series(name, slots) for name in SCHEMA if name in names])

    def series(self, name: str, slots: I64) -> pl.Series:
        """One of these columns."""
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


def _of_the_row(encoded: dict[str, Any]) -> dict[str, Any]:
    """What KPIs read of a row's past and would compute for it again and again."""
    latitude, longitude = encoded["latitude"], encoded["longitude"]
    located = ~(np.isnan(latitude) | np.isnan(longitude))
    y, x = (np.where(located, np.rint(np.nan_to_num(at) * GRID), 0).astype(np.int64) for at in (latitude, longitude))
    return {
        "log_amount": np.log1p(encoded["amount_base"]), "digit": first_digits(encoded["amount"]),
        "located": located.astype(np.int64), "y": y, "x": x,
    }  # fmt: skip


def _microseconds(times: pl.Series) -> I64:
    return times.to_numpy().astype("datetime64[us]").view(np.int64)


def _number(values: pl.Series) -> Any:
    return (values if values.dtype == pl.Float64 else values.cast(pl.Float64)).to_numpy()


def _runs(same: I64) -> list[tuple[int, int]]:
    """First and last place of each run of equal neighbours, given the places that equal the next one."""
    if not len(same):
        return []
    breaks = np.flatnonzero(np.diff(same) > 1)
    firsts, lasts = same[np.concatenate([[0], breaks + 1])], same[np.concatenate([breaks, [len(same) - 1]])] + 1
    return list(zip(firsts.tolist(), lasts.tolist(), strict=True))
