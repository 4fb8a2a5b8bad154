"""The filings detector: parts that add up, silence about clean filings, and nothing known before its time."""

from datetime import date, datetime
from math import sqrt
from typing import Any

import polars as pl
import pytest

from reperform import params, schemas
from reperform.detectors.filings import COMPONENTS, SCORED, as_scores, score_filings, split_of
from reperform.errors import ReperformError
from reperform.featurize.filings import filing_kpis
from reperform.params import SplitParams
from reperform.simulate.bank_returns import Month
from tests import filing_samples as sample
from tests.filing_samples import at, check, fact, filing

MONTHS = [Month(date(2025, m, 1), date(2025, m, 28)) for m in range(1, 9)]
CALENDAR: SplitParams = params.build(
    SplitParams,
    {
        "train_days": 30,
        "train_until": "2025-03-31",
        "label_delay_days": 5,
        "label_maturity_days": 5,
        "validation_days": 10,
        "test_from": "2025-04-06",
        "test_days": 10,
        "drop_known_compromised": False,
    },
    where="test",
)


def world(loans: dict[tuple[str, int], float] | None = None, months: int = 5) -> tuple[pl.DataFrame, pl.DataFrame]:
    """Filings of three banks over some months: 70 of loans in 100 of assets, growing a little, with exceptions."""
    filings, facts = [], []
    for b, bank in enumerate(("north", "south", "west")):
        for m, month in enumerate(MONTHS[:months]):
            filing_id = f"{bank}-{m}"
            wobble = 1 + 0.001 * ((b + 2 * m) % 3)
            amount = (loans or {}).get((bank, m), 700_000 * 1.005**m * wobble)
            filings.append(filing(filing_id, month=month, entity=bank))
            facts += [
                fact(filing_id, "LoansAndAdvances", round(amount), end=month.last),
                fact(filing_id, "TotalAssets", round(1_000_000 * 1.005**m * wobble), end=month.last),
            ]
    return sample.filings(*filings), sample.facts(*facts)


def scored(
    filings: pl.DataFrame, facts: pl.DataFrame | None = None, checks: pl.DataFrame | None = None, **more: Any
) -> dict[str, dict[str, Any]]:
    facts = sample.facts() if facts is None else facts
    checks = sample.checks() if checks is None else checks
    kpis = filing_kpis(filings, facts, checks, sample.ledger(), settings={})
    table = score_filings(kpis, facts, settings=more)
    assert dict(table.schema) == SCORED
    return {row["filing_id"]: row for row in table.to_dicts()}


def test_clean_filings_score_zero_and_have_no_reasons() -> None:
    for row in scored(*world()).values():
        assert (row["score"], row["is_alert"], row["reasons"]) == (0.0, False, "")


def test_the_score_is_the_sum_of_its_weighted_parts() -> None:
    checks = sample.checks(
        check("f", "required", "brr:A", ok=False),
        check("f", "required", "brr:B", ok=True),
        check("f", "calculation", "1.1 brr:C", ok=False, gap=500.0, detail='{"unit":"iso4217:EUR"}'),
        check("f", "assertion", "not_negative_D", ok=False),
    )
    each = filing("f", filed_at=at("2025-02-18"), due_at=at("2025-02-16"))
    row = scored(sample.filings(each), checks=checks)["f"]
    assert row["score"] == pytest.approx(sum(row[name] for name in COMPONENTS))
    assert row["incomplete"] == pytest.approx(0.5 / (0.5 + 0.03))
    # All of one rule fails, by half of its total.
    assert row["calculation"] == pytest.approx(sqrt(1 / 1.05 * 0.5 / 0.55))
    assert row["assertion"] == pytest.approx(0.5 * 1 / 1.05)
    assert row["late"] == pytest.approx(0.5 * 2 / (2 + 2))
    assert row["is_alert"]
    assert row["reasons"].startswith(
        "incomplete 0.94: missing brr:A (missing); calculation 0.93: 1 of 1 rules fail (brr:C"
    )


def test_weights_can_be_set_and_unknown_settings_are_refused() -> None:
    checks = sample.checks(check("f", "required", "brr:A", ok=False))
    assert scored(sample.filings(filing("f")), checks=checks, weights={"incomplete": 0.0})["f"]["score"] == 0.0
    with pytest.raises(ReperformError, match="weight"):
        scored(sample.filings(filing("f")), checks=checks, weigths={})


def test_an_unusual_growth_is_odd_and_the_way_back_is_not() -> None:
    table = scored(*world({("north", 3): 800_000.0}))
    assert table["north-3"]["deviation"] > 0.5
    assert table["north-3"]["is_alert"]
    assert "brr:LoansAndAdvances" in table["north-3"]["reasons"]
    assert {name for name, row in table.items() if row["is_alert"]} == {"north-3"}


def test_a_true_change_of_level_is_odd_once() -> None:
    changed = {("north", m): 900_000.0 * 1.005**m for m in range(3, 8)}
    table = scored(*world(changed, months=8))
    assert {name for name, row in table.items() if row["deviation"] > 0} == {"north-3"}


def test_too_few_earlier_filings_say_nothing() -> None:
    table = scored(*world({("north", 1): 1_400_000.0}, months=2))
    assert all(row["deviation"] == 0 for row in table.values())


def test_a_restatement_is_scored_by_its_size() -> None:
    filings = sample.filings(filing("a"), filing("a-r1", filed_at=at("2025-03-01")))
    facts = sample.facts(fact("a", "TotalAssets", 1_000_000), fact("a-r1", "TotalAssets", 900_000))
    table = scored(filings, facts)
    assert table["a"]["score"] == 0
    assert table["a-r1"]["restated"] == pytest.approx(0.25 + 0.75 * 0.1 / 0.15)
    assert "changes 1 numbers of a, by up to 10.0%" in table["a-r1"]["reasons"]


def test_a_mismatch_with_a_doubtful_filing_counts_less() -> None:
    january, february = MONTHS[0], MONTHS[1]
    filings = sample.filings(filing("jan", month=january), filing("feb", month=february))
    facts = sample.facts(
        fact("jan", "CustomerDeposits", 120, end=january.last),
        fact("feb", "CustomerDeposits", 150, end=february.opening),
    ).with_columns(period_end=pl.lit(january.last))
    doubt = sample.checks(check("jan", "assertion", "x", ok=False), check("jan", "required", "y", ok=False))
    alone, doubted = scored(filings, facts)["feb"], scored(filings, facts, doubt)["feb"]
    assert doubted["prior"] == pytest.approx(alone["prior"] / 4)
    assert "doubtful" in doubted["reasons"]


def test_nothing_that_comes_later_changes_a_score() -> None:
    filings, facts = world({("north", 3): 800_000.0})
    whole = scored(filings, facts)
    cut = at("2025-05-01")
    early = filings.filter(pl.col("filed_at") < cut)
    known = scored(early, facts.filter(pl.col("filing_id").is_in(early["filing_id"].to_list())))
    assert known == {name: row for name, row in whole.items() if name in known}
    assert 0 < len(known) < len(whole)


def test_the_order_of_rows_does_not_matter() -> None:
    filings, facts = world({("north", 3): 800_000.0})
    assert scored(filings, facts) == scored(filings.reverse(), facts.reverse())


def test_no_filings_give_no_scores() -> None:
    assert scored(sample.filings()) == {}
    empty = score_filings(
        filing_kpis(sample.filings(), sample.facts(), sample.checks(), sample.ledger(), settings={}),
        sample.facts(),
        settings={},
    )
    schemas.checked(as_scores(empty, sample.filings(), CALENDAR), schemas.SCORES)


@pytest.mark.parametrize(
    ("moment", "split"),
    [
        ("2025-03-01", "history"),
        ("2025-03-02", "train"),
        ("2025-03-17", "delay"),
        ("2025-03-22", "validation"),
        ("2025-04-01", "delay"),
        ("2025-04-06", "test"),
        ("2025-04-16", "later"),
    ],
)
def test_a_filing_belongs_to_the_split_of_its_receipt(moment: str, split: str) -> None:
    assert split_of(datetime.fromisoformat(moment).replace(tzinfo=CALENDAR.test_start.tzinfo), CALENDAR) == split


def test_scores_meet_their_contract() -> None:
    filings, facts = world()
    kpis = filing_kpis(filings, facts, sample.checks(), sample.ledger(), settings={})
    table = as_scores(score_filings(kpis, facts, settings={}), kpis, CALENDAR)
    schemas.checked(table, schemas.SCORES)
    assert table.height == filings.height
    assert set(table["detector"]) == {"filings"}
    assert table["transaction_id"].null_count() == table.height


def test_forms_of_ferc_are_judged_by_peers_alone() -> None:
    month = MONTHS[0]
    rows, facts = [], []
    for n in range(12):
        name = f"u{n}"
        rows.append(filing(name, entity=name, form="ferc1", filed_at=at(f"2025-03-{n + 1:02d}")))
        capital = 40_000 + 100 * n if n < 11 else 4_000_000
        for concept, value in (("ferc:ProprietaryCapital", capital), ("ferc:AssetsAndOtherDebits", 100_000)):
            facts.append(fact(name, "X", value, end=month.last) | {"concept": concept})
    rows = [row | {"period_end": month.last} for row in rows]
    table = scored(sample.filings(*rows), sample.facts(*facts))
    assert table["u11"]["deviation"] > 0.8
    assert [name for name, row in table.items() if row["score"] > 0] == ["u11"]
    assert not table["u11"]["is_alert"]  # these forms have a limit of their own
    assert scored(sample.filings(*rows), sample.facts(*facts), weights={"deviation": 2.0})["u11"]["is_alert"]
