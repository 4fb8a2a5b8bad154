"""What a batch looks like, against earlier batches of its source: amounts, hours, signs, fields, codes, places."""

from typing import Any

import numpy as np
import numpy.typing as npt
import polars as pl

from reperform.feeds.batches import Feed
from reperform.feeds.finding import FeedFinding, named

Floats = npt.NDArray[np.float64]
OPTIONAL = ("counterparty_id", "channel", "country", "latitude", "balance_after")
CODES = {"currency_changed": "currency", "channel_changed": "channel", "country_changed": "country"}
VARYING = ("amount", "counterparty_id", "channel", "country", "second_of_day")
RARE = 0.001  # a code with a smaller share of earlier rows is new
ONE_SIDED = 0.02
LEAST_ROWS_OF_CHANNEL = 50
LEAST_ROWS_OF_PART = 8
MOST_HISTORY = 60  # days or batches looked back
CLOSE_TO_POWER = 0.25  # of ten: within a factor 1.8
FAR_DEGREES = 5.0
HOURS = 24


def findings(feed: Feed) -> list[FeedFinding]:
    """Every batch against those before it."""
    shares = _shares(feed)
    return [
        *_measured(feed, shares),
        *_amounts(feed),
        *_hours(feed),
        *_directions(feed),
        *_codes(feed),
        *_constants(feed),
    ]


def _shares(feed: Feed) -> pl.DataFrame:
    ours = feed.accounts.get_column("account_id").unique()
    second = pl.col("local").dt.hour().cast(pl.Int64) * 3600 + pl.col("local").dt.minute().cast(pl.Int64) * 60
    second = second + pl.col("local").dt.second()
    return (
        feed.rows.lazy()
        .with_columns(
            second_of_day=second,
            crossed=~pl.col("account_id").is_in(ours.implode()) & pl.col("counterparty_id").is_in(ours.implode()),
        )
        .group_by("batch")
        .agg(
            midnight=(pl.col("second_of_day") == 0).mean(),
            full_minute=(pl.col("second_of_day") % 60 == 0).mean(),
            backward=(pl.col("known_at") < pl.col("booked_at")).mean(),
            crossed=pl.col("crossed").mean(),
            latitude_at=pl.col("latitude").median(),
            longitude_at=pl.col("longitude").median(),
            **{f"null_{name}": pl.col(name).is_null().mean() for name in OPTIONAL},
        )
        .collect()
    )


def _measured(feed: Feed, shares: pl.DataFrame) -> list[FeedFinding]:
    found: list[FeedFinding] = []
    for one, before in feed.compared(shares):
        usual = {name: _median(before, name) for name in shares.columns if name != "batch"}
        found += _times(feed, one, usual)
        found += _fields(feed, one, usual)
        found += _places(feed, one, usual)
    for one in feed.batches.join(shares, on="batch", maintain_order="left").iter_rows(named=True):
        found += _crossed(feed, one)
    return found


def _median(batches: list[dict[str, Any]], name: str) -> float | None:
    values = [b[name] for b in batches if b[name] is not None]
    return float(np.median(values)) if values else None


def _factor(now: float, before: float) -> tuple[str, str]:
    power = round(now - before)
    close = f", close to x 10^{power}" if abs(now - before - power) < CLOSE_TO_POWER else ""
    return (
        f"amounts x {10 ** (now - before):,.4g}{close}: half are below {10**now:,.2f}",
        f"half below about {10**before:,.2f}",
    )


def _times(feed: Feed, one: dict[str, Any], usual: dict[str, float | None]) -> list[FeedFinding]:
    limit, found = feed.limits["share_shift"], []
    for name, what in (("midnight", "at midnight"), ("full_minute", "at full minutes")):
        if one[name] is not None and usual[name] is not None and one[name] - usual[name] > limit:
            text = f"{one[name]:.0%} of bookings {what}"
            found.append(feed.finding("times_rounded", one, round(one[name] * one["n"]), text, f"{usual[name]:.0%}"))
            break
    return found


def _fields(feed: Feed, one: dict[str, Any], usual: dict[str, float | None]) -> list[FeedFinding]:
    found = []
    for column in OPTIONAL:
        now, before = one[f"null_{column}"], usual[f"null_{column}"]
        if before is not None and now - before > feed.limits["share_shift"]:
            text, expected = f"{column} is empty in {now:.1%} of rows", f"in {before:.1%}"
            found.append(feed.finding("completeness_drop", one, round(now * one["n"]), text, expected))
    return found


def _places(feed: Feed, one: dict[str, Any], usual: dict[str, float | None]) -> list[FeedFinding]:
    here, there = (one["latitude_at"], one["longitude_at"]), (usual["latitude_at"], usual["longitude_at"])
    if None in here or None in there:
        return []
    straight = abs(here[0] - there[0]) + abs(here[1] - there[1])
    crossed = abs(here[0] - there[1]) + abs(here[1] - there[0])
    if straight < FAR_DEGREES or crossed > straight / 2:
        return []
    text = f"half-way point at latitude {here[0]:.1f}, longitude {here[1]:.1f}"
    return [
        feed.finding("coordinates_swapped", one, one["n"], text, f"latitude {there[0]:.1f}, longitude {there[1]:.1f}")
    ]


def _crossed(feed: Feed, one: dict[str, Any]) -> list[FeedFinding]:
    found = []
    if (one["crossed"] or 0) > feed.limits["crossed_share"]:
        text = f"in {one['crossed']:.0%} of rows the counterparty is an account of ours and the account is not"
        found.append(feed.finding("columns_swapped", one, round(one["crossed"] * one["n"]), text, "in none"))
    if (one["backward"] or 0) > feed.limits["crossed_share"]:
        text = f"{one['backward']:.0%} of rows are received before they are booked"
        found.append(feed.finding("times_swapped", one, round(one["backward"] * one["n"]), text, "none"))
    return found


def _amounts(feed: Feed) -> list[FeedFinding]:
    """A unit or a decimal mark that is wrong: in a batch, or on single days, which would not move a batch's median."""
    batches = {row["batch"]: row for row in feed.batches.iter_rows(named=True)}
    limits = feed.limits
    moved = _moved(feed, "batch", least_rows=limits["batch_rows"], least_history=1, factor=limits["amount_factor"])
    found = [
        feed.finding("amount_scale", batches[one["batch"]], one["n"], *_factor(one["now"], one["usual"]))
        for one in moved
    ]
    whole = {(one.source, file) for one in found for file in one.files}
    for one in _moved(
        feed,
        "day",
        least_rows=limits["day_rows"],
        least_history=limits["history_days"],
        factor=limits["day_amount_factor"],
    ):
        files = tuple(file for file in one["files"] if (one["source"], file) not in whole)
        if files:
            text, expected = _factor(one["now"], one["usual"])
            found.append(
                FeedFinding(
                    one["source"], "amount_scale", named(files), one["n"], text, expected, one["day"], files=files
                )
            )  # fmt: skip
    return found


def _moved(feed: Feed, key: str, *, least_rows: float, least_history: float, factor: float) -> list[dict[str, Any]]:
    """Days or batches whose amounts have another size in most channels: on pay days, only transfers have.

    Returns:
        `source`, `key`, `n`, `files`, and `now` and `usual`: log10 of the median amount in the channel in the middle.
    """
    parts = (
        feed.rows.filter(pl.col("amount") > 0)
        .group_by("source", key, channel=pl.col("channel").fill_null("none"))
        .agg(n=pl.len(), log_amount=pl.col("amount").log10().median(), files=pl.col("source_file").unique())
        .filter(pl.col("n") >= LEAST_ROWS_OF_PART)
        .sort("source", "channel", key)
    )
    compared: dict[tuple[str, Any], list[tuple[float, int, float, list[str]]]] = {}
    for (source, _), own in parts.group_by("source", "channel", maintain_order=True):
        logs = own.get_column("log_amount").to_numpy()
        for place, row in enumerate(own.iter_rows(named=True)):
            if place >= least_history:
                usual = float(np.median(logs[max(0, place - MOST_HISTORY) : place]))
                part = (float(logs[place]) - usual, row["n"], usual, row["files"])
                compared.setdefault((str(source), row[key]), []).append(part)
    several = {source for source, n in _channels_of(parts).items() if n > 1}
    moved = []
    for (source, value), channels in sorted(compared.items()):
        rows = sum(n for _, n, _, _ in channels)
        far = [one for one in channels if abs(one[0]) >= np.log10(factor)]
        if source in several and len(far) <= 1:
            continue  # rents and wages of one day lie in one channel
        shift_log, _, usual, _ = _middle(channels, rows)
        if rows >= least_rows and abs(shift_log) >= np.log10(factor):
            files = sorted({file for one in channels for file in one[3]})
            moved.append(
                {"source": source, key: value, "n": rows, "files": files, "now": usual + shift_log, "usual": usual}
            )
    return moved


def _channels_of(parts: pl.DataFrame) -> dict[str, int]:
    return {str(source): n for source, n in parts.group_by("source").agg(pl.col("channel").n_unique()).iter_rows()}


def _middle(channels: list[tuple[float, int, float, list[str]]], rows: int) -> tuple[float, int, float, list[str]]:
    """The channel in the middle by its shift, weighted by rows."""
    running = 0
    for one in sorted(channels, key=lambda part: part[:3]):
        running += one[1]
        if 2 * running >= rows:
            break
    return one


def _hours(feed: Feed) -> list[FeedFinding]:
    """Batches whose hours have moved, channel by channel: fees that are booked at midnight move nothing."""
    hour = pl.col("local").dt.hour().alias("hour")
    counted = feed.rows.group_by("batch", "source", hour, channel=pl.col("channel").fill_null("none")).len()
    channels = {name: place for place, name in enumerate(counted.get_column("channel").unique().sort())}
    profiles: dict[int, Floats] = {}
    for batch, _, at, channel, n in counted.select("batch", "source", "hour", "channel", "len").iter_rows():
        profiles.setdefault(batch, np.zeros((len(channels), HOURS)))[channels[channel], at] = n
    found = []
    for one, before in feed.compared(pl.DataFrame({"batch": list(profiles)}, schema={"batch": pl.Int64})):
        past = np.sum([profiles[b["batch"]] for b in before], axis=0)
        known = past.sum(axis=1) >= LEAST_ROWS_OF_CHANNEL
        now = profiles[one["batch"]][known]
        hours, gain = shift(now, past[known])
        if hours and gain >= feed.limits["hour_gain"] and gain * now.sum() >= feed.limits["hour_gain_total"]:
            text = f"the day is moved by {hours:+d} h on the accounts' clocks"
            found.append(feed.finding("time_zone_shift", one, one["n"], text, "the same hours as before"))
    return found


def shift(counts: Floats, before: Floats) -> tuple[int, float]:
    """By how many whole hours the day has moved, and how much better that explains it.

    Args:
        counts: rows per channel and hour, 24 columns.
        before: of earlier rows.

    Returns:
        Hours from -11 to 12 (0: not moved), and the mean gain in log-likelihood per row over no move.
    """
    chance = np.log((before + 1) / (before.sum(axis=1, keepdims=True) + HOURS))
    moved = [(counts * np.roll(chance, hours, axis=1)).sum() for hours in range(HOURS)]
    likelihoods = np.array(moved) / max(counts.sum(), 1)
    best = int(likelihoods.argmax())
    return (best if best <= HOURS // 2 else best - HOURS), float(likelihoods[best] - likelihoods[0])


def _directions(feed: Feed) -> list[FeedFinding]:
    """Rows that go the other way than their channel always went."""
    ways = (
        feed.rows.with_columns(channel=pl.col("channel").fill_null("no channel"))
        .group_by("batch", "channel")
        .agg(n_channel=pl.len(), into=(pl.col("direction") == "in").sum())
        .sort("batch", "channel")
    )
    by_batch: dict[int, list[dict[str, Any]]] = {}
    for row in ways.iter_rows(named=True):
        by_batch.setdefault(row["batch"], []).append(row)
    found = []
    for one, before in feed.compared(pl.DataFrame({"batch": list(by_batch)}, schema={"batch": pl.Int64})):
        past: dict[str, list[int]] = {}
        for row in (row for b in before for row in by_batch[b["batch"]]):
            total = past.setdefault(row["channel"], [0, 0])
            total[0], total[1] = total[0] + row["n_channel"], total[1] + row["into"]
        rows = against = 0
        for row in by_batch[one["batch"]]:
            n, into = past.get(row["channel"], [0, 0])
            if n < LEAST_ROWS_OF_CHANNEL or ONE_SIDED < into / n < 1 - ONE_SIDED:
                continue
            rows += row["n_channel"]
            against += row["into"] if into / n <= ONE_SIDED else row["n_channel"] - row["into"]
        if rows and against / rows > feed.limits["flipped_share"]:
            text = f"{against / rows:.0%} of {rows:,} rows in channels that only went one way go the other way"
            found.append(feed.finding("direction_flipped", one, against, text, "next to none"))
    return found


def _codes(feed: Feed) -> list[FeedFinding]:
    found = []
    for rule, column in CODES.items():
        by_batch = _counted(feed, column)
        for one, before in feed.compared(pl.DataFrame({"batch": list(by_batch)}, schema={"batch": pl.Int64})):
            past: dict[str, int] = {}
            for b in before:
                for value, n in by_batch.get(b["batch"], {}).items():
                    past[value] = past.get(value, 0) + n
            total, now = sum(past.values()), by_batch.get(one["batch"], {})
            new = {value: n for value, n in now.items() if past.get(value, 0) <= RARE * total}
            rows = sum(new.values())
            if total and rows > feed.limits["new_code_share"] * sum(now.values()):
                most = sorted(new, key=lambda value: (-new[value], value))[:5]
                usual = sorted(past, key=lambda value: (-past[value], value))[:5]
                text = f"{column} {', '.join(most)} in {rows / sum(now.values()):.0%} of rows"
                found.append(feed.finding(rule, one, rows, text, f"as before: {', '.join(usual)}"))
    return found


def _counted(feed: Feed, column: str) -> dict[int, dict[str, int]]:
    counted: dict[int, dict[str, int]] = {}
    rows = feed.rows.filter(pl.col(column).is_not_null()).group_by("batch", column).len().sort("batch", column)
    for batch, value, n in rows.iter_rows():
        counted.setdefault(batch, {})[value] = n
    return counted


def _constants(feed: Feed) -> list[FeedFinding]:
    second = pl.col("local").dt.to_string("%H:%M:%S")
    rows = feed.rows.with_columns(second_of_day=second)
    found = []
    for column in VARYING:
        top = (
            rows.filter(pl.col(column).is_not_null())
            .group_by("batch", column)
            .len()
            .sort("batch", "len", column, descending=[False, True, False])
            .group_by("batch", maintain_order=True)
            .agg(filled=pl.col("len").sum(), top=pl.col("len").first(), value=pl.col(column).first().cast(pl.String))
        )
        for one, before in feed.compared(top):
            usual = [b["top"] / b["filled"] for b in before if b["filled"]]
            full = (one["filled"] or 0) >= feed.limits["batch_rows"]
            if full and usual and one["top"] >= feed.limits["constant_share"] * one["filled"] and max(usual) < 0.8:  # noqa: PLR2004  # it varied
                text = f"{column} is {one['value']} in {one['top'] / one['filled']:.1%} of rows"
                expected = f"the most frequent value in {max(usual):.1%}"
                found.append(feed.finding("constant_column", one, one["top"], text, expected))
    return found
