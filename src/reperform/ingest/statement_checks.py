"""What statements and payment files say of themselves, held against what they hold. Everything found is told."""

from collections.abc import Iterable, Mapping, Sequence
from decimal import Decimal
from itertools import pairwise

import polars as pl

from reperform import schemas
from reperform.ingest.camt_stream import Statement, decimal_of

BALANCE_BROKEN = "statement.balance"
DETAILS_BROKEN = "statement.details"
COUNT_BROKEN = "statement.count"
PAGE_MISSING = "statement.page_missing"
PAGE_BALANCE = "statement.page_balance"
SEQUENCE_GAP = "statement.sequence_gap"
SEQUENCE_REPEATED = "statement.sequence_repeated"
CHAIN_BROKEN = "statement.chain"
PAYMENTS_COUNT = "payments.number_of_transactions"
PAYMENTS_SUM = "payments.control_sum"
DEFINITION_DIFFERS = "message.definition"
POSSIBLE_DUPLICATE = "message.possible_duplicate"
REFERENCE_BROKEN = "reference.check_digits"
SCHEMA_VIOLATED = "message.schema"
MOST_PER_CODE = 1000  # of one code in one file; the rest is counted in one more finding
ISO_11649 = r"^RF\d{2}[0-9A-Za-z]{1,21}$"
_SEQUENCED = ("camt.052", "camt.053")
Finding = dict[str, object]


def finding(of: str, code: str, text: str, line: int | None = None, severity: str = "warning") -> Finding:
    """One finding as a row of `schemas.MESSAGES`."""
    return {"filing_id": of, "code": code, "severity": severity, "text": text, "source_line": line}


def finding_frame(found: Iterable[Finding], further: Iterable[tuple[str, int]] = ()) -> pl.DataFrame:
    """Findings as `schemas.MESSAGES`, at most `MOST_PER_CODE` of one code in one file; the others are counted.

    Args:
        found: the findings.
        further: files, and how many more references are wrong than are given.
    """
    kept: list[Finding] = []
    seen: dict[tuple[str, str], int] = {}
    for one in found:
        key = (str(one["filing_id"]).split("#", 1)[0], str(one["code"]))
        seen[key] = seen.get(key, 0) + 1
        if seen[key] <= MOST_PER_CODE:
            kept.append(one)
    for where, more in further:
        if more:
            seen[where.split("#", 1)[0], REFERENCE_BROKEN] += more
    for (where, code), n in seen.items():
        if n > MOST_PER_CODE:
            kept.append(finding(where, code, f"{n - MOST_PER_CODE:,} more of these in this file"))
    return pl.DataFrame(kept, schema=schemas.polars_schema(schemas.MESSAGES))


def named(statement: Statement) -> str:
    """How findings name a statement."""
    return f"{statement.where}#{statement.name or statement.message}"


def ends(statement: Statement) -> tuple[dict[str, Decimal], dict[str, Decimal]]:
    """Balances by currency before and after the entries of a statement or of one page of it.

    On pages of a statement of camt.053 an interim balance (ITBD) stands where the opening or the closing one is
    missing. A report of camt.052 holds the entries since the last report, so its interim balances prove nothing.
    """
    opening, closing = dict(statement.opening), dict(statement.closing)
    if statement.family == "camt.053":
        for currency, interim in statement.interim.items():
            if currency not in closing and (currency in opening or len(interim) > 1):
                closing[currency] = interim[-1]
            if currency not in opening and (currency in statement.closing or len(interim) > 1):
                opening[currency] = interim[0]
    return opening, closing


def balance_gap(statement: Statement, moved: Decimal) -> Decimal | None:
    """Closing balance less opening balance and entries; None where the statement does not tell both in one currency."""
    opening, closing = ends(statement)
    currencies = set(opening) & set(closing)
    if len(currencies) != 1 or len(opening) != 1:
        return None
    currency = currencies.pop()
    return closing[currency] - opening[currency] - moved


def of_statement(statement: Statement, gap: Decimal | None) -> list[Finding]:
    """What is wrong with one statement, whatever the others say."""
    of, found = named(statement), []
    if gap:
        text = f"opening balance and entries miss the closing balance of account {statement.account} by {gap:f}"
        found.append(finding(of, BALANCE_BROKEN, text, statement.line, "inconsistency"))
    for line in statement.unsplit:
        text = f"the details of an entry of account {statement.account} do not add up to it; read as one transaction"
        found.append(finding(of, DETAILS_BROKEN, text, line))
    told = decimal_of(statement.fields.get("told_entries"))
    if statement.family.startswith("camt") and told is not None and told != statement.entries:
        text = f"the statement tells of {told} entries and holds {statement.entries}"
        found.append(finding(of, COUNT_BROKEN, text, statement.line))
    return found


def of_messages(statements: Sequence[Statement]) -> list[Finding]:
    """What application headers say, against the documents that they head."""
    found = []
    for statement in _first_of_each(statements):
        told = str(statement.application.get("definition") or "").strip()
        if told and told != statement.definition:
            text = f"the application header announces {told}, the document is {statement.definition}"
            found.append(finding(named(statement), DEFINITION_DIFFERS, text, statement.line))
        if str(statement.application.get("possible_duplicate") or "").strip() in ("true", "1"):
            text = "the sender says that this message may be a duplicate"
            found.append(finding(named(statement), POSSIBLE_DUPLICATE, text, statement.line))
    return found


def of_payments(statements: Sequence[Statement], sums: Mapping[int, Decimal]) -> list[Finding]:
    """Numbers and sums of payments against what their groups and their messages announce (NbOfTxs, CtrlSum).

    Args:
        statements: of one file.
        sums: of the amounts of each, by number.
    """
    payments = [one for one in statements if one.family in ("pain.001", "pacs.008")]
    found = []
    for one in payments:
        if one.family == "pain.001":
            found += _announced(named(one), one.fields, one.entries, sums.get(one.number, Decimal(0)), one.line)
    for first in _first_of_each(payments):
        group = [one for one in payments if one.header is first.header]
        total = sum((sums.get(one.number, Decimal(0)) for one in group), Decimal(0))
        of = f"{first.where}#{first.message}"
        found += _announced(of, first.header, sum(one.entries for one in group), total, first.line)
    return found


def _announced(of: str, fields: Mapping[str, object], n: int, total: Decimal, line: int) -> list[Finding]:
    found = []
    told = decimal_of(fields.get("told_entries"))
    if told is not None and told != n:
        text = f"{told} transactions are announced, {n} are there"
        found.append(finding(of, PAYMENTS_COUNT, text, line, "inconsistency"))
    for name in ("told_sum", "total"):
        announced = decimal_of(fields.get(name))
        if announced is not None and announced != total:
            text = f"a sum of {announced:f} is announced, the amounts add up to {total:f}"
            found.append(finding(of, PAYMENTS_SUM, text, line, "inconsistency"))
    return found


def _first_of_each(statements: Sequence[Statement]) -> list[Statement]:
    """The first statement of each message."""
    return list({id(one.header): one for one in reversed(statements)}.values())[::-1]


def of_pages(statements: Sequence[Statement]) -> list[Finding]:
    """Pages that are missing, and balances that one page ends with and the next does not begin with."""
    found = []
    for pages in _paged(statements):
        numbers = [number for number, _ in pages]
        first, last = pages[0][1], pages[-1][1]
        missing = sorted(set(range(1, numbers[-1])) - set(numbers))
        if missing:
            text = f"page {_listed(missing)} of statement {first.name} of account {first.account} is missing"
            found.append(finding(named(first), PAGE_MISSING, text, first.line))
        if _page_field(last, "is_last_page") in ("false", "0"):
            text = (
                f"page {numbers[-1]} of statement {last.name} of account {last.account} is not its last; none follows"
            )
            found.append(finding(named(last), PAGE_MISSING, text, last.line))
        for (n, one), (following, other) in pairwise(pages):
            gap = _between(one, other)
            if following == n + 1 and gap:
                text = f"page {following} of statement {other.name} begins {gap:f} above the end of page {n}"
                found.append(finding(named(other), PAGE_BALANCE, text, other.line, "inconsistency"))
    return found


def _paged(statements: Sequence[Statement]) -> list[list[tuple[int, Statement]]]:
    """Statements that come in pages: those with page numbers, in the order of these."""
    groups: dict[tuple[str | None, str, str], list[tuple[int, Statement]]] = {}
    for one in statements:
        number = decimal_of(_page_field(one, "page"))
        if number is not None and 0 < number < 100_000 and number == int(number):  # noqa: PLR2004  # PgNb has at most five digits
            groups.setdefault((one.account, one.name, one.family), []).append((int(number), one))
    own = [pages for pages in groups.values() if len(pages) > 1 or any(one.fields.get("page") for _, one in pages)]
    return [sorted(pages, key=lambda page: page[0]) for pages in own]


def _page_field(statement: Statement, name: str) -> str:
    # The pages of a message are those of its one statement only where that comes more than once.
    return str(statement.fields.get(name) or statement.header.get(name) or "").strip()


def of_sequences(statements: Sequence[Statement]) -> list[Finding]:
    """Statements that are missing between others of their account, by their numbers and by their balances."""
    accounts: dict[tuple[str, str | None], list[Statement]] = {}
    for one in statements:
        if one.family in _SEQUENCED:
            accounts.setdefault((one.family, one.account), []).append(one)
    found = []
    for series in accounts.values():
        for before, after in pairwise(sorted(series, key=_made)):
            found += _neighbours(before, after)
    return found


def _neighbours(before: Statement, after: Statement) -> list[Finding]:
    first, second = _number(before), _number(after)
    if before.name == after.name and first == second:
        return []  # pages of one statement
    of, account = named(after), after.account
    if first is not None and second is not None and second not in (first + 1, 1):
        if second == first:
            text = f"statements {before.name} and {after.name} of account {account} have the same number {second}"
            return [finding(of, SEQUENCE_REPEATED, text, after.line)]
        missing = f"{first + 1}" if second == first + 2 else f"{first + 1} to {second - 1}"
        text = (
            f"statement {missing} of account {account} is missing"
            if second > first
            else (f"statement {second} of account {account} follows number {first}")
        )
        return [finding(of, SEQUENCE_GAP, text, after.line)]
    gap = _between(before, after) if before.family == "camt.053" else None
    if gap:
        text = f"the statement of account {account} begins {gap:f} above the end of the one before, {before.name}"
        return [finding(of, CHAIN_BROKEN, text, after.line)]
    return []


def _between(before: Statement, after: Statement) -> Decimal | None:
    """Opening balance of one less closing balance of the one before; None where the two cannot be compared."""
    closing, opening = ends(before)[1], ends(after)[0]
    if len(closing) != 1 or set(closing) != set(opening):
        return None
    ((currency, end),) = closing.items()
    return opening[currency] - end


def _number(statement: Statement) -> int | None:
    number = decimal_of(statement.fields.get("electronic_number"))
    if number is None:
        number = decimal_of(statement.fields.get("legal_number"))
    return int(number) if number is not None and abs(number) < 10**18 else None


def _made(statement: Statement) -> str:
    return str(statement.fields.get("created") or statement.header.get("known") or "").strip()


def _listed(numbers: Sequence[int], most: int = 10) -> str:
    more = f" and {len(numbers) - most} more" if len(numbers) > most else ""
    return ", ".join(map(str, numbers[:most])) + more


def of_references(details: pl.DataFrame) -> list[Finding]:
    """Creditor references of ISO 11649 (RF…) whose check digits are wrong.

    Args:
        details: as `schemas.PAYMENT_DETAILS`.
    """
    reference = pl.col("structured_reference").str.replace_all(" ", "").str.to_uppercase()
    given = details.select("source_file", "transaction_id", reference).filter(reference.str.contains(ISO_11649))
    wrong = {text for text in given["structured_reference"].unique(maintain_order=True) if not is_valid_reference(text)}
    bad = given.filter(pl.col("structured_reference").is_in(sorted(wrong)))
    return [
        finding(where, REFERENCE_BROKEN, f"the check digits of reference {text} of transaction {name} are wrong")
        for where, name, text in bad.iter_rows()
    ]


def is_valid_reference(text: str) -> bool:
    """Whether the check digits of a creditor reference are right (ISO 11649: ISO/IEC 7064, MOD 97-10)."""
    moved = text[4:] + text[:4]
    return int("".join(str(int(character, 36)) for character in moved)) % 97 == 1
