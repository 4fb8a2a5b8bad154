"""Why an alert was raised, as a document: facts, members, features, what it does not show, and where each came from.

A receipt is made of outputs alone and never holds the truth: it says what was known when the alert was raised.
"""

import math
import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np

from reperform.explain.quality import TOP, Floats, features_to_reach, overlap, top_features
from reperform.markup import pipe_table

LOG_ODDS = "log-odds"
YES_OR_NO = "0 or 1"
PURE_NUMBERS = ("", "x", "share", "probability", "0 to 1", "natural log", "natural log of a ratio", "-log10 p")
SELDOM_UNKNOWN = 0.05
NO_FINDING = (
    "An alert is a reason to look, not a finding: it shows a likeness to confirmed cases or a rarity, and neither "
    "intent nor a breach of law."
)
NO_CAUSE = (
    "Contributions describe how this model came to its score, not what would happen if a value changed; features that "
    "measure nearly the same share their credit."
)
Dictionary = Mapping[str, Mapping[str, Any]]


@dataclass(frozen=True)
class Place:
    """Where a value stands among the training rows that have one.

    Args:
        below: share of known training values that are smaller.
        equal: share that are the same.
        median: of the known ones; None if there are none.
        unknown: share of training rows without a value.
    """

    below: float
    equal: float
    median: float | None
    unknown: float

    @property
    def above(self) -> float:
        """Share of known training values that are larger."""
        return max(0.0, 1 - self.below - self.equal)

    @property
    def is_beyond(self) -> bool:
        """Whether no training row had such a value, and all lie to one side of it."""
        return max(self.below, self.above) >= 1

    @property
    def percentile(self) -> float:
        """Share below and half of the equal ones, times 100."""
        return 100 * (self.below + self.equal / 2)


@dataclass(frozen=True)
class Reference:
    """What is usual: the training rows' values of each feature, sorted, without the unknown ones."""

    known: tuple[Floats, ...]
    rows: int

    @classmethod
    def of(cls, training: Floats) -> "Reference":
        """From training rows, shape (n, p), NaN for unknown."""
        return cls(tuple(np.sort(column[np.isfinite(column)]) for column in training.T), len(training))

    def place(self, feature: int, value: float) -> Place:
        """Where a value (NaN for unknown) of a feature stands."""
        known = self.known[feature]
        unknown = 1 - len(known) / self.rows if self.rows else 1.0
        if not len(known):
            return Place(math.nan, math.nan, None, unknown)
        median = float((known[(len(known) - 1) // 2] + known[len(known) // 2]) / 2)
        if math.isnan(value):
            return Place(math.nan, math.nan, median, unknown)
        below, upto = (int(np.searchsorted(known, value, side=side)) for side in ("left", "right"))
        return Place(below / len(known), (upto - below) / len(known), median, unknown)


@dataclass(frozen=True)
class Case:
    """One alert and all that is said of it.

    Args:
        transaction: facts of the row: ids, times, amount, channel, the raw record that it came from.
        alert: score, probability, threshold, rank, alerts.
        members: member, score, contribution to the ensemble's additive margin, share of all contributions.
        intercept: what the ensemble's margin is without any member.
        detector: the member whose features are explained.
        unit: of its score and contributions.
        score: the explained member's score.
        base: what contributions are counted from.
        residual: |score - base - sum of contributions|.
        is_additive: whether the residual is small enough.
        values: shape (p,), NaN for unknown.
        shap: shape (p,).
        lime: shape (p,).
        shift: shape (p,), how much more each feature moves random transactions now than it moved training rows; NaN if
            no transaction without an alert was explained.
        fidelity: R² of the LIME surrogate.
        trust: components of KPI 15 of this alert.
    """

    transaction: Mapping[str, Any]
    alert: Mapping[str, Any]
    members: Sequence[Mapping[str, Any]]
    intercept: float
    detector: str
    unit: str
    score: float
    base: float
    residual: float
    is_additive: bool
    values: Floats
    shap: Floats
    lime: Floats
    shift: Floats
    fidelity: float
    trust: Mapping[str, float | None]


def receipt(
    case: Case, features: Sequence[str], dictionary: Dictionary, reference: Reference, *, top: int
) -> dict[str, Any]:
    """One alert's receipt.

    Args:
        case: the alert.
        features: names of the p columns.
        dictionary: feature name to its entry in `featurize/dictionary.json`.
        reference: training values of the same p columns.
        top: features that are told in full.
    """
    told = [_feature(case, features, dictionary, reference, column) for column in _largest(case.shap, top)]
    members = _members(case)
    return {
        "transaction": dict(case.transaction),
        "alert": dict(case.alert),
        "members": members,
        "intercept": case.intercept,
        "explained_member": {
            "detector": case.detector,
            "unit": case.unit,
            "score": case.score,
            "base": case.base,
            "sum_of_contributions": float(case.shap.sum()),
            "residual": case.residual,
            "is_additive": case.is_additive,
            "share_of_ensemble": next((m["share"] for m in members if m["member"] == case.detector), None),
        },
        "features": told,
        "why": " ".join(_why(case, members, told)),
        "does_not_show": _limits(case, members, features, told),
        "disagreement": _disagreement(case, features),
        "trust": dict(case.trust),
        "sources": _sources(case),
    }


def document(receipts: Sequence[Mapping[str, Any]], *, detector: str | None, alerts: int) -> dict[str, Any]:
    """`receipts.json`: the receipts in order of rank, with how many alerts have none."""
    return {
        "detector": detector,
        "alerts": alerts,
        "explained": len(receipts),
        "left_out": alerts - len(receipts),
        "receipts": [dict(one) for one in receipts],
    }


def page(one: Mapping[str, Any]) -> str:
    """A receipt as markdown without headings, for reports and notebooks."""
    facts, alert = one["transaction"], one["alert"]
    told = [
        {
            "kpi": f"{f['kpi_number']} {f['kpi']}" if f["kpi_number"] else "",
            "feature": f["label"],
            "value": "unknown" if f["value"] is None else number(f["value"]),
            "typical": "unknown" if f["typical"] is None else number(f["typical"]),
            "place": "" if f["percentile"] is None else f"{f['percentile']:.1f}",
            "shap": f["contribution"],
            "lime": f["lime_contribution"],
            "formula": f["formula"],
        }
        for f in one["features"]
    ]
    names = {
        "kpi": "KPI",
        "feature": "feature",
        "value": "value",
        "typical": "median in training",
        "place": "percentile",
        "shap": f"SHAP ({one['explained_member']['unit']})",
        "lime": "LIME",
        "formula": "how it is computed",
    }
    members = {"member": "member", "score": "its score", "contribution": "contribution", "share": "share of all"}
    return "\n\n".join(
        [
            f"**Transaction {facts['transaction_id']}**, rank {alert['rank']} of {alert['alerts']} alerts. "
            + one["why"],
            pipe_table(one["members"], members),
            pipe_table(told, names) if told else "*No feature contributes.*",
            one["disagreement"]["sentence"],
            "**What this alert does not show.** " + " ".join(one["does_not_show"]),
            "Sources: " + "; ".join(f"`{s['file']}` ({s['key']})" for s in one["sources"]) + ".",
        ]
    )


def labelled(name: str) -> str:
    """A column name as people read it: `pass_through_72h` becomes `pass through 72 h`."""
    return re.sub(r"\b(\d+)(h|d|min)\b", r"\1 \2", name.replace("_", " "))


def number(value: float) -> str:
    """Four significant digits, thousands marked."""
    if value and (abs(value) >= 1e7 or abs(value) < 1e-4):  # noqa: PLR2004  # beyond what is read at a glance
        return f"{value:.3e}"
    digits = max(0, 3 - math.floor(math.log10(abs(value)))) if value else 0
    text = f"{value:,.{digits}f}"
    return text.rstrip("0").rstrip(".") if "." in text else text


def placed(label: str, value: float, place: Place, *, unit: str = "", null_rule: str = "") -> str:
    """A value and how usual it is, such as `pass through 72 h 0.97, higher than 99.8 % of transactions in training`.

    Shares are rounded down, so that nothing is called rarer than it is; where many training rows have no value, the
    sentence says what share of them it speaks of.
    """
    if math.isnan(value):
        reason = f" ({null_rule})" if null_rule else ""
        return f"{label} unknown{reason}, as for {_percent(place.unknown)} of transactions in training"
    if place.median is None:
        return f"{label} {number(value)}, known for no transaction in training"
    of = "transactions in training"
    if place.unknown > SELDOM_UNKNOWN:
        of = f"those {_percent(1 - place.unknown)} of {of} that have it"
    if unit == YES_OR_NO:
        return f"{label}: {'yes' if value else 'no'}, as for {_percent(place.equal)} of {of}"
    shown = number(value) if unit in PURE_NUMBERS else f"{number(value)} {unit}"
    return f"{label} {shown}, {_standing(place, of)} (median {number(place.median)})"


def _standing(place: Place, of: str) -> str:
    if place.is_beyond:
        return f"{'higher' if place.below >= 1 else 'lower'} than all {of}"
    if max(place.below, place.above) > 0.5:  # noqa: PLR2004  # most of them
        word, share = ("higher", place.below) if place.below >= place.above else ("lower", place.above)
        return f"{word} than {_percent(share)} of {of}"
    if place.equal > 0.5:  # noqa: PLR2004  # most of them
        return f"as for {_percent(place.equal)} of {of}"
    return f"within the usual range of {of}"


def _largest(contributions: Floats, top: int) -> list[int]:
    order = np.argsort(-np.abs(contributions), kind="stable")[:top]
    return [int(column) for column in order if contributions[column] != 0]


def _feature(
    case: Case, features: Sequence[str], dictionary: Dictionary, reference: Reference, column: int
) -> dict[str, Any]:
    name, value = features[column], float(case.values[column])
    entry = dictionary.get(name, {})
    place = reference.place(column, value)
    contribution = float(case.shap[column])
    unit, null_rule = (str(entry.get(key) or "") for key in ("unit", "null_rule"))
    sentence = placed(labelled(name), value, place, unit=unit, null_rule=null_rule)
    return {
        "feature": name,
        "label": labelled(name),
        "kpi": entry.get("kpi", ""),
        "kpi_number": entry.get("kpi_number"),
        "family": entry.get("family", ""),
        "value": None if math.isnan(value) else value,
        "unit": entry.get("unit", ""),
        "typical": place.median,
        "percentile": None if math.isnan(place.below) else place.percentile,
        "unknown_in_training": place.unknown,
        "is_beyond_training": place.is_beyond,
        "contribution": contribution,
        "lime_contribution": float(case.lime[column]),
        "shift_since_training": None if math.isnan(case.shift[column]) else float(case.shift[column]),
        "formula": entry.get("formula", ""),
        "sentence": f"{sentence}: {_effect(contribution, case.unit)}.",
    }


def _effect(contribution: float, unit: str) -> str:
    verb = "raises" if contribution > 0 else "lowers"
    text = f"{verb} the score by {number(abs(contribution))}"
    if unit != LOG_ODDS:
        return text
    # Beyond this the factor is only a way of saying "very much".
    factor = math.exp(min(abs(contribution), 20.0))
    return f"{text} {unit} ({'multiplies' if contribution > 0 else 'divides'} the odds by {number(round(factor, 2))})"


def _members(case: Case) -> list[dict[str, Any]]:
    return sorted((dict(m) for m in case.members), key=lambda m: (-abs(float(m["contribution"])), str(m["member"])))


def _why(case: Case, members: Sequence[Mapping[str, Any]], told: Sequence[Mapping[str, Any]]) -> list[str]:
    alert = case.alert
    probability = alert.get("probability")
    sentences = [
        f"The ensemble's score {number(alert['score'])} reaches the alert threshold {number(alert['threshold'])}"
        + (f"; calibrated probability of an anomaly {probability:.3f}." if probability is not None else ".")
    ]
    raising = [m for m in members if m["contribution"] > 0]
    if raising:
        parts = [f"{m['member']} {m['contribution']:+.2f}" for m in raising[:3]]
        sentences.append(f"Members that raise it most: {', '.join(parts)}.")
    for_it = [f for f in told if f["contribution"] > 0]
    if for_it:
        sentences.append(f"What raises {case.detector}:")
        sentences += [_capital(f["sentence"]) for f in for_it]
    against = [f for f in told if f["contribution"] < 0]
    if against:
        sentences.append("What speaks against it:")
        sentences += [_capital(f["sentence"]) for f in against]
    return sentences


def _limits(
    case: Case, members: Sequence[Mapping[str, Any]], features: Sequence[str], told: Sequence[Mapping[str, Any]]
) -> list[str]:
    limits = [NO_FINDING, NO_CAUSE]
    share = next((m["share"] for m in members if m["member"] == case.detector), None)
    if share is not None:
        limits.append(
            f"Features are explained for {case.detector} alone, which makes {_percent(share)} of the members' "
            "contributions; the other members are not resolved into features."
        )
    size = np.abs(case.shap)
    if size.sum() > 0:
        held = sum(abs(f["contribution"]) for f in told) / size.sum()
        limits.append(
            f"The {len(told)} features told here hold {_percent(held)} of all contributions; "
            f"{int(features_to_reach(case.shap[None])[0])} of {len(features)} are needed for 80 %."
        )
    beyond = [f["label"] for f in told if f["is_beyond_training"]]
    if beyond:
        limits.append(f"No transaction in training had such a value of {', '.join(beyond)}: the model extrapolates.")
    limits += [
        f"{_capital(f['label'])} moves random transactions without an alert as well, by "
        f"{f['shift_since_training']:+.2f} more than it did in training: it tells little about this one."
        for f in told
        if _moves_others(f)
    ]
    unknown = int(np.isnan(case.values).sum())
    if unknown:
        limits.append(f"{unknown} of {len(features)} features are unknown for this transaction.")
    if not case.is_additive:
        limits.append(
            f"The contributions do not add up to the score (residual {case.residual:.2g}): do not rely on them."
        )
    return limits


def _moves_others(feature: Mapping[str, Any]) -> bool:
    """Whether the same feature has come to move random transactions at least half as far, in the same direction."""
    usual = feature["shift_since_training"]
    return usual is not None and usual / feature["contribution"] >= 0.5  # noqa: PLR2004  # half of it


def _disagreement(case: Case, features: Sequence[str]) -> dict[str, Any]:
    by_shap, by_lime = (top_features(part[None], TOP)[0] for part in (case.shap, case.lime))
    both = by_shap & by_lime
    opposed = both & (np.sign(case.shap) != np.sign(case.lime))
    shared = float(overlap(by_shap[None], by_lime[None])[0])
    only = {
        "only_shap": [features[int(i)] for i in np.flatnonzero(by_shap & ~by_lime)],
        "only_lime": [features[int(i)] for i in np.flatnonzero(by_lime & ~by_shap)],
        "opposite_sign": [features[int(i)] for i in np.flatnonzero(opposed)],
    }
    return {
        "overlap": None if math.isnan(shared) else shared,
        "lime_fidelity": None if math.isnan(case.fidelity) else case.fidelity,
        **only,
        "sentence": _disagreement_sentence(int(both.sum()), max(int(by_shap.sum()), int(by_lime.sum())), only),
    }


def _disagreement_sentence(shared: int, of: int, only: Mapping[str, Sequence[str]]) -> str:
    parts = [f"SHAP and LIME share {shared} of their {of} largest features."]
    for key, words in (("only_shap", "Only SHAP names"), ("only_lime", "Only LIME names")):
        if only[key]:
            parts.append(f"{words} {', '.join(labelled(name) for name in only[key])}.")
    if only["opposite_sign"]:
        parts.append(f"They disagree on the direction of {', '.join(labelled(n) for n in only['opposite_sign'])}.")
    return " ".join(parts)


def _sources(case: Case) -> list[dict[str, str]]:
    row = f"transaction_id = {case.transaction['transaction_id']}"
    sources = [
        ("data/evaluate/alerts.parquet", row),
        ("data/validate/transactions.parquet", row),
        ("data/featurize/features.parquet", row),
        ("data/featurize/dictionary.json", "entry of each feature's name"),
        (f"data/train/{case.detector}/model", f"the final fit of {case.detector}"),
        ("data/ensemble/model.json", "the members' weights"),
        ("data/ensemble/thresholds.json", "the alert threshold"),
        ("data/explain/attributions.parquet", row),
    ]
    raw = case.transaction.get("source_file")
    if raw:
        sources.insert(0, (str(raw), f"record {case.transaction.get('source_record')}"))
    return [{"file": file, "key": key} for file, key in sources]


def _percent(share: float) -> str:
    tenths = math.floor(share * 1000 + 1e-9) / 10
    return f"{tenths:.1f} %"


def _capital(sentence: str) -> str:
    return sentence[:1].upper() + sentence[1:]
