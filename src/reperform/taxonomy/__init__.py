"""The project's own small taxonomy: a monthly return of banks, with a balance sheet and totals of their ledger.

`RETURN` names every concept once. `python -m reperform.taxonomy.build` generates the XML beside this file from it, the
simulated filings are written from it, and the ledger check of KPI 10 knows from it what a total means.
"""

from dataclasses import dataclass
from pathlib import Path
from typing import Literal

PREFIX = "brr"
BASE_URL = "http://reperform.example/taxonomy/brr/2025/"
NAMESPACE = BASE_URL.rstrip("/")
SCHEMA_REF = f"{BASE_URL}brr.xsd"
ENTITY_SCHEME = "http://reperform.example/institution"
FORM = "brr"
FILES = ("brr.xsd", "brr_pre.xml", "brr_cal.xml", "brr_def.xml", "brr_lab.xml", "brr_for.xml")

# What the return calls a large transaction, in its own currency.
LARGE_VALUE_FROM = 10_000
CHANNEL_AXIS = "ChannelAxis"
# Members of the channel dimension and the ledger's channels that they stand for; the last one takes all others.
CHANNEL_MEMBERS: dict[str, tuple[str, ...]] = {
    "CardMember": ("card", "online"),
    "TransferMember": ("debit", "instant", "transfer", "wire"),
    "CashMember": ("atm", "cash"),
    "OtherChannelsMember": (),
}
CASH_CHANNELS = CHANNEL_MEMBERS["CashMember"]

Kind = Literal["monetary", "count", "text", "flag"]
Period = Literal["instant", "duration"]


@dataclass(frozen=True)
class Concept:
    """One line of the return.

    Args:
        name: local name of the XBRL element.
        kind: amount in the reporting currency, number, text or yes/no.
        period: stated at the end of the month, or over it.
        label: standard label.
        documentation: what the line holds.
        balance: debit or credit, for monetary lines that have a side.
        decimals: accuracy at which it is reported: 0 is whole units, -3 thousands.
        required: every filing has to report it.
        required_when: it has to be reported when this other line is more than zero, or true.
        never_negative: the taxonomy asserts so.
    """

    name: str
    kind: Kind
    period: Period
    label: str
    documentation: str
    balance: Literal["debit", "credit"] | None = None
    decimals: int = 0
    required: bool = True
    required_when: str | None = None
    never_negative: bool = False


def _stock(
    name: str, label: str, documentation: str, balance: Literal["debit", "credit"], *, positive: bool
) -> Concept:
    return Concept(name, "monetary", "instant", label, documentation, balance, decimals=-3, never_negative=positive)


def _income(
    name: str, label: str, documentation: str, balance: Literal["debit", "credit"], *, positive: bool
) -> Concept:
    return Concept(name, "monetary", "duration", label, documentation, balance, never_negative=positive)


def _number(name: str, label: str, documentation: str) -> Concept:
    return Concept(name, "count", "duration", label, documentation)


def _value(name: str, label: str, documentation: str, required_when: str | None = None) -> Concept:
    return Concept(
        name,
        "monetary",
        "duration",
        label,
        documentation,
        required=required_when is None,
        required_when=required_when,
        never_negative=True,
    )


RETURN: tuple[Concept, ...] = (
    Concept(
        "InstitutionName", "text", "duration", "Institution", "Name or code under which the institution is supervised."
    ),
    Concept("IsRestatement", "flag", "duration", "Restatement", "Whether this return replaces one filed before."),
    Concept(
        "RestatementReason",
        "text",
        "duration",
        "Reason for the restatement",
        "What was wrong in the return that this one replaces.",
        required=False,
        required_when="IsRestatement",
    ),
    _stock(
        "CashAndCentralBankBalances",
        "Cash and central bank balances",
        "Coins, notes and balances at central banks.",
        "debit",
        positive=True,
    ),
    _stock("LoansAndAdvances", "Loans and advances", "Loans to customers, net of impairment.", "debit", positive=True),
    _stock("DebtSecurities", "Debt securities", "Debt securities held, at carrying amount.", "debit", positive=True),
    _stock("OtherAssets", "Other assets", "All assets not shown elsewhere.", "debit", positive=True),
    _stock("TotalAssets", "Total assets", "Sum of all assets.", "debit", positive=True),
    Concept(
        "CustomerDeposits",
        "monetary",
        "instant",
        "Customer deposits",
        "Balances of all customer accounts at the end of the last day of the month, and of the month before.",
        "credit",
    ),
    _stock("BorrowedFunds", "Borrowed funds", "Borrowings from banks and central banks.", "credit", positive=True),
    _stock("OtherLiabilities", "Other liabilities", "All liabilities not shown elsewhere.", "credit", positive=True),
    _stock("TotalLiabilities", "Total liabilities", "Sum of all liabilities.", "credit", positive=False),
    _stock("ShareCapital", "Share capital", "Capital paid in by owners.", "credit", positive=True),
    _stock("RetainedEarnings", "Retained earnings", "Profits kept, less losses.", "credit", positive=False),
    _stock("TotalEquity", "Total equity", "Sum of share capital and retained earnings.", "credit", positive=False),
    _stock(
        "TotalLiabilitiesAndEquity",
        "Total liabilities and equity",
        "Sum of liabilities and equity; equals total assets.",
        "credit",
        positive=False,
    ),
    _income(
        "NetInterestIncome", "Net interest income", "Interest earned less interest paid.", "credit", positive=False
    ),
    _income("NetFeeIncome", "Net fee income", "Fees earned less fees paid.", "credit", positive=False),
    _income("OperatingExpenses", "Operating expenses", "Staff, premises, depreciation.", "debit", positive=True),
    _income("ImpairmentLosses", "Impairment losses", "Charge for credit losses of the month.", "debit", positive=True),
    _income("ProfitBeforeTax", "Profit before tax", "Income less expenses and impairment.", "credit", positive=False),
    _number("OutgoingTransactionsNumber", "Outgoing transactions", "Number of payments out of customer accounts."),
    _number("IncomingTransactionsNumber", "Incoming transactions", "Number of payments into customer accounts."),
    _number("TransactionsNumber", "All transactions", "Number of payments out of and into customer accounts."),
    _value("OutgoingTransactionsValue", "Outgoing value", "Value of payments out of customer accounts."),
    _value("IncomingTransactionsValue", "Incoming value", "Value of payments into customer accounts."),
    _number("CashDepositsNumber", "Cash deposits", "Number of payments into customer accounts in cash."),
    _value(
        "CashDepositsValue",
        "Value of cash deposits",
        "Value of payments into customer accounts in cash.",
        required_when="CashDepositsNumber",
    ),
    _number(
        "LargeValueTransactionsNumber",
        "Large transactions",
        f"Number of transactions of {LARGE_VALUE_FROM:,} or more in the reporting currency.",
    ),
    _value(
        "LargeValueTransactionsValue",
        "Value of large transactions",
        f"Value of transactions of {LARGE_VALUE_FROM:,} or more in the reporting currency.",
        required_when="LargeValueTransactionsNumber",
    ),
    _number(
        "ActiveAccountsNumber", "Active accounts", "Number of accounts with at least one transaction in the month."
    ),
)
BY_NAME = {concept.name: concept for concept in RETURN}

# Each total and its parts with their weights, by schedule.
SUMS: dict[str, dict[str, dict[str, int]]] = {
    "BalanceSheet": {
        "TotalAssets": {"CashAndCentralBankBalances": 1, "LoansAndAdvances": 1, "DebtSecurities": 1, "OtherAssets": 1},
        "TotalLiabilities": {"CustomerDeposits": 1, "BorrowedFunds": 1, "OtherLiabilities": 1},
        "TotalEquity": {"ShareCapital": 1, "RetainedEarnings": 1},
        "TotalLiabilitiesAndEquity": {"TotalLiabilities": 1, "TotalEquity": 1},
    },
    "Income": {
        "ProfitBeforeTax": {"NetInterestIncome": 1, "NetFeeIncome": 1, "OperatingExpenses": -1, "ImpairmentLosses": -1}
    },
    "Ledger": {"TransactionsNumber": {"OutgoingTransactionsNumber": 1, "IncomingTransactionsNumber": 1}},
}
BY_CHANNEL = ("OutgoingTransactionsNumber", "OutgoingTransactionsValue")


def folder() -> Path:
    """Where the XML files of the taxonomy are."""
    return Path(__file__).resolve().parent


def qname(name: str) -> str:
    """A concept's name as it stands in canonical tables."""
    return f"{PREFIX}:{name}"
