"""KPIs 9 and 10: is a filing complete, on time, and consistent with itself, with what was filed before, and the ledger?

As known when it was filed: a filing is compared with filings received before it and transactions known by then, and
keeps its result when a later version restates it. The restatement is a filing of its own.
"""

import json
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import field
from datetime import datetime
from decimal import Decimal
from typing import Annotated, Any, Literal, get_args

import polars as pl
from pydantic import ConfigDict, Field
from pydantic.dataclasses import dataclass

from reperform import params, schemas
from reperform.featurize import bridge, filing_rules
from reperform.featurize.filing_rules import Filed, Identity, Part
from reperform.taxonomy import FORM, qname

STRICT = ConfigDict(extra="forbid")
Family = Literal["calculation", "assertion", "balance", "prior", "ledger"]
FAMILIES = get_args(Family)
# Sums are evaluated in two modes; Calculations 1.1 counts, XBRL 2.1 shows which parts are not reported.
COUNTED_CALCULATIONS = "1.1 "
# The taxonomy's own identities are measured again in family balance, where their gap is known.
MEASURED_ELSEWHERE = "identity_"
CONTRADICTION = "contradicting_duplicates"  # ingest's message on facts reported twice
MOST_FAILURES = 5
SECONDS_A_DAY = 86_400
FILING_KPIS: dict[str, Any] = {
    "filing_id": pl.String,
    "entity_id": pl.String,
    "form": pl.String,
    "period_end": pl.Date,
    "filed_at": schemas.UTC_US,
    "n_required": pl.Int64,
    "n_present": pl.Int64,
    "completeness": pl.Float64,
    "missing": pl.String,
    "not_applicable": pl.String,
    "timeliness_days": pl.Float64,
    "peer_gap": pl.Float64,
    "peer_missing": pl.String,
    "n_rules": pl.Int64,
    "n_evaluable": pl.Int64,
    "consistency": pl.Float64,
    "coverage": pl.Float64,
    "severity": pl.Float64,
    "gap": pl.Float64,
    "currency": pl.String,
    "materiality": pl.Float64,
    **{
        f"{family}_{name}": kind
        for family in FAMILIES
        for name, kind in (
            ("n_evaluable", pl.Int64),
            ("n_failed", pl.Int64),
            ("severity", pl.Float64),
            ("gap", pl.Float64),
        )
    },
    "restates": pl.String,
    "n_restated": pl.Int64,
    "restatement_size": pl.Float64,
    "restatement_gap": pl.Float64,
    "failures": pl.String,
}


@dataclass(frozen=True, config=STRICT)
class PartSettings:
    """A line of an identity; see `filing_rules.Part`."""

    concept: str
    weight: int = 1
    moment: Literal["period", "start"] = "period"


@dataclass(frozen=True, config=STRICT)
class IdentitySettings:
    """A total and its parts; see `filing_rules.Identity`."""

    name: str
    total: PartSettings
    parts: list[PartSettings]


@dataclass(frozen=True, config=STRICT)
class FormSettings:
    """What the KPIs need to know of a form.

    Args:
        assets: concept of total assets.
        profit: concept of profit before tax.
        identities: what has to agree within one filing.
        weights: of required concepts in completeness; 1 where nothing is given.
        nil_allowed: required concepts that may be reported as nil.
    """

    assets: str | None = None
    profit: str | None = None
    identities: list[IdentitySettings] = field(default_factory=list)
    weights: dict[str, Annotated[float, Field(ge=0)]] = field(default_factory=dict)
    nil_allowed: list[str] = field(default_factory=list)


BANK_RETURN = FormSettings(
    assets=qname("TotalAssets"),
    profit=qname("ProfitBeforeTax"),
    identities=[
        IdentitySettings(
            "assets equal liabilities and equity",
            PartSettings(qname("TotalAssets")),
            [PartSettings(qname("TotalLiabilitiesAndEquity"))],
        ),
        IdentitySettings(
            "deposits roll forward",
            PartSettings(qname("CustomerDeposits")),
            [
                PartSettings(qname("CustomerDeposits"), moment="start"),
                PartSettings(qname("IncomingTransactionsValue")),
                PartSettings(qname("OutgoingTransactionsValue"), weight=-1),
            ],
        ),
    ],
)


@dataclass(frozen=True, config=STRICT)
class FilingKpiSettings:
    """`featurize.settings.filings`.

    Args:
        forms: by form; the project's own bank return is known.
        profit_share: materiality as a share of profit before tax.
        assets_share: materiality as a share of assets, where no profit is reported.
        peer_share: of peers that report a concept, from which on it is expected.
        least_peers: fewer peers say nothing.
        ledger_edge_days: the ledger has to begin and end within so many days of the period.
        base_currency: of `amount_base`.
        rule_weights: of families of rules in consistency; 1 where nothing is given.
    """

    forms: dict[str, FormSettings] = field(default_factory=dict)
    profit_share: Annotated[float, Field(gt=0, le=1)] = 0.05
    assets_share: Annotated[float, Field(gt=0, le=1)] = 0.005
    peer_share: Annotated[float, Field(gt=0, le=1)] = 0.9
    least_peers: Annotated[int, Field(ge=1)] = 3
    ledger_edge_days: Annotated[int, Field(ge=0)] = 3
    base_currency: str = "EUR"
    rule_weights: dict[Family, Annotated[float, Field(ge=0)]] = field(default_factory=dict)

    def form(self, name: str) -> FormSettings:
        """Settings of a form; none for one that is not known."""
        return self.forms.get(name, BANK_RETURN if name == FORM else FormSettings())


def filing_tables(
    filings: pl.DataFrame,
    facts: pl.DataFrame,
    checks: pl.DataFrame,
    transactions: pl.DataFrame,
    *,
    settings: Mapping[str, Any],
    messages: pl.DataFrame | None = None,
) -> tuple[pl.DataFrame, pl.DataFrame]:
    """One row of KPIs per filing, and every rule behind them.

    Args:
        filings: as `schemas.FILINGS`.
        facts: as `schemas.FACTS`.
        checks: as `schemas.CHECKS`: what the taxonomy's own rules said.
        transactions: as `schemas.TRANSACTIONS`; empty where there is no ledger.
        settings: see `FilingKpiSettings`.
        messages: as `schemas.MESSAGES`; tells which facts were reported twice with values that cannot both be true.

    Returns:
        `FILING_KPIS` in order of (filed_at, filing_id), and checks of all families as `schemas.CHECKS`.
    """
    known: FilingKpiSettings = params.build(FilingKpiSettings, settings, where="featurize.settings.filings")
    all_filed = filing_rules.filed(filings, facts)
    rules = _all_checks(all_filed, checks, transactions, messages, known)
    due = dict(filings.select("filing_id", "due_at").iter_rows())
    by_filing = _by_filing(rules)
    rows = [_kpis(each, all_filed, by_filing.get(each.filing_id, []), due[each.filing_id], known) for each in all_filed]
    return pl.DataFrame(rows, schema=FILING_KPIS, orient="row"), rules


def filing_bridge(
    filings: pl.DataFrame, facts: pl.DataFrame, transactions: pl.DataFrame, *, settings: Mapping[str, Any]
) -> pl.DataFrame:
    """What would explain that ledger totals of a return differ from its transactions; see `bridge.filing_bridge`."""
    known: FilingKpiSettings = params.build(FilingKpiSettings, settings, where="featurize.settings.filings")
    return bridge.filing_bridge(
        filings, facts, transactions, base_currency=known.base_currency, edge_days=known.ledger_edge_days
    )


def filing_kpis(
    filings: pl.DataFrame,
    facts: pl.DataFrame,
    checks: pl.DataFrame,
    transactions: pl.DataFrame,
    *,
    settings: Mapping[str, Any],
) -> pl.DataFrame:
    """One row of KPIs 9 and 10 per filing; see `filing_tables`."""
    return filing_tables(filings, facts, checks, transactions, settings=settings)[0]


def filing_checks(
    filings: pl.DataFrame,
    facts: pl.DataFrame,
    checks: pl.DataFrame,
    transactions: pl.DataFrame,
    *,
    settings: Mapping[str, Any],
) -> pl.DataFrame:
    """Every rule with its result, for the filings report; see `filing_tables`."""
    return filing_tables(filings, facts, checks, transactions, settings=settings)[1]


def _all_checks(
    all_filed: Sequence[Filed],
    checks: pl.DataFrame,
    transactions: pl.DataFrame,
    messages: pl.DataFrame | None,
    known: FilingKpiSettings,
) -> pl.DataFrame:
    rows: list[tuple[Any, ...]] = []
    # One partition per entity, once: a filter of the whole ledger per filing costs more than all rules together.
    ledgers = {str(key[0]): part for key, part in transactions.partition_by("entity_id", as_dict=True).items()}
    nothing = transactions.clear()
    for filing in all_filed:
        identities = [_identity(each) for each in known.form(filing.form).identities]
        rows += filing_rules.balance_rows(filing, identities)
        rows += filing_rules.prior_rows(filing, _own(filing, all_filed))
        rows += filing_rules.cross_rows(filing, all_filed)
        if messages is not None:
            said = messages.filter((pl.col("filing_id") == filing.filing_id) & (pl.col("code") == CONTRADICTION))
            rows += filing_rules.duplicate_rows(filing, said["text"])
        rows += filing_rules.ledger_rows(
            filing,
            ledgers.get(filing.entity_id, nothing),
            base_currency=known.base_currency,
            edge_days=known.ledger_edge_days,
        )
    made = pl.DataFrame(rows, schema=schemas.polars_schema(schemas.CHECKS), orient="row")
    return pl.concat([checks, made]).sort("filing_id", "family", "rule", "detail", "reported", maintain_order=True)


def _identity(each: IdentitySettings) -> Identity:
    parts = [Part(part.concept, part.weight, part.moment) for part in (each.total, *each.parts)]
    return Identity(each.name, parts[0], tuple(parts[1:]))


def _own(filing: Filed, all_filed: Iterable[Filed]) -> list[Filed]:
    return [other for other in all_filed if (other.entity_id, other.form) == (filing.entity_id, filing.form)]


Check = dict[str, Any]


def _by_filing(rules: pl.DataFrame) -> dict[str, list[Check]]:
    grouped: dict[str, list[Check]] = {}
    for row in rules.iter_rows(named=True):
        grouped.setdefault(row["filing_id"], []).append(row)
    return grouped


def _kpis(
    filing: Filed,
    all_filed: Sequence[Filed],
    checks: Sequence[Check],
    due_at: datetime | None,
    known: FilingKpiSettings,
) -> dict[str, Any]:
    limit = _materiality(filing, known)
    # What was due is the first version: a later one is no late filing.
    restatement = _restatement(filing, _own(filing, all_filed), limit)
    identity = {
        "filing_id": filing.filing_id,
        "entity_id": filing.entity_id,
        "form": filing.form,
        "period_end": filing.period_end,
        "filed_at": filing.filed_at,
        "currency": _currency(filing, known),
        "materiality": None if limit is None else float(limit),
    }
    return (
        identity
        | _completeness(filing, checks, known.form(filing.form))
        | {"timeliness_days": None if restatement["restates"] else _days_late(filing.filed_at, due_at)}
        | _peers(filing, all_filed, known)
        | _consistency(checks, limit, known.rule_weights)
        | restatement
    )


def _completeness(filing: Filed, checks: Sequence[Check], form: FormSettings) -> dict[str, Any]:
    """KPI 9: the weighted share of required lines that are reported as they have to be.

    A line has to have a value of its type, for the period, without dimensions and in the right unit; nil counts as
    missing unless the form allows it.
    """
    required = [check for check in checks if check["family"] == "required"]
    asked = [(check, _problem(filing, check, form)) for check in required if check["is_evaluable"]]
    weights = [form.weights.get(check["rule"], 1.0) for check, _ in asked]
    present = [weight for (_, problem), weight in zip(asked, weights, strict=True) if problem is None]
    return {
        "n_required": len(asked),
        "n_present": len(present),
        "completeness": sum(present) / sum(weights) if sum(weights) else None,
        "missing": "; ".join(f"{check['rule']} ({problem})" for check, problem in asked if problem is not None),
        "not_applicable": "; ".join(check["rule"] for check in required if not check["is_evaluable"]),
    }


def _problem(filing: Filed, check: Check, form: FormSettings) -> str | None:
    """What is wrong with a required line; None if nothing is."""
    if check["is_satisfied"]:
        return "wrong unit" if filing_rules.is_in_wrong_unit(filing, check["rule"]) else None
    reason = _reason(check)
    return None if reason == "nil" and check["rule"] in form.nil_allowed else reason


def _reason(check: Check) -> str:
    return str(json.loads(check["detail"] or "{}").get("reason", "missing"))


def _days_late(filed_at: datetime, due_at: datetime | None) -> float | None:
    """Days from due to filed, 0 for a filing in time, None where no day is due."""
    return None if due_at is None else max(0.0, (filed_at - due_at).total_seconds() / SECONDS_A_DAY)


def _peers(filing: Filed, all_filed: Sequence[Filed], known: FilingKpiSettings) -> dict[str, Any]:
    expected = filing_rules.expected_by_peers(filing, all_filed, share=known.peer_share, least=known.least_peers)
    if not expected:
        return {"peer_gap": None, "peer_missing": None}
    absent = sorted(expected - filing.concepts)
    return {"peer_gap": len(absent) / len(expected), "peer_missing": "; ".join(absent[:20])}


def _materiality(filing: Filed, known: FilingKpiSettings) -> Decimal | None:
    """5 % of profit before tax, or 0.5 % of assets where no profit is reported; None where neither is."""
    form = known.form(filing.form)
    for concept, share in ((form.profit, known.profit_share), (form.assets, known.assets_share)):
        found = filing.plain(concept) if concept else None
        if found is not None and found[1].value != 0:
            return abs(found[1].value) * Decimal(str(share))
    return None


def _currency(filing: Filed, known: FilingKpiSettings) -> str | None:
    assets = known.form(filing.form).assets
    found = filing.plain(assets) if assets else None
    units = [found[0][3]] if found else sorted({what[3] for what in filing.numbers if what[3].startswith("iso4217:")})
    return units[0].removeprefix("iso4217:") if len(units) == 1 else None


def counts(check: Check) -> bool:
    """Whether a rule enters the score of consistency."""
    if check["family"] == "calculation":
        return str(check["rule"]).startswith(COUNTED_CALCULATIONS)
    if check["family"] == "assertion":
        return not str(check["rule"]).startswith(MEASURED_ELSEWHERE)
    return check["family"] in FAMILIES


def _consistency(checks: Sequence[Check], limit: Decimal | None, weights: Mapping[Any, float]) -> dict[str, Any]:
    """KPI 10: the weighted share of evaluable rules that hold, how many could be evaluated, and the worst gap."""
    rules = [check for check in checks if counts(check)]
    evaluable = [check for check in rules if check["is_evaluable"]]
    failed = [check for check in evaluable if not check["is_satisfied"]]
    weight, lost = (sum(weights.get(check["family"], 1.0) for check in part) for part in (evaluable, failed))
    found: dict[str, Any] = {
        "n_rules": len(rules),
        "n_evaluable": len(evaluable),
        "consistency": 1 - lost / weight if weight else None,
        "coverage": len(evaluable) / len(rules) if rules else None,
        "severity": _worst(failed, limit) if evaluable else None,
        "gap": _largest_gap(failed) if evaluable else None,
        "failures": _failures(failed, limit),
    }
    for family in FAMILIES:
        own = [check for check in evaluable if check["family"] == family]
        wrong = [check for check in failed if check["family"] == family]
        found |= {
            f"{family}_n_evaluable": len(own),
            f"{family}_n_failed": len(wrong),
            f"{family}_severity": _worst(wrong, limit) if own else None,
            f"{family}_gap": _largest_gap(wrong) if own else None,
        }
    return found


def _unit(check: Check) -> str:
    return str(json.loads(check["detail"] or "{}").get("unit") or "")


def severity(check: Check, limit: Decimal | None) -> float:
    """The gap of a rule, relative to the total or to what is material, whichever is larger.

    Numbers that are no amounts have no materiality: the total alone counts. A failed rule without a gap counts 1.
    """
    if check["is_satisfied"]:
        return 0.0
    if check["gap"] is None:
        return 1.0
    is_amount = _unit(check).startswith("iso4217:")
    total = max(abs(check["reported"] or 0.0), float(limit or 0) if is_amount else 0.0)
    other = abs(check["computed"] or 0.0)
    # A reported zero says nothing about size; the other side does.
    return float(check["gap"] / (total or other or 1.0))


def _worst(failed: Sequence[Check], limit: Decimal | None) -> float:
    return max((severity(check, limit) for check in failed), default=0.0)


def _largest_gap(failed: Sequence[Check]) -> float:
    gaps = [check["gap"] for check in failed if check["gap"] is not None and _unit(check).startswith("iso4217:")]
    return max(gaps, default=0.0)


def _failures(failed: Sequence[Check], limit: Decimal | None) -> str:
    """The worst failed rules in words."""
    ranked = sorted(failed, key=lambda check: (-severity(check, limit), check["family"], check["rule"]))
    texts = [_in_words(check) for check in ranked[:MOST_FAILURES]]
    more = len(failed) - len(texts)
    return "; ".join(texts) + (f"; and {more} more" if more > 0 else "")


def _in_words(check: Check) -> str:
    rule = str(check["rule"]).removeprefix(COUNTED_CALCULATIONS)
    if check["reported"] is None or check["computed"] is None:
        return f"{check['family']} {rule}"
    return f"{check['family']} {rule}: {check['reported']:,.0f} reported, {check['computed']:,.0f} expected"


def _restatement(filing: Filed, own: Sequence[Filed], limit: Decimal | None) -> dict[str, Any]:
    """How much a later version changes the one before it. A restatement is an event of its own."""
    found = filing_rules.restated(filing, own)
    if found is None:
        return {"restates": None, "n_restated": 0, "restatement_size": None, "restatement_gap": None}
    before, changed = found
    changes = [
        (what, abs(after.value - was.value), max(abs(was.value), limit or Decimal(0)))
        for what, (was, after) in changed.items()
        if what[3].startswith("iso4217:")
    ]
    return {
        "restates": before.filing_id,
        "n_restated": len(changed),
        "restatement_size": float(max((gap / base for _, gap, base in changes if base), default=Decimal(0))),
        "restatement_gap": float(max((gap for _, gap, _ in changes), default=Decimal(0))),
    }
