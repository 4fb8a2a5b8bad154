"""The draft of a map: commented YAML that says for each column why, and asks with a TODO what no file can tell."""

import os
import re
from pathlib import Path
from typing import Any

from reperform.sources import camt, layout, roles, sample
from reperform.sources.lines import TODO, files_alike, mapping, said, scalar
from reperform.sources.roles import Parts
from reperform.sources.terminal import shown
from reperform.sources.values import Column, Moments

MOST_UNUSED = 40
COPIED = (
    "transaction_id",
    "booked_at",
    "known_at",
    "account_id",
    "counterparty_id",
    "entity_id",
    "currency",
    "channel",
    "country",
    "latitude",
    "longitude",
    "balance_after",
)  # canonical columns of transactions, in the order of their contract
SUFFIXES = {"gzip": ".gz", "zip": ".zip", "zstd": ".zst"}  # names that tell how a file is packed
STEP_OF_NAME = {name: name for name in ("second", "minute", "hour", "day", "month")}
RECORD = "{record: true}"


def of_file(path: Path, root: Path, name: str | None) -> str:
    """The draft of a map for a file.

    Args:
        path: the file; only its beginning is read.
        root: the project, which `raw` is relative to.
        name: of the map, for the command that comes next.

    Raises:
        ReperformError: where the file cannot be read, or holds neither a table nor a known message.
    """
    start = sample.head(path)
    if start.kind == sample.XML:
        base = camt.currency(start) or TODO
        return "\n".join([*_top(path, root, name, base), *camt.source(path, start)]) + "\n"
    parts = roles.of(layout.of_file(path, start))
    return "\n".join([*_top(path, root, name, _base_currency(parts)), *_table(path, parts, start)]) + "\n"


def _top(path: Path, root: Path, name: str | None, base: str) -> list[str]:
    """What stands above the sources."""
    raw = os.path.relpath(path.resolve().parent, root.resolve()).replace(os.sep, "/")
    asks = said("the currency that amounts of all sources are compared in, such as EUR") if base == TODO else []
    return [
        *said(f"Draft of a map for {shown(path.name, 100)}, made from its beginning by `reperform sources suggest`."),
        *said("Each remark says what speaks for the line below it. Answer every TODO, look at the rest, then run"),
        *said(f"`python -m reperform sources check {name or 'NAME'}`."),
        f"raw: {scalar(raw)}",
        *asks,
        f"base_currency: {base}",
        "on_unreadable_file: stop  # or quarantine: list the file there, and go on",
        "processes: 2",
        "",
        "sources:",
    ]


def _base_currency(parts: Parts) -> str:
    currency = parts.found.get("currency")
    return str(currency.column.counts.most_common(1)[0][0]) if currency else TODO


def _table(path: Path, parts: Parts, start: sample.Head) -> list[str]:
    lines = [
        *_source("transactions", "transactions", path, parts, start),
        *_times(parts, 4),
        "    columns:",
        *(line for name in COPIED for line in _column(name, parts, path)),
        *_amounts(parts),
        "",
        *_accounts(path, parts, start),
    ]
    if "label" in parts.found:
        lines += ["", *_labels(path, parts, start)]
    return [*lines, *_unused(parts)]


def _source(name: str, target: str, path: Path, parts: Parts, start: sample.Head, *, remarks: bool = True) -> list[str]:
    """The beginning of a source: files and format."""
    pattern, why = files_alike(path)
    lines = [f"  {name}:", "    kind: table", f"    target: {target}"]
    lines += said(why, 4) if remarks and why else []
    lines.append(f"    files: {scalar(pattern)}")
    form = dict(parts.layout.format)
    if start.compression != "none" and not path.name.endswith(SUFFIXES[start.compression]):
        form["compression"] = (start.compression, f"the file is a {start.compression} archive")
    form |= _marks(parts)
    plain = {"delimiter": ",", "encoding": "utf-8"}
    settings = {key: (value, why) for key, (value, why) in form.items() if plain.get(key) != value or remarks}
    if settings:
        lines.append("    format:")
    for key, (value, why) in settings.items():
        lines += said(why, 6) if remarks else []
        lines.append(f"      {key}: {scalar(value)}")
    return lines


def _marks(parts: Parts) -> dict[str, tuple[Any, str]]:
    marks = parts.marks
    if marks.is_ambiguous:
        asks = f"which mark is the decimal one, . or , ? every number reads both ways, such as {marks.grouped!r}"
        return {"decimal": (TODO, asks)}
    found: dict[str, tuple[Any, str]] = {}
    if marks.decimal != ".":
        found["decimal"] = (marks.decimal, f"decimal comma, because {marks.why}")
    if marks.thousands:
        found["thousands"] = (marks.thousands, f"a mark between groups of three digits, as in {marks.grouped!r}")
    return found


def _times(parts: Parts, indent: int) -> list[str]:
    """How moments are written, for the source as a whole."""
    main = _main_moments(parts)
    pad = " " * indent
    if "booked_at" in parts.found and main is None:
        return [*_steps(parts, indent)]
    if main is None:
        return []
    lines = [f"{pad}times:", *_format_of(main, indent + 2)]
    if main.needs_zone:
        lines += said(
            "no offset in the text: in which zone do these clocks run? such as Europe/Berlin or UTC", indent + 2
        )
        lines.append(f"{pad}  time_zone: {TODO}")
    return lines


def _main_moments(parts: Parts) -> Moments | None:
    if parts.day_and_time is not None:
        day, clock = parts.day_and_time
        found = parts.times[day.name]
        return Moments(
            _joined(found.format, clock), found.why, readings=tuple(_joined(r, clock) for r in found.readings)
        )
    booked = parts.found.get("booked_at")
    return parts.times.get(booked.column.name) if booked else None


def _joined(day: str, clock: Column) -> str:
    """The format of a day and a time of day with a space between."""
    seconds = ":%S" if all(text.count(":") > 1 for text in clock.counts) else ""
    if day in ("", "iso"):
        return day if seconds or not day else f"%Y-%m-%d %H:%M{seconds}"
    return f"{day} %H:%M{seconds}"


def _format_of(found: Moments, indent: int) -> list[str]:
    pad = " " * indent
    if not found.readings:
        return [*said(found.why, indent), f"{pad}format: {scalar(found.format)}"]
    both = " or ".join(f'"{reading}"' for reading in found.readings)
    return [*said(f"{found.why}; which one: {both}?", indent), f"{pad}format: {TODO}"]


def _steps(parts: Parts, indent: int) -> list[str]:
    pad = " " * indent
    column = parts.found["booked_at"].column
    step = STEP_OF_NAME.get(roles.called(column.name))
    lines = [f"{pad}times:", *said(f"{shown(column.name)} counts steps", indent + 2), f"{pad}  format: steps"]
    if step is None:
        lines += said("how long is a step? second, minute, hour, day or month", indent + 2)
    lines.append(f"{pad}  step: {step or TODO}")
    lines += said('when was step 0? such as "2017-01-01T00:00:00Z"; where nobody knows, any day will do', indent + 2)
    return [*lines, f"{pad}  start: {TODO}"]


def _column(name: str, parts: Parts, path: Path) -> list[str]:
    """One canonical column: what speaks for its origin, and the origin."""
    origin, why = _origin(name, parts, path)
    return [*said(why, 6), f"      {name}: {origin}"] if origin else []


def _origin(name: str, parts: Parts, path: Path) -> tuple[str, str]:
    """What a canonical column is made from, as YAML, and what speaks for it; empty where nothing is."""
    if name in ("booked_at", "known_at"):
        return _moment(name, parts)
    part = parts.found.get(name)
    if part is None:
        return _without_column(name, path)
    remark = f"{shown(part.column.name)}: {part.why}"
    if name in ("latitude", "longitude") and parts.coordinates:
        place = 0 if name == "latitude" else 1
        return mapping(column=part.column.name, split=parts.coordinates, part=place), remark
    return scalar(part.column.name), remark


def _without_column(name: str, path: Path) -> tuple[str, str]:
    """The origin of a column that is needed and that the file does not give."""
    folder = re.sub(r"[^A-Za-z0-9_-]+", "-", path.resolve().parent.name).strip("-") or "mine"
    needed = {
        "transaction_id": (
            RECORD,
            "no column differs in each record: the record's number is the id, as stable as the file",
        ),
        "account_id": (
            RECORD,
            "nothing looks like an account: each record is one of its own, without a history. Is it so?",
        ),
        "entity_id": (
            mapping(constant=folder),
            "the institution that reports; taken from the folder's name, change it at will",
        ),
        "currency": (f"{{constant: {TODO}}}", "no column holds codes of ISO 4217: in which currency are the amounts?"),
    }
    return needed.get(name, ("", ""))


def _moment(name: str, parts: Parts) -> tuple[str, str]:
    if parts.day_and_time is not None:
        names = ", ".join(scalar(column.name) for column in parts.day_and_time)
        return f"{{columns: [{names}]}}", "day and time of day stand in two columns"
    booked = parts.found.get("booked_at")
    if booked is None:
        return TODO, "no column holds moments: which one says when?"
    part = parts.found.get(name)
    if part is None:
        same = "there is no second moment: a record is taken to be known when it is booked"
        return scalar(booked.column.name), same
    main, own = _main_moments(parts), parts.times.get(part.column.name)
    remark = f"{shown(part.column.name)}: {part.why}"
    if own is None or main is None or own.format == main.format:
        return scalar(part.column.name), remark
    return mapping(column=part.column.name, format=own.format or TODO), remark


def _amounts(parts: Parts) -> list[str]:
    found, pad = parts.found, "      "
    lines = ["    amounts:"]
    if "debit" in found and "credit" in found:
        for side, way in (("debit", "out"), ("credit", "in")):
            more = f"; {parts.balances}" if parts.balances and way == "out" else ""
            lines += said(f"{shown(found[side].column.name)}: money {way}; {found[side].why}{more}", 6)
            lines.append(f"{pad}{side}: {scalar(found[side].column.name)}")
        return lines
    if "amount" not in found:
        return [*lines, *said("no column of numbers is called an amount: which one is it?", 6), f"{pad}column: {TODO}",
                f"{pad}direction: {TODO}"]  # fmt: skip
    amount = found["amount"]
    lines += [*said(f"{shown(amount.column.name)}: {amount.why}", 6), f"{pad}column: {scalar(amount.column.name)}"]
    return [*lines, *_way(parts), *_minor_units(amount.column, parts)]


def _way(parts: Parts) -> list[str]:
    """Where the direction comes from."""
    pad = "      "
    negative = sum(value < 0 for value in parts.numbers(parts.found["amount"].column))
    if negative:
        check = parts.balances or "check it with a record that you know"
        return [*said(f"a minus is taken for money that goes {parts.negative}: {check}", 6),
                f"{pad}negative: {parts.negative}"]  # fmt: skip
    if "direction" not in parts.found:
        return [*said("neither a sign nor a column tells the direction: do all amounts go `out`, or come `in`?", 6),
                f"{pad}direction: {TODO}"]  # fmt: skip
    into, out = parts.direction_words
    part = parts.found["direction"]
    return [
        *said(f"{shown(part.column.name)}: {part.why}; {parts.balances or 'check it with a record that you know'}", 6),
        f"{pad}direction_column: {scalar(part.column.name)}",
        f"{pad}in_values: {scalar(into)}",
        f"{pad}out_values: {scalar(out)}",
    ]


def _minor_units(amount: Column, parts: Parts) -> list[str]:
    whole = all(value == int(value) for value in parts.numbers(amount))
    if not whole or not re.search(r"minor|cent", roles.called(amount.name)):
        return []
    return [*said("whole numbers, and the name says minor units: 1234 is read as 12.34", 6), "      minor_units: 2"]


def _accounts(path: Path, parts: Parts, start: sample.Head) -> list[str]:
    account = _origin("account_id", parts, path)[0]
    return [
        *said(
            "the file has no list of accounts: the first record of each stands for it. Bring a list if there is one", 2
        ),
        *_source("accounts", "accounts", path, parts, start, remarks=False),
        "    columns:",
        f"      account_id: {account}",
        f"      entity_id: {_origin('entity_id', parts, path)[0]}",
        "    one_row_per: account_id",
    ]


def _labels(path: Path, parts: Parts, start: sample.Head) -> list[str]:
    """Labels that stand beside the transactions."""
    label = parts.found["label"]
    positive = [v for v in label.column.counts if v.lower() in {"1", "true", "yes", "y"}]
    booked = _moment("booked_at", parts)[0]
    inner = booked[1:-1] if booked.startswith("{") else f"column: {booked}"
    lines = [
        *said(f"{shown(label.column.name)}: {label.why}. Records without it get no label", 2),
        *_source("labels", "labels", path, parts, start, remarks=False),
        *(line for line in _times(parts, 4) if not line.lstrip().startswith("#")),
        f"    only_when: {{{scalar(label.column.name)}: {scalar(positive or ['1'])}}}",
        "    columns:",
        f"      transaction_id: {_origin('transaction_id', parts, path)[0]}",
        "      is_anomaly: {constant: true}",
    ]
    if "typology" in parts.found:
        lines.append(f"      typology: {scalar(parts.found['typology'].column.name)}")
    asks = "after how many days was a positive known? a label must not be used before that"
    return [*lines, *said(asks, 6), f"      confirmed_at: {{{inner}, add_days: {TODO}}}"]


def _unused(parts: Parts) -> list[str]:
    left = [column for column in parts.layout.columns if column.name not in parts.used]
    if not left:
        return []
    lines = ["", *said("Columns that have no part:")]
    for column in left[:MOST_UNUSED]:
        lines += said(f"- {shown(column.name, 40)}: {_described(column)}")
    return [*lines, *(said(f"- and {len(left) - MOST_UNUSED} more") if len(left) > MOST_UNUSED else [])]


def _described(column: Column) -> str:
    if not column.values:
        return "always empty"
    examples = ", ".join(shown(value, 24) for value in list(column.counts)[:2])
    return f"{column.distinct:,} different in {len(column.values):,} values, such as {examples}"
