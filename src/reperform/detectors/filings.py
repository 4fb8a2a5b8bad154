"""The filings detector: a sum of named parts, each between 0 and 1, so that every score can be read.

It learns nothing from labels. What it compares a filing with was filed before it: own history, and peers on its form.
"""

import dataclasses
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import field
from datetime import date, datetime
from math import log, sqrt
from typing import Annotated, Any

import numpy as np
import polars as pl
from pydantic import ConfigDict, Field
from pydantic.dataclasses import dataclass

from reperform import params, schemas
from reperform.params import SplitParams
from reperform.taxonomy import FORM, qname

STRICT = ConfigDict(extra="forbid")
NAME = "filings"
FAMILIES = ("calculation", "balance", "ledger", "assertion", "prior")
COMPONENTS = ("incomplete", *FAMILIES, "late", "restated", "deviation")
SCORED: dict[str, Any] = {
    "filing_id": pl.String,
    "score": pl.Float64,
    "is_alert": pl.Boolean,
    **dict.fromkeys(COMPONENTS, pl.Float64),
    "reasons": pl.String,
}
NORMAL_MAD = 1.4826  # a normal distribution's standard deviation in units of its median absolute deviation


@dataclass(frozen=True, config=STRICT)
class FormLines:
    """Lines of a form whose changes and ratios are looked at.

    Args:
        growth: concepts, each against the filing before.
        ratios: pairs of numerator and denominator.
        peers_alone: an entity without own history is judged by its peers: sound where all are of one trade.
        least_spread: of a ratio; it keeps ratios that are 0 for nearly everyone from looking odd at the first cent.
        alert_from: score from which on a filing on this form is an alert, if not the general one.
    """

    growth: list[str] = field(default_factory=list)
    ratios: list[tuple[str, str]] = field(default_factory=list)
    peers_alone: bool = False
    least_spread: Annotated[float, Field(ge=0)] = 0.0
    alert_from: Annotated[float, Field(gt=0)] | None = None


BANK_RETURN = FormLines(
    growth=[
        qname(name)
        for name in ("TotalAssets", "LoansAndAdvances", "DebtSecurities", "TotalEquity", "NetInterestIncome")
    ],
    ratios=[
        (qname(above), qname(below))
        for above, below in (
            ("LoansAndAdvances", "TotalAssets"),
            ("DebtSecurities", "TotalAssets"),
            ("TotalEquity", "TotalAssets"),
            ("NetInterestIncome", "LoansAndAdvances"),
            ("NetFeeIncome", "OutgoingTransactionsValue"),
            ("OperatingExpenses", "NetInterestIncome"),
            ("ImpairmentLosses", "LoansAndAdvances"),
        )
    ],
)


def _ferc(assets: str, capital: str, income: str) -> FormLines:
    revenues, profit = "ferc:OperatingRevenues", "ferc:NetIncomeLoss"
    return FormLines(
        growth=[assets, capital, revenues],
        ratios=[(capital, assets), (revenues, assets), (income, revenues), (profit, assets)],
        peers_alone=True,
        least_spread=0.05,
        # Sums with parts that nobody reports are common on these forms, so that failed sums alone are no alert.
        alert_from=1.0,
    )


FORMS = {
    FORM: BANK_RETURN,
    "ferc1": _ferc("ferc:AssetsAndOtherDebits", "ferc:ProprietaryCapital", "ferc:NetUtilityOperatingIncome"),
    "ferc6": _ferc("ferc:Assets", "ferc:StockholdersEquity", "ferc:NetCarrierOperatingIncome"),
    "ferc60": _ferc("ferc:AssetsAndOtherDebits", "ferc:ProprietaryCapital", "ferc:OperatingIncomeNet"),
}


@dataclass(frozen=True, config=STRICT)
class FilingDetectorSettings:
    """Weights and scales of the score.

    Args:
        weights: by component; what is not given weighs 1. A mismatch with an earlier filing, an assertion and lateness
            weigh half by default: either month may be wrong, other rules see the same error, and lateness is no
            misstatement.
        half_missing: share of missing required lines that counts one half.
        half_failed: share of failed rules that counts one half.
        half_severity: relative gap that counts one half.
        half_days_late: days late that count one half.
        half_restated: relative change by a restatement that counts one half.
        odd_above: robust z from which on a deviation counts (3.5: Iglewicz and Hoaglin, 1993).
        least_history: earlier filings of the same entity needed to compare with.
        least_peers: earlier values of peers needed to compare with.
        floor: smallest scale of a deviation: of a growth in log units, of a ratio relative to its median.
        alert_from: score from which on a filing is an alert.
        forms: lines to compare, by form; those in `FORMS` are known.
    """

    weights: dict[str, Annotated[float, Field(ge=0)]] = field(default_factory=dict)
    half_missing: Annotated[float, Field(gt=0)] = 0.03
    half_failed: Annotated[float, Field(gt=0)] = 0.05
    half_severity: Annotated[float, Field(gt=0)] = 0.05
    half_days_late: Annotated[float, Field(gt=0)] = 2.0
    half_restated: Annotated[float, Field(gt=0)] = 0.05
    odd_above: Annotated[float, Field(gt=0)] = 3.5
    least_history: Annotated[int, Field(ge=2)] = 3
    least_peers: Annotated[int, Field(ge=3)] = 5
    floor: Annotated[float, Field(gt=0)] = 0.01
    alert_from: Annotated[float, Field(gt=0)] = 0.25
    forms: dict[str, FormLines] = field(default_factory=dict)

    def weight(self, component: str) -> float:
        """How much a component counts."""
        return self.weights.get(component, 0.5 if component in ("prior", "assertion", "late") else 1.0)

    def lines(self, form: str) -> FormLines:
        """Lines of a form; none for one that is not known."""
        return self.forms.get(form, FORMS.get(form, FormLines()))


Kpis = Mapping[str, Any]
Part = tuple[float, str]  # size between 0 and 1, and what it is about


def score_filings(filing_kpis: pl.DataFrame, facts: pl.DataFrame, *, settings: Mapping[str, Any]) -> pl.DataFrame:
    """Score every filing from its KPIs and its numbers.

    score = sum over components of weight x size. A size x with half-point h is x / (x + h); a family of rules is the
    geometric mean of two such sizes, of the share that failed and of the worst relative gap, so that an immaterial gap
    stays small; a deviation is 1 - limit / |z|.

    Args:
        filing_kpis: as the featurize stage writes it.
        facts: as `schemas.FACTS`.
        settings: see `FilingDetectorSettings`.

    Returns:
        `SCORED`, in order of (filed_at, filing_id): score (higher is more anomalous), is_alert, weighted components
        that add up to the score, and reasons in words, the largest first.
    """
    known: FilingDetectorSettings = params.build(FilingDetectorSettings, settings, where="filings detector")
    ordered = list(filing_kpis.sort("filed_at", "filing_id").iter_rows(named=True))
    lines = _lines(ordered, facts, known)
    rows: dict[str, dict[str, Any]] = {}
    for kpis in ordered:
        past = Past(kpis, [other for other in ordered if _is_earlier(other, kpis)], lines, rows)
        rows[kpis["filing_id"]] = _scored(kpis, _parts(kpis, past, known), known)
    return pl.DataFrame(list(rows.values()), schema=SCORED, orient="row")


def as_scores(scored: pl.DataFrame, filing_kpis: pl.DataFrame, calendar: SplitParams) -> pl.DataFrame:
    """The same scores as `schemas.SCORES`; the split of a filing is that of the moment when it came in."""
    filed_at = dict(filing_kpis.select("filing_id", "filed_at").iter_rows())
    return pl.DataFrame(
        {
            "transaction_id": pl.Series([None] * scored.height, dtype=pl.String),
            "filing_id": scored["filing_id"],
            "split": pl.Series([split_of(filed_at[each], calendar) for each in scored["filing_id"]], dtype=pl.String),
            "detector": pl.Series([NAME] * scored.height, dtype=pl.String),
            "score": scored["score"],
            "probability": pl.Series([None] * scored.height, dtype=pl.Float64),
            "is_alert": scored["is_alert"],
        },
        schema=schemas.polars_schema(schemas.SCORES),
    )


def split_of(moment: datetime, calendar: SplitParams) -> str:
    """Where a moment lies in the calendar of the evaluation."""
    ends = (
        (calendar.train_start, "history"),
        (calendar.fit_end, "train"),
        (calendar.validation_start, "delay"),
        (calendar.train_end, "validation"),
        (calendar.test_start, "delay"),
        (calendar.test_end, "test"),
    )
    return next((name for end, name in ends if moment < end), "later")


def _scored(kpis: Kpis, parts: Mapping[str, Part], known: FilingDetectorSettings) -> dict[str, Any]:
    weighted = {name: known.weight(name) * parts[name][0] for name in COMPONENTS}
    score = sum(weighted.values())
    ranked = sorted((name for name in COMPONENTS if weighted[name] > 0), key=lambda name: -weighted[name])
    reasons = "; ".join(f"{name} {weighted[name]:.2f}: {parts[name][1]}" for name in ranked)
    return {
        "filing_id": kpis["filing_id"],
        "score": score,
        "is_alert": score >= (known.lines(kpis["form"]).alert_from or known.alert_from),
        "reasons": reasons,
    } | weighted


def _is_earlier(other: Kpis, kpis: Kpis) -> bool:
    """Known when a filing came in: what is filed in the same moment does not count."""
    return bool(other["form"] == kpis["form"] and other["filed_at"] < kpis["filed_at"])


Lines = dict[str, dict[str, float]]  # numbers without dimensions for the period of each filing, by concept


@dataclasses.dataclass(frozen=True)
class Past:
    """What was known of other filings when one came in.

    Args:
        kpis: of the filing.
        earlier: filings on the same form that were filed before.
        lines: numbers of all filings.
        scored: scores of filings filed before.
    """

    kpis: Kpis
    earlier: Sequence[Kpis]
    lines: Lines
    scored: Mapping[str, Mapping[str, Any]]

    def own(self) -> list[Kpis]:
        """Filings of the same entity for earlier periods, the latest last."""
        entity, end = self.kpis["entity_id"], self.kpis["period_end"]
        found = [other for other in self.earlier if other["entity_id"] == entity and other["period_end"] < end]
        return sorted(found, key=lambda other: (other["period_end"], other["filed_at"]))

    def peers(self) -> list[Kpis]:
        """Filings of other entities."""
        return [other for other in self.earlier if other["entity_id"] != self.kpis["entity_id"]]

    def was_alert(self, other: Kpis) -> bool:
        """Whether an earlier filing was an alert for another reason than being late."""
        row = self.scored[other["filing_id"]]
        return bool(row["is_alert"] and row["score"] > row["late"])


def _parts(kpis: Kpis, past: Past, known: FilingDetectorSettings) -> dict[str, Part]:
    families = {family: _family(kpis, family, known) for family in FAMILIES}
    size, text = families["prior"]
    before = past.own()
    if size and before and past.was_alert(before[-1]):
        # The mismatch says more about the earlier filing, which was doubtful already.
        families["prior"] = (size / 4, f"{text}, against a filing that was doubtful itself")
    return {
        "incomplete": _incomplete(kpis, known),
        **families,
        "late": _late(kpis, known),
        "restated": _restated(kpis, known),
        "deviation": _deviation(past, known),
    }


def _up_to_one(value: float, half: float) -> float:
    return value / (value + half) if value > 0 else 0.0


def _incomplete(kpis: Kpis, known: FilingDetectorSettings) -> Part:
    missing = 0.0 if kpis["completeness"] is None else 1 - kpis["completeness"]
    return _up_to_one(missing, known.half_missing), f"missing {kpis['missing']}"


def _family(kpis: Kpis, family: str, known: FilingDetectorSettings) -> Part:
    evaluable, failed = kpis[f"{family}_n_evaluable"], kpis[f"{family}_n_failed"]
    if not failed:
        return 0.0, ""
    share = _up_to_one(failed / evaluable, known.half_failed)
    worst = _up_to_one(kpis[f"{family}_severity"], known.half_severity)
    return sqrt(share * worst), f"{failed} of {evaluable} rules fail ({_words(kpis['failures'], family)})"


def _words(failures: str, family: str) -> str:
    own = [text for text in failures.split("; ") if text.startswith(family)]
    return own[0].removeprefix(f"{family} ") if own else "see the table of checks"


def _late(kpis: Kpis, known: FilingDetectorSettings) -> Part:
    days = kpis["timeliness_days"] or 0.0
    return _up_to_one(days, known.half_days_late), f"filed {days:.1f} days after it was due"


def _restated(kpis: Kpis, known: FilingDetectorSettings) -> Part:
    if not kpis["n_restated"]:
        return 0.0, ""
    size = kpis["restatement_size"] or 0.0
    text = f"changes {kpis['n_restated']} numbers of {kpis['restates']}, by up to {size:.1%}"
    # A later version is worth a look whatever it changes.
    return 0.25 + 0.75 * _up_to_one(size, known.half_restated), text


def _lines(ordered: Sequence[Kpis], facts: pl.DataFrame, known: FilingDetectorSettings) -> Lines:
    wanted = {
        concept
        for form in {kpis["form"] for kpis in ordered}
        for concept in (*known.lines(form).growth, *(each for pair in known.lines(form).ratios for each in pair))
    }
    ends: dict[str, date] = {kpis["filing_id"]: kpis["period_end"] for kpis in ordered}
    chosen = facts.filter(pl.col("concept").is_in(sorted(wanted)) & (pl.col("dimensions") == "{}") & ~pl.col("is_nil"))
    found: Lines = {filing_id: {} for filing_id in ends}
    for row in chosen.with_columns(number=pl.col("value").cast(pl.Float64, strict=False)).iter_rows(named=True):
        if row["number"] is not None and row["period_end"] == ends.get(row["filing_id"]):
            found[row["filing_id"]].setdefault(row["concept"], row["number"])
    return found


def _ratios(kpis: Kpis, lines: Lines, known: FilingDetectorSettings) -> dict[str, float]:
    own = lines[kpis["filing_id"]]
    return {
        f"{above} / {below}": own[above] / own[below]
        for above, below in known.lines(kpis["form"]).ratios
        if own.get(below) and above in own
    }


def _growths(
    lines: Lines, kpis: Kpis, before: Kpis, known: FilingDetectorSettings, periods: int = 1
) -> dict[str, float]:
    """Logarithms of the change per period since an earlier filing, of lines with one sign."""
    own, earlier = lines[kpis["filing_id"]], lines[before["filing_id"]]
    return {
        f"growth of {concept}": log(own[concept] / earlier[concept]) / periods
        for concept in known.lines(kpis["form"]).growth
        if own.get(concept, 0) * earlier.get(concept, 0) > 0
    }


def _usual_growths(past: Past, known: FilingDetectorSettings) -> dict[str, list[float]]:
    """All growths from one filing to the next that were known, of this entity and its peers."""
    found: dict[str, list[float]] = {}
    for other in past.earlier:
        before = Past(other, [each for each in past.earlier if _is_earlier(each, other)], past.lines, past.scored).own()
        for name, value in _growths(past.lines, other, before[-1], known).items() if before else ():
            found.setdefault(name, []).append(value)
    return found


def _deviation(past: Past, known: FilingDetectorSettings) -> Part:
    """The oddest growth or ratio, judged by what was filed before."""
    z, text = max((*_odd_growths(past, known), *_odd_ratios(past, known)), default=(0.0, ""))
    return (1 - known.odd_above / z, text) if z > known.odd_above else (0.0, "")


def _odd_growths(past: Past, known: FilingDetectorSettings) -> Iterator[tuple[float, str]]:
    """Growth since the last filing, or since the last one that was no alert, whichever is less odd.

    After an error has been mended the way back is no second error, and after a true change of level the new level is no
    second change.
    """
    own = past.own()
    trusted = [other for other in own if not past.was_alert(other)]
    starts = [group[-1] for group in (own, trusted) if group]
    usual = _usual_growths(past, known)
    found = [_growths(past.lines, past.kpis, each, known, _periods(past.kpis, own[-1], each)) for each in starts]
    for name in sorted({name for growths in found for name in growths}):
        reference = usual.get(name, [])
        if len(reference) >= known.least_peers:
            values = [growths[name] for growths in found if name in growths]
            least = min(values, key=lambda value: abs(_robust_z(value, reference, known.floor)[0]))
            yield _said(name, least, _robust_z(least, reference, known.floor))


def _periods(kpis: Kpis, last: Kpis, start: Kpis) -> int:
    """How many periods lie between a filing and an earlier one, in units of the step since the last one."""
    step, whole = kpis["period_end"] - last["period_end"], kpis["period_end"] - start["period_end"]
    return max(1, int(whole / step + 0.5))


def _odd_ratios(past: Past, known: FilingDetectorSettings) -> Iterator[tuple[float, str]]:
    """Ratios, as odd as they are to own history, to peers, and to the filing before: the least of them.

    Without own history a ratio says nothing where institutions differ in their business.
    """
    lines = known.lines(past.kpis["form"])
    of_own = [_ratios(other, past.lines, known) for other in past.own()]
    of_peers = [_ratios(other, past.lines, known) for other in past.peers()]
    for name, value in sorted(_ratios(past.kpis, past.lines, known).items()):
        own = [each[name] for each in of_own if name in each]
        peers = [each[name] for each in of_peers if name in each]
        judged = []
        if len(own) >= known.least_history:
            floor = _ratio_floor(own, lines, known)
            judged += [_robust_z(value, own, floor), _robust_z(value, own[-1:], _spread(own) + floor)]
        elif not lines.peers_alone:
            continue
        if len(peers) >= known.least_peers:
            judged.append(_robust_z(value, peers, _ratio_floor(peers, lines, known)))
        if judged:
            yield _said(name, value, min(judged, key=lambda each: abs(each[0])))


def _ratio_floor(reference: Sequence[float], lines: FormLines, known: FilingDetectorSettings) -> float:
    return max(known.floor * abs(float(np.median(reference))), lines.least_spread)


def _said(name: str, value: float, judged: tuple[float, float]) -> tuple[float, str]:
    return abs(judged[0]), f"{name} is {value:.4g}, usual is {judged[1]:.4g} (robust z {judged[0]:+.1f})"


def _robust_z(value: float, reference: Sequence[float], floor: float) -> tuple[float, float]:
    """Distance from the median in robust standard deviations, and the median."""
    middle = float(np.median(reference))
    return (value - middle) / max(_spread(reference) + floor, 1e-12), middle


def _spread(reference: Sequence[float]) -> float:
    """Standard deviation of a normal distribution with the same median absolute deviation."""
    return NORMAL_MAD * float(np.median(np.abs(np.asarray(reference) - np.median(reference))))
