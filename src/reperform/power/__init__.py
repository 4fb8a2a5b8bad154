"""What does this system not see: inject patterns into the user's own background, and count what is found.

Every pattern has three dials, amount, gap and length. For each setting some events are put on real accounts in the
test period, all KPIs are computed again with the parameters that were fitted, the trained ensemble scores the rows, and
an event counts as found when one of its rows scores above the line that a given share of untouched rows exceeds.
"""

from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np
import polars as pl

from reperform import featurize, metrics, params, rescore, studies, tables
from reperform.detectors import inputs
from reperform.errors import ReperformError, nearest
from reperform.evaluate.detection import ENSEMBLE
from reperform.metrics import Floats
from reperform.params import EngineParams, EnsembleParams, FeaturizeParams, PowerParams, SplitParams, StudiesParams
from reperform.power import injection
from reperform.power.injection import Background, Event
from reperform.power.patterns import PATTERNS, Cell

NAME = "power"


def cells_of(settings: PowerParams) -> list[Cell]:
    """Every setting of the dials of every pattern.

    Raises:
        ReperformError: for a pattern that does not exist.
    """
    for name in settings.patterns:
        if name not in PATTERNS:
            raise ReperformError(
                f"There is no pattern {name!r}.",
                expected=f"one of {', '.join(PATTERNS)}",
                got=name,
                where="params.yaml:studies.power.patterns",
                fix=nearest(name, PATTERNS),
            )
    return [
        Cell(name, amount, gap, length)
        for name, dials in settings.patterns.items()
        for length in dials.lengths
        for gap in dials.gaps_hours
        for amount in dials.amounts
    ]


def sampled(transactions: pl.DataFrame, most_rows: int, seed: int) -> pl.DataFrame:
    """All rows of as many accounts as make up so many rows, drawn by the seed; everything if it is no more."""
    if transactions.height <= most_rows:
        return transactions
    sizes = transactions.group_by("account_id", maintain_order=True).len().sort("account_id")
    order = np.random.default_rng(seed).permutation(sizes.height)
    kept = sizes[order].filter(pl.col("len").cum_sum() <= most_rows)["account_id"]
    return transactions.filter(pl.col("account_id").is_in(kept.implode()))


def outcomes(
    events: Sequence[Event], owners: pl.DataFrame, transactions: pl.DataFrame, score: Floats, threshold: float
) -> list[dict[str, Any]]:
    """What became of each event: its dials, rows, rows found, and hours from its start until it was found.

    Args:
        events: of one round.
        owners: transaction_id and event.
        transactions: with the injected rows, in order.
        score: of each of them, NaN where none was wanted, shape (n,).
        threshold: from which a row is an alert.
    """
    scored = (
        transactions.select("transaction_id", "known_at", pl.Series("score", score))
        .join(owners, on="transaction_id", how="inner", maintain_order="left")
        .with_columns(is_found=pl.col("score") >= threshold)
        .sort("event", "known_at", "transaction_id")
        .group_by("event", maintain_order=True)
        .agg(
            pl.len().cast(pl.Int64).alias("rows"),
            pl.col("is_found").sum().cast(pl.Int64).alias("rows_found"),
            pl.col("known_at").filter("is_found").min().alias("found_at"),
        )
    )
    by_number = {event.number: event for event in events}
    return [
        {
            "pattern": by_number[row["event"]].cell.pattern,
            "amount": by_number[row["event"]].cell.amount,
            "gap_hours": by_number[row["event"]].cell.gap_hours,
            "length": by_number[row["event"]].cell.length,
            "rows": row["rows"],
            "rows_found": row["rows_found"],
            "hours": None
            if row["found_at"] is None
            else (row["found_at"] - by_number[row["event"]].start).total_seconds() / 3600,
        }
        for row in scored.to_dicts()
    ]


def tallied(told: Sequence[Mapping[str, Any]], by: Sequence[str]) -> list[dict[str, Any]]:
    """Events and events found of each group, with Wilson interval, and the median hours until they were found.

    Args:
        told: from `outcomes`.
        by: names of the dials that make a group.
    """
    if not told:
        return []
    frame = pl.DataFrame(list(told), infer_schema_length=None).with_columns(
        pl.col("hours").cast(pl.Float64), is_found=pl.col("rows_found") > 0
    )
    groups = (
        frame.sort(list(by))
        .group_by(list(by), maintain_order=True)
        .agg(
            pl.len().cast(pl.Int64).alias("events"),
            pl.col("is_found").sum().cast(pl.Int64).alias("found"),
            (pl.col("rows_found").sum() / pl.col("rows").sum()).alias("share_of_rows"),
            pl.col("hours").median().alias("hours_to_detect"),
        )
    )
    result = []
    for row in groups.to_dicts():
        low, high = metrics.wilson(row["found"], row["events"])
        result.append(row | {"share": row["found"] / row["events"], "low": low, "high": high})
    return result


def blind_spots(cells: Sequence[Mapping[str, Any]], found_from: float) -> list[dict[str, Any]]:
    """What this system cannot see: for each pattern and amount, the gaps and lengths at which fewer are found.

    Args:
        cells: tallied by all dials.
        found_from: share of events found from which a setting counts as seen.
    """
    unseen = [cell for cell in cells if cell["share"] < found_from]
    groups: dict[tuple[str, float], list[Mapping[str, Any]]] = {}
    for cell in unseen:
        groups.setdefault((cell["pattern"], cell["amount"]), []).append(cell)
    tried: dict[tuple[str, float], int] = {}
    for cell in cells:
        key = (cell["pattern"], cell["amount"])
        tried[key] = tried.get(key, 0) + 1
    return [
        {
            "pattern": pattern,
            "amount": amount,
            "unseen_settings": len(of),
            "settings": tried[pattern, amount],
            "at": _settings_in_words(of, tried[pattern, amount]),
            "events": sum(one["events"] for one in of),
            "found": sum(one["found"] for one in of),
        }
        for (pattern, amount), of in sorted(groups.items())
    ]


def _settings_in_words(cells: Sequence[Mapping[str, Any]], tried: int) -> str:
    if len(cells) == tried > 1:
        return "every gap and length that was tried"
    return "; ".join(f"{one['length']} payments {_hours(one['gap_hours'])} apart" for one in cells)


def _hours(gap: float) -> str:
    return f"{gap:g} h" if gap >= 1 else f"{60 * gap:.0f} min"


def threshold_of(score: Floats, untouched: Any, share: float) -> float:
    """The score that this share of untouched rows reaches or exceeds."""
    rest = np.sort(score[untouched])[::-1]
    return float(rest[min(max(round(share * rest.size) - 1, 0), rest.size - 1)])


def one_round(
    background: Background, events: Sequence[Event], members: Sequence[rescore.Member], how: "Recompute", seed: int
) -> tuple[list[dict[str, Any]], float]:
    """Inject some events, compute all KPIs again, score, and say what was found; and the threshold."""
    transactions, owners = injection.injected(background, events, seed)
    features = how.features(transactions, [name for one in members for name in one.features])
    booked = transactions["booked_at"]
    wanted = booked.is_between(background.start, background.end, closed="left").to_numpy()
    scores = rescore.scores_of(members, features, wanted)
    score = np.full(transactions.height, np.nan)
    score[wanted] = rescore.margins(scores)
    rest = injection.untouched(transactions, events, background)
    threshold = threshold_of(score, rest, how.alert_share)
    return outcomes(events, owners, transactions, score, threshold), threshold


class Recompute:
    """All KPIs of changed transactions, with the parameters that featurize fitted.

    Args:
        alert_share: of untouched rows above the threshold.
    """

    def __init__(self, alert_share: float) -> None:
        self.alert_share = alert_share
        self.stage, self.calendar = params.load(FeaturizeParams), params.load(SplitParams)
        self.engine = params.load(EngineParams)
        self.accounts = tables.read_table("validate", "accounts")
        self.labels = tables.read_table("validate", "labels")
        self.fitted = tables.read_json("featurize", "fitted")

    def features(self, transactions: pl.DataFrame, names: Sequence[str]) -> pl.DataFrame:
        """Identity, time of arrival and these columns, Float32, one row per transaction."""
        ledger = featurize.ledger_of(transactions, self.accounts, self.labels, self.stage, self.calendar)
        how = EngineParams(threads=self.engine.threads, bucket_rows=self.engine.bucket_rows)
        table = featurize.compute(ledger, self.stage, self.fitted, how)
        chosen = list(dict.fromkeys(names))
        frame = table.select(*inputs.KEY_COLUMNS, *(pl.col(name).cast(pl.Float32) for name in chosen))
        return inputs.with_arrival(frame, transactions)


def main(only: Sequence[str] = ()) -> int:
    """Run the study on the project's outputs, keep it in `reports/studies/power.json`, and print what is not seen."""
    settings = params.load(StudiesParams)
    power, calendar = settings.power, params.load(SplitParams)
    cells = [cell for cell in cells_of(power) if not only or cell.pattern in only]
    if not cells:
        raise ReperformError(
            "There is no pattern to inject.",
            expected=f"some of {', '.join(power.patterns) or 'the patterns of conf/studies/'}",
            got=", ".join(only) or "none",
            where="params.yaml:studies.power.patterns",
        )
    members = rescore.members(params.load(EnsembleParams).members)
    everything = tables.read_table("validate", "transactions")
    kept = sampled(everything, power.most_rows, settings.seed)
    background = injection.background_of(kept, calendar.test_start, calendar.test_end)
    events = injection.events_of(background, cells, power.repeats, power.quiet_days, settings.seed)
    if not events:
        raise ReperformError(
            "No event could be placed in the test period.",
            expected="accounts in use before the test",
            got=f"{kept.height} transactions",
            fix="run it on data with transactions, or with shorter patterns",
        )
    within = kept["booked_at"].is_between(calendar.test_start, calendar.test_end, closed="left")
    most = max(int(power.most_injected_share * within.to_numpy().sum()), 1)
    told, thresholds = [], []
    recompute = Recompute(power.alert_share)
    for number, chosen in enumerate(injection.rounds_of(events, most, settings.seed)):
        of_round, threshold = one_round(background, chosen, members, recompute, settings.seed)
        told += of_round
        thresholds.append(threshold)
        print(
            f"round {number + 1}: {len(chosen)} events, {sum(o['rows_found'] > 0 for o in of_round)} found", flush=True
        )
    document = document_of(told, cells, power) | {
        "thresholds": thresholds,
        "accounts": kept["account_id"].n_unique(),
        "accounts_of": everything["account_id"].n_unique(),
        "transactions": kept.height,
    }
    studies.write(NAME, document, [one.name for one in members])
    print("\n".join(lines(document)))
    return 0


def document_of(told: Sequence[Mapping[str, Any]], cells: Sequence[Cell], power: PowerParams) -> dict[str, Any]:
    """The study's result: tallies by all dials and by pattern, and what is not seen."""
    by_cell = tallied(told, ("pattern", "length", "gap_hours", "amount"))
    patterns = tallied(told, ("pattern",))
    asked = list(dict.fromkeys(cell.pattern for cell in cells))
    return {
        "detector": ENSEMBLE,
        "alert_share": power.alert_share,
        "found_from": power.found_from,
        "repeats": power.repeats,
        "events": len(told),
        "patterns": [one | {"told": PATTERNS[one["pattern"]].told} for one in patterns],
        "not_placed": [name for name in asked if name not in {one["pattern"] for one in patterns}],
        "cells": by_cell,
        "blind_spots": blind_spots(by_cell, power.found_from),
    }


def lines(document: Mapping[str, Any]) -> list[str]:
    """The study in a few lines."""
    told = [
        f"{one['pattern']}: {one['found']} of {one['events']} events found ({one['low']:.0%} to {one['high']:.0%})"
        for one in document["patterns"]
    ]
    told += [f"{name}: no account could bear it, or it does not fit into the test" for name in document["not_placed"]]
    unseen = document["blind_spots"]
    told.append(f"what this system cannot see at {document['alert_share']:.1%} alerts:" if unseen else "no blind spot")
    return told + [f"  {one['pattern']} of {one['amount']:g}: {one['at']}" for one in unseen]
