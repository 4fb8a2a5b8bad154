"""The demo world's returns: they agree with the ledger, and are misstated exactly where the truth says so."""

from datetime import date, timedelta
from pathlib import Path
from typing import Any

import numpy as np
import polars as pl
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from lxml import etree

from reperform import schemas, taxonomy
from reperform.errors import ReperformError
from reperform.simulate.bank_returns import (
    END,
    MONTH,
    OPENING,
    BalanceSheet,
    Month,
    complete_months,
    ledger_totals,
    opening_deposits,
)
from reperform.simulate.filings import RECEIPTS, TRUTH_SCHEMA, instance, write_filings
from reperform.simulate.misstatements import KINDS, PLANTERS, Misstatement
from reperform.taxonomy import SUMS
from tests import filing_samples as sample
from tests.filing_samples import JANUARY, at, transaction

WORLD: dict[str, Any] = {"seed": 5, "start": date(2025, 1, 1), "days": 59, "entities": ["north", "south"]}


def two_banks() -> pl.DataFrame:
    """Two months of two institutions, with flows on both sides."""
    return sample.ledger(
        transaction(1, at("2025-01-03"), "in", 900.0, balance=5_900.0, channel="cash"),
        transaction(2, at("2025-02-01"), "out", 100.4, balance=5_799.6),
        transaction(3, at("2025-01-05"), "in", 12_000.0, balance=20_000.0, entity="south", account="b1"),
        transaction(4, at("2025-02-07"), "out", 30.0, balance=19_970.0, entity="south", account="b1"),
        transaction(5, at("2025-01-08"), "out", 900.0, balance=5_000.0, channel="cash"),
        transaction(6, at("2025-01-09"), "in", 900.0, balance=5_900.0, channel="card"),
        transaction(7, at("2025-02-08"), "in", 40.0, balance=20_010.0, entity="south", account="b1"),
        transaction(8, at("2025-01-09"), "out", 50.0, balance=19_950.0, entity="south", account="b1"),
        transaction(9, at("2025-02-03"), "in", 70.0, balance=5_869.6),
    )


def value(path: Path, name: str, context: str) -> str | None:
    found = etree.parse(path).xpath(f"//*[local-name()='{name}'][@contextRef='{context}']")
    return found[0].text if found else None


@pytest.mark.parametrize(
    ("start", "days", "expected"),
    [
        (date(2025, 1, 1), 180, [1, 2, 3, 4, 5]),
        (date(2025, 1, 1), 181, [1, 2, 3, 4, 5, 6]),
        (date(2025, 1, 2), 58, [2]),
        (date(2025, 1, 1), 30, []),
    ],
)
def test_only_complete_months_are_filed(start: date, days: int, expected: list[int]) -> None:
    assert [month.first.month for month in complete_months(start, days)] == expected


def test_totals_cover_the_month_in_utc_and_what_was_known() -> None:
    own = sample.ledger(
        transaction(1, at("2024-12-31", 23), "in", 1.0),
        transaction(2, at("2025-01-01", 0), "in", 10.5, channel="cash"),
        transaction(3, at("2025-01-31", 23), "out", 10_000.0, channel="transfer", account="a2"),
        transaction(4, at("2025-01-30"), "out", 7.0, known_at=at("2025-03-01")),
        transaction(5, at("2025-02-01", 0), "out", 3.0),
    )
    totals = ledger_totals(own, JANUARY, at("2025-02-10"))
    assert totals["IncomingTransactionsValue", MONTH] == 11  # 10.50, halves up
    assert totals["OutgoingTransactionsValue", MONTH] == 10_000
    assert totals["TransactionsNumber", MONTH] == 2
    assert totals["CashDepositsNumber", MONTH] == 1
    assert totals["LargeValueTransactionsNumber", MONTH] == 1
    assert totals["ActiveAccountsNumber", MONTH] == 2
    assert totals["OutgoingTransactionsValue", "TransferMember"] == 10_000
    assert totals["OutgoingTransactionsValue", "CardMember"] == 0


def test_opening_deposits_are_the_balances_before_the_first_row_of_each_account() -> None:
    assert opening_deposits(sample.tiny_ledger()) == 800_000
    assert opening_deposits(sample.ledger(transaction(1, at("2025-01-01"), "in", 5.0))) == 0


@settings(max_examples=40)
@given(st.integers(0, 2**32 - 1), st.integers(-(10**7), 10**9), st.integers(-(10**6), 10**6))
def test_a_balance_sheet_adds_up_in_every_month(seed: int, deposits: int, change: int) -> None:
    rng = np.random.default_rng(seed)
    sheet = BalanceSheet.drawn(rng, deposits)
    for month in range(3):
        closing = deposits + month * change
        sheet = sheet.next_month(rng, closing, fees_on=1_000)
        lines = sheet.lines | {("CustomerDeposits", END): closing}
        for total, parts in (*SUMS["BalanceSheet"].items(), *SUMS["Income"].items()):
            moment = END if (total, END) in lines else MONTH
            summed = sum(weight * int(lines[part, moment] or 0) for part, weight in parts.items())
            # Deposits are reported in whole units, their total in thousands.
            assert abs(int(lines[total, moment] or 0) - summed) <= (500 if total == "TotalLiabilities" else 0)
        assert lines["TotalAssets", END] == lines["TotalLiabilitiesAndEquity", END]


def test_every_institution_files_every_month_with_the_ledgers_totals(tmp_path: Path) -> None:
    truth = write_filings(two_banks(), {}, raw=tmp_path, **WORLD)
    assert truth.is_empty()
    assert dict(truth.schema) == TRUTH_SCHEMA
    names = sorted(path.relative_to(tmp_path).as_posix() for path in tmp_path.rglob("*.xbrl"))
    assert names == [f"{e}/filings/{e}-2025-0{m}.xbrl" for e in ("north", "south") for m in (1, 2)]
    january, february = (tmp_path / "north" / "filings" / f"north-2025-0{month}.xbrl" for month in (1, 2))
    assert value(january, "CashDepositsValue", MONTH) == "900"
    assert value(january, "CustomerDeposits", OPENING) == "5000"
    assert value(january, "CustomerDeposits", END) == value(february, "CustomerDeposits", OPENING) == "5900"
    assert value(february, "CustomerDeposits", END) == "5870"


def test_the_receipt_log_lists_every_filing_due_after_fifteen_days_and_filed_before(tmp_path: Path) -> None:
    write_filings(two_banks(), {"days_before_due": [2, 7]}, raw=tmp_path, **WORLD)
    log = pl.read_csv(tmp_path / "filings.csv", infer_schema=False)
    assert tuple(log.columns) == RECEIPTS
    assert log.height == 4
    assert set(log["form"]) == {taxonomy.FORM}
    assert log["file"].to_list() == [f"{row[2]}/filings/{row[1]}.xbrl" for row in log.rows()]
    times = log.with_columns(pl.col("due_at", "filed_at").str.to_datetime("%Y-%m-%dT%H:%M:%SZ"))
    assert (
        times.filter(pl.col("period_end") == "2025-01-31")["due_at"].to_list()[0].isoformat() == "2025-02-15T23:59:59"
    )
    early = times["due_at"] - times["filed_at"]
    assert early.min() >= timedelta(days=2)  # type: ignore[operator]
    assert early.max() <= timedelta(days=8)  # type: ignore[operator]


def test_the_same_seed_gives_the_same_bytes(tmp_path: Path) -> None:
    misstated = {"misstatements": {"sign_error": {"filings": 1}, "late_filing": {"filings": 1}}}
    for name, seed in (("a", 5), ("b", 5), ("c", 6)):
        write_filings(two_banks(), misstated, raw=tmp_path / name, **(WORLD | {"seed": seed}))
    contents = {
        name: [path.read_bytes() for path in sorted((tmp_path / name).rglob("*.*"))] for name in ("a", "b", "c")
    }
    assert contents["a"] == contents["b"]
    assert contents["a"] != contents["c"]


def test_rows_in_another_order_give_the_same_bytes(tmp_path: Path) -> None:
    write_filings(two_banks(), {}, raw=tmp_path / "a", **WORLD)
    write_filings(two_banks().reverse(), {}, raw=tmp_path / "b", **WORLD)
    first, second = (sorted((tmp_path / name).rglob("*.*")) for name in ("a", "b"))
    assert [path.read_bytes() for path in first] == [path.read_bytes() for path in second]


@pytest.mark.parametrize("kind", KINDS)
def test_each_kind_of_misstatement_is_planted_and_told(tmp_path: Path, kind: str) -> None:
    honest, planted = tmp_path / "honest", tmp_path / "planted"
    write_filings(two_banks(), {}, raw=honest, **WORLD)
    truth = write_filings(two_banks(), {"misstatements": {kind: {"filings": 2}}}, raw=planted, **WORLD)
    assert set(truth["misstatement"]) == {kind}
    assert truth["detail"].str.len_chars().min() > 0  # type: ignore[operator]
    told = set(truth["filing_id"])
    for path in sorted(honest.rglob("*.xbrl")):
        same = path.read_bytes() == (planted / path.relative_to(honest)).read_bytes()
        assert same == (path.stem not in told or kind == "late_filing"), path.stem
    assert truth.height == (4 if kind == "restatement" else 2)


def test_a_restatement_keeps_the_first_version_and_says_why(tmp_path: Path) -> None:
    world = WORLD | {"entities": ["north"]}
    truth = write_filings(two_banks(), {"misstatements": {"restatement": {"filings": 1}}}, raw=tmp_path, **world)
    first, second = sorted(truth["filing_id"])
    assert second == f"{first}-r1"
    folder = tmp_path / "north" / "filings"
    loans = [int(str(value(folder / f"{name}.xbrl", "LoansAndAdvances", END))) for name in (first, second)]
    assert loans[0] > loans[1]
    assert value(folder / f"{second}.xbrl", "IsRestatement", MONTH) == "true"
    assert value(folder / f"{second}.xbrl", "RestatementReason", MONTH)
    filed = pl.read_csv(tmp_path / "filings.csv").filter(pl.col("filing_id").is_in([first, second]))
    assert filed["filed_at"].to_list() == sorted(filed["filed_at"])
    assert filed["filing_id"].to_list() == [first, second]


def test_a_late_filing_is_filed_after_it_was_due(tmp_path: Path) -> None:
    settings_ = {"misstatements": {"late_filing": {"filings": 1, "days": [3, 3]}}}
    truth = write_filings(two_banks(), settings_, raw=tmp_path, **WORLD)
    log = pl.read_csv(tmp_path / "filings.csv")
    late = log.filter(pl.col("filed_at") > pl.col("due_at"))
    assert late["filing_id"].to_list() == truth["filing_id"].to_list()


def test_a_misstatement_that_would_change_nothing_is_not_told(tmp_path: Path) -> None:
    quiet = schemas.empty(schemas.TRANSACTIONS)
    asked = {"misstatements": {"ledger_contradiction": {"filings": 2}}}
    assert write_filings(quiet, asked, raw=tmp_path, **WORLD).is_empty()


def test_a_ledger_contradiction_still_adds_up_inside_the_return() -> None:
    honest = sample.bank_return()
    [(misstated, concept, _)] = PLANTERS["ledger_contradiction"](
        honest, Misstatement(share=(0.5, 0.5)), np.random.default_rng(1), 0
    )
    assert concept == "IncomingTransactionsValue"
    cut = 25  # half of the smaller flow
    assert misstated.values["IncomingTransactionsValue", MONTH] == 200 - cut
    assert misstated.values["OutgoingTransactionsValue", MONTH] == 50 - cut


def test_numbers_filed_at_the_wrong_scale_are_still_numbers_of_their_accuracy() -> None:
    honest = sample.bank_return()
    [(misstated, *_)] = PLANTERS["scale_error"](honest, Misstatement(), np.random.default_rng(1), 2)
    text = instance(misstated)
    assert 'decimals="0">700</brr:LoansAndAdvances>' in text
    assert 'decimals="-3">700000</brr:LoansAndAdvances>' in instance(honest)


def test_at_most_the_allowed_share_is_misstated(tmp_path: Path) -> None:
    greedy = {"largest_misstated_share": 0.5, "misstatements": {"sign_error": {"filings": 50}}}
    assert write_filings(two_banks(), greedy, raw=tmp_path, **WORLD).height == 2


def test_a_world_without_institutions_files_nothing(tmp_path: Path) -> None:
    nothing = schemas.empty(schemas.TRANSACTIONS)
    truth = write_filings(nothing, {}, raw=tmp_path, **(WORLD | {"entities": []}))
    assert truth.is_empty()
    assert (tmp_path / "filings.csv").read_text() == ",".join(RECEIPTS) + "\n"


def test_an_institution_without_transactions_still_files(tmp_path: Path) -> None:
    write_filings(schemas.empty(schemas.TRANSACTIONS), {}, raw=tmp_path, **(WORLD | {"entities": ["north"]}))
    path = tmp_path / "north" / "filings" / "north-2025-01.xbrl"
    assert value(path, "TransactionsNumber", MONTH) == "0"
    assert int(str(value(path, "TotalAssets", END))) > 0


@pytest.mark.parametrize("wrong", [{"misstatements": {"sign_eror": {}}}, {"due": 15}])
def test_an_unknown_setting_is_refused(tmp_path: Path, wrong: dict[str, Any]) -> None:
    with pytest.raises(ReperformError, match=r"simulate\.filings"):
        write_filings(two_banks(), wrong, raw=tmp_path, **WORLD)


def test_the_configured_world_is_understood() -> None:
    from omegaconf import OmegaConf  # noqa: PLC0415  # only here

    from reperform import params  # noqa: PLC0415
    from reperform.simulate.filings import FilingSettings  # noqa: PLC0415
    from tests.conftest import ROOT  # noqa: PLC0415

    conf: Any = OmegaConf.to_container(OmegaConf.load(ROOT / "conf" / "simulate" / "demo.yaml"))
    known = params.build(FilingSettings, conf["filings"], where="conf")
    assert set(known.misstatements) == set(KINDS)
    assert all(each.filings > 0 for each in known.misstatements.values())


def test_months_know_the_day_before() -> None:
    assert Month(date(2025, 1, 1), date(2025, 1, 31)).opening == date(2024, 12, 31)
