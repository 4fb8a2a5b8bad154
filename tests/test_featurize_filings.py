"""KPIs 9 and 10, worked out by hand on tiny tables, and as known when each filing came in."""

from datetime import date, datetime
from typing import Any

import polars as pl
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from reperform import schemas
from reperform.errors import ReperformError
from reperform.featurize.filings import FILING_KPIS, filing_checks, filing_kpis, filing_tables
from tests import filing_samples as sample
from tests.filing_samples import FEBRUARY, JANUARY, at, check, fact, filing, transaction

NO_FACTS, NO_CHECKS, NO_LEDGER = sample.facts(), sample.checks(), sample.ledger()


def kpis(
    filings: pl.DataFrame,
    facts: pl.DataFrame = NO_FACTS,
    checks: pl.DataFrame = NO_CHECKS,
    ledger: pl.DataFrame = NO_LEDGER,
    **more: Any,
) -> dict[str, dict[str, Any]]:
    table = filing_kpis(filings, facts, checks, ledger, settings=more)
    assert dict(table.schema) == FILING_KPIS
    return {row["filing_id"]: row for row in table.to_dicts()}


def rules(
    filings: pl.DataFrame, facts: pl.DataFrame = NO_FACTS, ledger: pl.DataFrame = NO_LEDGER, **more: Any
) -> dict[tuple[str, str, str], dict[str, Any]]:
    table = filing_checks(filings, facts, NO_CHECKS, ledger, settings=more)
    schemas.checked(table, schemas.CHECKS)
    return {(row["filing_id"], row["family"], row["rule"]): row for row in table.to_dicts()}


# --- completeness and timeliness -------------------------------------------------------------------------------------


def test_completeness_is_the_share_of_required_lines_that_apply() -> None:
    checks = sample.checks(
        check("f", "required", "brr:A", ok=True),
        check("f", "required", "brr:B", ok=False, detail='{"reason":"nil"}'),
        check("f", "required", "brr:C", ok=None),
        check("f", "required", "brr:D", ok=True),
    )
    row = kpis(sample.filings(filing("f")), checks=checks)["f"]
    assert (row["n_required"], row["n_present"]) == (3, 2)
    assert row["completeness"] == pytest.approx(2 / 3)
    assert row["missing"] == "brr:B (nil)"
    assert row["not_applicable"] == "brr:C"


def test_without_requirements_completeness_is_unknown_not_one() -> None:
    row = kpis(sample.filings(filing("f", form="other")))["f"]
    assert (row["n_required"], row["completeness"], row["consistency"], row["coverage"]) == (0, None, None, None)


@pytest.mark.parametrize(("filed", "days"), [("2025-02-14", 0.0), ("2025-02-18", 2.5)])
def test_timeliness_counts_days_after_the_due_time(filed: str, days: float) -> None:
    each = filing("f", filed_at=at(filed), due_at=at("2025-02-16", 0))
    assert kpis(sample.filings(each))["f"]["timeliness_days"] == days


def test_without_a_due_day_timeliness_is_unknown() -> None:
    assert kpis(sample.filings(filing("f")))["f"]["timeliness_days"] is None


# --- consistency -----------------------------------------------------------------------------------------------------


def test_consistency_counts_evaluable_rules_and_coverage_all() -> None:
    checks = sample.checks(
        check("f", "calculation", "1.1 brr:A", ok=True, gap=0.0),
        check("f", "calculation", "1.1 brr:B", ok=False, gap=100.0, detail='{"unit":"iso4217:EUR"}'),
        check("f", "calculation", "1.1 brr:C", ok=None),
        check("f", "calculation", "2.1 brr:A", ok=False, gap=50.0),
        check("f", "assertion", "not_negative_X", ok=True),
        check("f", "assertion", "identity_balance", ok=False),
        check("f", "required", "brr:A", ok=False),
    )
    row = kpis(sample.filings(filing("f", form="other")), checks=checks)["f"]
    # Sums count in one mode, identities are measured elsewhere, and requirements are completeness.
    assert (row["n_rules"], row["n_evaluable"]) == (4, 3)
    assert row["consistency"] == pytest.approx(2 / 3)
    assert row["coverage"] == pytest.approx(3 / 4)
    assert row["severity"] == pytest.approx(100 / 1_000)
    assert row["gap"] == 100.0
    assert (row["calculation_n_failed"], row["assertion_n_failed"]) == (1, 0)
    assert row["failures"] == "calculation brr:B: 1,000 reported, 1,100 expected"


@pytest.mark.parametrize(
    ("profit", "assets", "limit"),
    [("400", "10000", 20.0), (None, "10000", 50.0), ("0", "10000", 50.0), (None, None, None)],
)
def test_materiality_is_a_share_of_profit_or_else_of_assets(
    profit: str | None, assets: str | None, limit: float | None
) -> None:
    facts = sample.facts(
        fact("f", "ProfitBeforeTax", profit, start=JANUARY.first), fact("f", "TotalAssets", assets, decimals="-3")
    )
    assert kpis(sample.filings(filing("f")), facts)["f"]["materiality"] == limit


def test_a_gap_is_measured_against_what_is_material() -> None:
    facts = sample.facts(fact("f", "TotalAssets", 1_000_000))  # 0.5 % are 5,000: more than the total of the rule
    checks = sample.checks(check("f", "calculation", "1.1 brr:B", ok=False, gap=100.0, detail='{"unit":"iso4217:EUR"}'))
    assert kpis(sample.filings(filing("f")), facts, checks)["f"]["severity"] == pytest.approx(100 / 5_000)
    numbers = checks.with_columns(detail=pl.lit('{"unit":"xbrli:pure"}'))
    assert kpis(sample.filings(filing("f")), facts, numbers)["f"]["severity"] == pytest.approx(100 / 1_000)


def test_assets_equal_claims_within_their_accuracy() -> None:
    def sheet(assets: int, claims: int, decimals: str) -> pl.DataFrame:
        return sample.facts(
            fact("f", "TotalAssets", assets, decimals=decimals),
            fact("f", "TotalLiabilitiesAndEquity", claims, decimals=decimals),
        )

    key = ("f", "balance", "assets equal liabilities and equity")
    rounded = rules(sample.filings(filing("f")), sheet(1_000_000, 1_001_000, "-3"))[key]
    assert (rounded["is_satisfied"], rounded["gap"]) == (True, 0.0)
    apart = rules(sample.filings(filing("f")), sheet(1_000_000, 1_003_000, "-3"))[key]
    assert (apart["is_satisfied"], apart["gap"]) == (False, 2_000.0)
    exact = rules(sample.filings(filing("f")), sheet(1_000_000, 1_001_000, "0"))[key]
    assert (exact["is_satisfied"], exact["gap"]) == (False, 999.0)
    one_side = rules(sample.filings(filing("f")), sample.facts(fact("f", "TotalAssets", 1)))[key]
    assert (one_side["is_evaluable"], one_side["is_satisfied"]) == (False, None)


def deposits(filing_id: str, opening: int, closing: int, month: Any = JANUARY) -> list[dict[str, Any]]:
    return [
        fact(filing_id, "CustomerDeposits", opening, end=month.opening),
        fact(filing_id, "CustomerDeposits", closing, end=month.last),
    ]


def test_deposits_roll_forward_through_the_flows() -> None:
    flows = [
        fact("f", "IncomingTransactionsValue", 30, start=JANUARY.first),
        fact("f", "OutgoingTransactionsValue", 10, start=JANUARY.first),
    ]
    key = ("f", "balance", "deposits roll forward")
    good = rules(sample.filings(filing("f")), sample.facts(*deposits("f", 100, 120), *flows))[key]
    assert (good["is_satisfied"], good["computed"]) == (True, 120.0)
    bad = rules(sample.filings(filing("f")), sample.facts(*deposits("f", 100, 125), *flows))[key]
    # Four numbers in whole units: half a unit each.
    assert (bad["is_satisfied"], bad["gap"]) == (False, 3.0)


# --- prior filings ---------------------------------------------------------------------------------------------------


def two_months(opening: int, *more: dict[str, Any]) -> tuple[pl.DataFrame, pl.DataFrame]:
    facts = sample.facts(*deposits("jan", 90, 120), *deposits("feb", opening, 130, FEBRUARY))
    return sample.filings(filing("jan"), filing("feb", month=FEBRUARY), *more), facts


def test_the_opening_is_the_closing_of_the_month_before() -> None:
    key = ("feb", "prior", "brr:CustomerDeposits")
    assert rules(*two_months(120))[key]["is_satisfied"]
    wrong = rules(*two_months(125))[key]
    assert (wrong["is_satisfied"], wrong["reported"], wrong["computed"], wrong["gap"]) == (False, 125.0, 120.0, 4.0)
    assert '"against":"jan"' in wrong["detail"]
    assert ("jan", "prior", "brr:CustomerDeposits") not in rules(*two_months(120))


def test_a_restatement_counts_from_when_it_was_filed() -> None:
    early = filing("jan-r1", filed_at=at("2025-03-01"))  # before February is filed on March 10
    late = filing("jan-r1", filed_at=at("2025-03-20"))
    corrected = sample.facts(*deposits("jan-r1", 90, 125))
    for restated, expected in ((early, True), (late, False)):
        filings, facts = two_months(125, restated)
        found = rules(filings, pl.concat([facts, corrected]))
        assert found["feb", "prior", "brr:CustomerDeposits"]["is_satisfied"] == expected


def test_a_filing_of_the_same_moment_is_not_known_yet() -> None:
    filings, facts = two_months(125)
    together = filings.with_columns(filed_at=pl.lit(at("2025-03-10")))
    assert ("feb", "prior", "brr:CustomerDeposits") not in rules(together, facts)


def test_a_restatement_is_an_event_with_its_own_row_and_is_not_late() -> None:
    filings = sample.filings(
        filing("jan", due_at=at("2025-02-16")), filing("jan-r1", filed_at=at("2025-03-01"), due_at=at("2025-02-16"))
    )
    facts = sample.facts(
        fact("jan", "LoansAndAdvances", 1_100_000, decimals="-3"),
        fact("jan-r1", "LoansAndAdvances", 1_000_000, decimals="-3"),
        fact("jan", "OtherAssets", 50_400, decimals="-3"),
        fact("jan-r1", "OtherAssets", 50_000, decimals="-3"),
    )
    found = kpis(filings, facts)
    assert (found["jan"]["restates"], found["jan"]["n_restated"], found["jan"]["restatement_size"]) == (None, 0, None)
    restated = found["jan-r1"]
    assert (restated["restates"], restated["n_restated"]) == ("jan", 1)  # the other change is within its accuracy
    assert restated["restatement_size"] == pytest.approx(100_000 / 1_100_000)
    assert restated["restatement_gap"] == 100_000.0
    assert restated["timeliness_days"] is None


# --- the ledger ------------------------------------------------------------------------------------------------------


def whole_january(*more: dict[str, Any]) -> pl.DataFrame:
    return pl.concat([sample.tiny_ledger(), sample.ledger(*more)])


def test_ledger_totals_are_compared_with_the_transactions() -> None:
    facts = sample.facts(
        fact("f", "IncomingTransactionsValue", 200, start=JANUARY.first),
        fact("f", "OutgoingTransactionsValue", 40, start=JANUARY.first),
        fact("f", "TransactionsNumber", 2, start=JANUARY.first, unit="xbrli:pure"),
        fact("f", "ActiveAccountsNumber", 1, start=JANUARY.first, unit="xbrli:pure"),
        fact(
            "f",
            "OutgoingTransactionsValue",
            50,
            start=JANUARY.first,
            dimensions='{"brr:ChannelAxis":"brr:CardMember"}',
        ),
        fact(
            "f",
            "OutgoingTransactionsNumber",
            1,
            start=JANUARY.first,
            unit="xbrli:pure",
            dimensions='{"brr:ChannelAxis":"brr:CashMember"}',
        ),
    )
    found = rules(sample.filings(filing("f")), facts, whole_january())
    verdicts = {rule: row["is_satisfied"] for (_, family, rule), row in found.items() if family == "ledger"}
    assert verdicts == {
        "brr:IncomingTransactionsValue": True,
        "brr:OutgoingTransactionsValue": False,
        "brr:TransactionsNumber": True,
        "brr:ActiveAccountsNumber": True,
        'brr:OutgoingTransactionsValue {"brr:ChannelAxis":"brr:CardMember"}': True,
        'brr:OutgoingTransactionsNumber {"brr:ChannelAxis":"brr:CashMember"}': False,
    }
    assert found["f", "ledger", "brr:OutgoingTransactionsValue"]["gap"] == 9.5


def test_transactions_that_were_not_known_yet_do_not_count() -> None:
    facts = sample.facts(fact("f", "TransactionsNumber", 2, start=JANUARY.first, unit="xbrli:pure"))
    late = transaction(3, at("2025-01-15"), "out", 5.0, known_at=at("2025-02-11"))
    key = ("f", "ledger", "brr:TransactionsNumber")
    before = sample.filings(filing("f", filed_at=at("2025-02-10")))
    after = sample.filings(filing("f", filed_at=at("2025-02-12")))
    assert rules(before, facts, whole_january(late))[key]["is_satisfied"]
    assert not rules(after, facts, whole_january(late))[key]["is_satisfied"]


@pytest.mark.parametrize(
    ("ledger", "reason"),
    [
        (sample.ledger(), "no ledger of this entity"),
        (sample.ledger(transaction(1, at("2025-01-20"), "in", 5.0)), "does not cover the period"),
    ],
)
def test_a_ledger_that_does_not_cover_the_period_proves_nothing(ledger: pl.DataFrame, reason: str) -> None:
    facts = sample.facts(fact("f", "TransactionsNumber", 2, start=JANUARY.first, unit="xbrli:pure"))
    row = rules(sample.filings(filing("f")), facts, ledger)["f", "ledger", "brr:TransactionsNumber"]
    assert (row["is_evaluable"], row["is_satisfied"]) == (False, None)
    assert reason in row["detail"]


def test_a_return_in_another_currency_than_its_ledger_is_not_compared() -> None:
    facts = sample.facts(fact("f", "IncomingTransactionsValue", 200, start=JANUARY.first, unit="iso4217:USD"))
    row = rules(sample.filings(filing("f")), facts, whole_january())["f", "ledger", "brr:IncomingTransactionsValue"]
    assert not row["is_evaluable"]
    in_base = sample.facts(fact("f", "IncomingTransactionsValue", 200, start=JANUARY.first))
    dollars = whole_january().with_columns(currency=pl.lit("USD"))
    row = rules(sample.filings(filing("f")), in_base, dollars)["f", "ledger", "brr:IncomingTransactionsValue"]
    assert row["is_satisfied"]


def test_forms_without_ledger_lines_are_not_compared() -> None:
    facts = sample.facts(fact("f", "TransactionsNumber", 2, start=JANUARY.first, unit="xbrli:pure"))
    found = rules(sample.filings(filing("f", form="ferc1")), facts, whole_january())
    assert not [key for key in found if key[1] == "ledger"]


# --- peers -----------------------------------------------------------------------------------------------------------


def test_what_nearly_all_peers_reported_before_is_expected() -> None:
    peers = [filing(f"p{i}", entity=f"p{i}") for i in range(4)]
    facts = [fact(f"p{i}", name, 1) for i in range(4) for name in ("TotalAssets", "TotalEquity")]
    facts += [fact("p0", "DebtSecurities", 1), fact("feb", "TotalAssets", 1, end=FEBRUARY.last)]
    filings = sample.filings(*peers, filing("feb", month=FEBRUARY))
    found = kpis(filings, sample.facts(*facts))
    assert found["feb"]["peer_gap"] == 0.5
    assert found["feb"]["peer_missing"] == "brr:TotalEquity"
    assert found["p3"]["peer_gap"] is None  # peers for the same month are no earlier filings
    assert kpis(filings, sample.facts(*facts), least_peers=5)["feb"]["peer_gap"] is None


# --- what must always hold -------------------------------------------------------------------------------------------


def test_empty_tables_give_empty_tables() -> None:
    table, checks = filing_tables(sample.filings(), NO_FACTS, NO_CHECKS, NO_LEDGER, settings={})
    assert (table.height, dict(table.schema)) == (0, FILING_KPIS)
    assert checks.is_empty()
    schemas.checked(checks, schemas.CHECKS)


def test_an_unknown_setting_is_named() -> None:
    with pytest.raises(ReperformError, match="peer_share"):
        kpis(sample.filings(), peer_shares=0.5)


@settings(max_examples=30, deadline=None)
@given(
    st.integers(0, 200),
    st.integers(0, 200),
    st.lists(st.tuples(st.integers(1, 59), st.booleans(), st.integers(1, 500)), max_size=6),
)
def test_nothing_that_comes_later_changes_a_filings_row(
    later_opening: int, restated: int, later: list[tuple[int, bool, int]]
) -> None:
    """The leakage certificate of filings: add what is filed or known afterwards, and earlier rows stay the same."""
    filings = sample.filings(filing("jan"), filing("other", entity="south"))
    facts = sample.facts(
        *deposits("jan", 90, 120), fact("jan", "TransactionsNumber", 2, start=JANUARY.first, unit="xbrli:pure")
    )
    rows = [
        transaction(10 + i, datetime(2025, 1 + day // 31, 1 + day % 28, tzinfo=at("2025-01-01").tzinfo),
                    "in" if comes_in else "out", amount, known_at=at("2025-02-10", 1))
        for i, (day, comes_in, amount) in enumerate(later)
    ]  # fmt: skip
    more = sample.filings(filing("feb", month=FEBRUARY), filing("jan-r1", filed_at=at("2025-02-20")))
    more_facts = sample.facts(*deposits("feb", later_opening, 130, FEBRUARY), *deposits("jan-r1", 90, restated))
    before = filing_tables(filings, facts, NO_CHECKS, whole_january(), settings={})
    after = filing_tables(
        pl.concat([filings, more]), pl.concat([facts, more_facts]), NO_CHECKS, whole_january(*rows), settings={}
    )
    for first, second in zip(before, after, strict=True):
        kept = second.filter(pl.col("filing_id").is_in(["jan", "other"]))
        assert kept.equals(first)


def test_the_order_of_rows_does_not_matter() -> None:
    filings, facts = two_months(125, filing("jan-r1", filed_at=at("2025-03-01")))
    first = filing_tables(filings, facts, NO_CHECKS, whole_january(), settings={})
    second = filing_tables(filings.reverse(), facts.reverse(), NO_CHECKS, whole_january().reverse(), settings={})
    assert all(one.equals(two) for one, two in zip(first, second, strict=True))


def test_a_yearly_form_compares_with_the_year_before() -> None:
    def year(filing_id: str, number: int, prior: float, current: float) -> tuple[dict[str, Any], list[dict[str, Any]]]:
        row = filing(filing_id, form="ferc1") | {
            "period_start": date(number, 1, 1),
            "period_end": date(number, 12, 31),
            "filed_at": at(f"{number + 1}-04-01"),
        }
        ends = ((date(number - 1, 12, 31), prior), (date(number, 12, 31), current))
        return row, [fact(filing_id, "Assets", value, end=end, unit="iso4217:USD") for end, value in ends]

    first, second = year("y21", 2021, 90, 100), year("y22", 2022, 101, 110)
    found = rules(sample.filings(first[0], second[0]), sample.facts(*first[1], *second[1]))
    row = found["y22", "prior", "brr:Assets"]
    assert (row["is_satisfied"], row["reported"], row["computed"]) == (True, 101.0, 100.0)  # whole units, rounded


# --- requirements and rules beyond the taxonomy's own ----------------------------------------------------------------


def test_lines_weigh_what_the_form_says() -> None:
    checks = sample.checks(check("f", "required", "brr:A", ok=True), check("f", "required", "brr:B", ok=False))
    forms = {"brr": {"weights": {"brr:B": 3.0}}}
    row = kpis(sample.filings(filing("f")), checks=checks, forms=forms)["f"]
    assert (row["completeness"], row["n_present"], row["n_required"]) == (0.25, 1, 2)
    nothing = kpis(sample.filings(filing("f")), checks=checks, forms={"brr": {"weights": {"brr:A": 0, "brr:B": 0}}})
    assert nothing["f"]["completeness"] is None


def test_nil_counts_where_the_form_allows_it() -> None:
    checks = sample.checks(
        check("f", "required", "brr:A", ok=False, detail='{"reason":"nil"}'),
        check("f", "required", "brr:B", ok=False, detail='{"reason":"missing"}'),
    )
    forms = {"brr": {"nil_allowed": ["brr:A", "brr:B"]}}
    row = kpis(sample.filings(filing("f")), checks=checks, forms=forms)["f"]
    assert (row["completeness"], row["missing"]) == (0.5, "brr:B (missing)")


@pytest.mark.parametrize(
    ("name", "unit", "missing"),
    [
        ("OtherAssets", "iso4217:EUR", ""),
        ("OtherAssets", "iso4217:USD", "brr:OtherAssets (wrong unit)"),  # the filing is in euros
        ("OtherAssets", "xbrli:pure", "brr:OtherAssets (wrong unit)"),
        ("ActiveAccountsNumber", "iso4217:EUR", "brr:ActiveAccountsNumber (wrong unit)"),
        ("ActiveAccountsNumber", "xbrli:pure", ""),
    ],
)
def test_a_line_in_the_wrong_unit_is_not_reported_as_it_has_to_be(name: str, unit: str, missing: str) -> None:
    facts = sample.facts(
        fact("f", "TotalAssets", 5), fact("f", "TotalEquity", 5), fact("f", "ProfitBeforeTax", 5, start=JANUARY.first),
        fact("f", name, 1, unit=unit),
    )  # fmt: skip
    checks = sample.checks(check("f", "required", f"brr:{name}", ok=True))
    assert kpis(sample.filings(filing("f")), facts, checks)["f"]["missing"] == missing


def test_a_line_in_the_right_unit_elsewhere_is_enough() -> None:
    facts = sample.facts(
        fact("f", "TotalAssets", 5), fact("f", "OtherAssets", 5), fact("f", "OtherAssets", 5, unit="iso4217:USD"),
        fact("f", "OtherLiabilities", 5, unit="iso4217:USD", dimensions='{"a":"b"}'),
    )  # fmt: skip
    checks = sample.checks(
        check("f", "required", "brr:OtherAssets", ok=True), check("f", "required", "brr:InstitutionName", ok=True)
    )
    assert kpis(sample.filings(filing("f")), facts, checks)["f"]["completeness"] == 1.0


def test_families_weigh_what_the_settings_say() -> None:
    checks = sample.checks(
        check("f", "calculation", "1.1 brr:A", ok=True, gap=0.0), check("f", "assertion", "not_negative_X", ok=False)
    )
    rows = [
        kpis(sample.filings(filing("f", form="other")), checks=checks, rule_weights=weights)["f"]["consistency"]
        for weights in ({}, {"assertion": 0.5}, {"assertion": 0.0, "calculation": 0.0})
    ]
    assert rows == [0.5, pytest.approx(2 / 3), None]
    with pytest.raises(ReperformError, match="rule_weights"):
        kpis(sample.filings(), rule_weights={"guess": 1.0})


def messages(*texts: tuple[str, str]) -> pl.DataFrame:
    rows = [
        {"filing_id": "f", "code": code, "severity": "inconsistency", "text": text, "source_line": 1}
        for code, text in texts
    ]
    return pl.DataFrame(rows, schema=schemas.polars_schema(schemas.MESSAGES))


def test_duplicates_that_contradict_each_other_are_inconsistent() -> None:
    facts = sample.facts(fact("f", "OtherAssets", 5))

    def row(said: pl.DataFrame) -> dict[str, Any]:
        table, _ = filing_tables(
            sample.filings(filing("f", form="other")), facts, NO_CHECKS, NO_LEDGER, settings={}, messages=said
        )
        return table.row(0, named=True)

    clean = row(messages(("footnote", "of no concern")))
    assert (clean["assertion_n_evaluable"], clean["consistency"]) == (1, 1.0)
    twice = row(messages(("contradicting_duplicates", "1 and 2"), ("contradicting_duplicates", "3 and 4")))
    assert (twice["assertion_n_failed"], twice["consistency"], twice["failures"]) == (
        2, 0.0, "assertion duplicates agree; assertion duplicates agree",
    )  # fmt: skip


def test_one_entity_says_the_same_on_all_its_forms() -> None:
    first = filing("one", form="ferc1", filed_at=at("2025-02-05"))
    second = filing("two", form="ferc60", filed_at=at("2025-02-08"))
    other = filing("three", form="ferc60", entity="south", filed_at=at("2025-02-09"))
    facts = sample.facts(
        *(fact(name, "OtherAssets", value) for name, value in (("one", 100), ("two", 103), ("three", 500)))
    )
    found = rules(sample.filings(first, second, other), facts)
    row = found["two", "prior", "cross-report brr:OtherAssets"]
    assert (row["is_satisfied"], row["reported"], row["computed"], row["gap"]) == (False, 103.0, 100.0, 2.0)
    assert '"against":"one"' in row["detail"]
    assert len(found) == 1  # nobody's first report is compared with a later one, nor with another entity's
