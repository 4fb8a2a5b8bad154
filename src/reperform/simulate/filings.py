"""Monthly returns of the demo world's institutions as XBRL files, some of them misstated."""

from collections.abc import Mapping, Sequence
from dataclasses import field
from datetime import UTC, date, datetime, time, timedelta
from pathlib import Path
from typing import Annotated, Any
from xml.sax.saxutils import escape

import numpy as np
import polars as pl
from pydantic import ConfigDict, Field
from pydantic.dataclasses import dataclass

from reperform import params, tables, taxonomy
from reperform.simulate.bank_returns import (
    END,
    MONTH,
    OPENING,
    BalanceSheet,
    Key,
    Month,
    Return,
    Value,
    add_incoming,
    complete_months,
    ledger_totals,
    moved_to_next_month,
    opening_deposits,
)
from reperform.simulate.misstatements import KINDS, PLANTERS, Kind, Misstatement, Planted, drawn_number, office_hours
from reperform.taxonomy import BY_NAME, CHANNEL_MEMBERS, RETURN

TRUTH_SCHEMA = {"filing_id": pl.String, "misstatement": pl.String, "concept": pl.String, "detail": pl.String}
RECEIPTS = ("file", "filing_id", "entity_id", "form", "period_start", "period_end", "due_at", "filed_at")


@dataclass(frozen=True, config=ConfigDict(extra="forbid"))
class CutOff:
    """Honest differences from the ledger: payments of the last evening that a bank counts in the next month.

    Args:
        filings: in how many returns.
        payments: fewest and most of them.
    """

    filings: Annotated[int, Field(ge=0)] = 0
    payments: tuple[int, int] = (1, 3)


@dataclass(frozen=True, config=ConfigDict(extra="forbid"))
class FilingSettings:
    """The `filings` block of `conf/simulate/`.

    Args:
        due_days: days from the end of the month until a return is due.
        days_before_due: fewest and most days that a return is filed early.
        largest_misstated_share: at most this share of all filings is misstated, whatever the counts below say.
        cut_off: honest differences, which are no misstatements.
        misstatements: by kind.
    """

    due_days: Annotated[int, Field(ge=1)] = 15
    days_before_due: tuple[int, int] = (2, 7)
    largest_misstated_share: Annotated[float, Field(ge=0, le=1)] = 0.5
    cut_off: CutOff = field(default_factory=CutOff)
    misstatements: dict[Kind, Misstatement] = field(default_factory=dict)


def write_filings(
    ledger: pl.DataFrame,
    settings: Mapping[str, Any],
    *,
    raw: Path,
    seed: int,
    start: date,
    days: int,
    entities: Sequence[str],
) -> pl.DataFrame:
    """Write one XBRL return per institution and complete month, and the log of their receipt.

    Args:
        ledger: canonical transactions; ledger totals of a return cover rows booked in its month (UTC) and known when
            it was filed.
        settings: see `FilingSettings`.
        raw: the raw folder; returns go to `<institution>/filings/`, the log to `filings.csv`.
        seed: of the balance sheets and of what is misstated.
        start: first day of the world.
        days: its length.
        entities: institutions that file.

    Returns:
        filing_id, misstatement, concept, detail: one row for every misstated, late or restated filing.

    Raises:
        ReperformError: for a setting that is not known.
    """
    asked = params.build(FilingSettings, settings, where="simulate.filings")
    rng = np.random.default_rng([seed, 9])
    returns = honest_returns(ledger, asked, rng, months=complete_months(start, days), entities=entities)
    returns, truth = misstate(returns, asked, rng)
    for each in returns:
        tables.write_text(instance(each), raw / file_name(each))
    tables.write_text(receipt_log(returns).write_csv(), raw / "filings.csv")
    return truth


def honest_returns(
    ledger: pl.DataFrame,
    settings: FilingSettings,
    rng: np.random.Generator,
    *,
    months: Sequence[Month],
    entities: Sequence[str],
) -> list[Return]:
    """Returns that agree with the ledger and with themselves, by institution and month."""
    returns: list[Return] = []
    cuts = set(rng.permutation(len(entities) * len(months))[: settings.cut_off.filings].tolist())
    for entity in entities:
        own = ledger.filter(pl.col("entity_id") == entity)
        currency = own["currency"].mode().sort()[0] if own.height else "EUR"
        opening = opening_deposits(own)
        sheet, moved = BalanceSheet.drawn(rng, opening), (0, 0)
        for month in months:
            due_at = datetime.combine(month.last + timedelta(days=settings.due_days), time(23, 59, 59), UTC)
            filed_at = office_hours(rng, due_at - timedelta(days=drawn_number(rng, settings.days_before_due)))
            totals = ledger_totals(own, month, filed_at)
            add_incoming(totals, *moved)
            payments = drawn_number(rng, settings.cut_off.payments) if len(returns) in cuts else 0
            moved = moved_to_next_month(totals, own, month, payments)
            closing = (
                opening
                + int(totals["IncomingTransactionsValue", MONTH])
                - int(totals["OutgoingTransactionsValue", MONTH])
            )
            sheet = sheet.next_month(rng, closing, fees_on=int(totals["OutgoingTransactionsValue", MONTH]))
            values: dict[Key, Value] = {
                ("InstitutionName", MONTH): entity,
                ("IsRestatement", MONTH): False,
                ("CustomerDeposits", OPENING): opening,
                ("CustomerDeposits", END): closing,
                **sheet.lines,
                **totals,
            }
            name = f"{entity}-{month.first:%Y-%m}"
            returns.append(Return(name, entity, currency, month, due_at, filed_at, values))
            opening = closing
    return returns


def misstate(
    returns: list[Return], settings: FilingSettings, rng: np.random.Generator
) -> tuple[list[Return], pl.DataFrame]:
    """Plant what is asked for, one kind in a filing, and say in a truth table what was done.

    Returns:
        All filings, restated ones twice; and the truth: filing_id, misstatement, concept, detail.
    """
    asked = settings.misstatements
    queue = [(kind, turn) for kind in KINDS if kind in asked for turn in range(asked[kind].filings)]
    chosen = iter(rng.permutation(len(returns))[: int(len(returns) * settings.largest_misstated_share)])
    filed = {each.filing_id: each for each in returns}
    truth: list[tuple[str, str, str, str]] = []
    for kind, turn in queue:
        # A filing that this kind would not change (no cash deposits to hide) is passed over: the truth must not lie.
        tried = (PLANTERS[kind](returns[int(index)], asked[kind], rng, turn) for index in chosen)
        for misstated, concept, detail in next((done for done in tried if _differs(done, filed)), []):
            filed[misstated.filing_id] = misstated
            truth.append((misstated.filing_id, kind, taxonomy.qname(concept) if concept else "", detail))
    frame = pl.DataFrame(sorted(truth), schema=TRUTH_SCHEMA, orient="row")
    return sorted(filed.values(), key=lambda each: (each.filed_at, each.filing_id)), frame


def _differs(done: Sequence[Planted], filed: Mapping[str, Return]) -> bool:
    misstated = done[0][0]
    honest = filed[misstated.filing_id]
    return (misstated.values, misstated.filed_at) != (honest.values, honest.filed_at)


def file_name(each: Return) -> str:
    """Where a return lies below the raw folder."""
    return f"{each.entity}/filings/{each.filing_id}.xbrl"


def receipt_log(returns: Sequence[Return]) -> pl.DataFrame:
    """What the supervisor notes of each filing when it comes in."""
    rows = [
        (
            file_name(each),
            each.filing_id,
            each.entity,
            taxonomy.FORM,
            each.month.first.isoformat(),
            each.month.last.isoformat(),
            f"{each.due_at:%Y-%m-%dT%H:%M:%SZ}",
            f"{each.filed_at:%Y-%m-%dT%H:%M:%SZ}",
        )
        for each in returns
    ]
    return pl.DataFrame(rows, schema=dict.fromkeys(RECEIPTS, pl.String), orient="row")


def instance(each: Return) -> str:
    """A return as an XBRL 2.1 instance, in the order of the taxonomy's lines."""
    facts = "".join(
        _fact(each, (name, moment), value)
        for concept in RETURN
        for (name, moment), value in each.values.items()
        if name == concept.name
    )
    return (
        '<?xml version="1.0" encoding="UTF-8"?>\n'
        '<xbrli:xbrl xmlns:xbrli="http://www.xbrl.org/2003/instance" xmlns:link="http://www.xbrl.org/2003/linkbase"\n'
        '  xmlns:xlink="http://www.w3.org/1999/xlink" xmlns:iso4217="http://www.xbrl.org/2003/iso4217"\n'
        '  xmlns:xbrldi="http://xbrl.org/2006/xbrldi" xmlns:xsi="http://www.w3.org/2001/XMLSchema-instance"\n'
        f'  xmlns:{taxonomy.PREFIX}="{taxonomy.NAMESPACE}">\n'
        f' <link:schemaRef xlink:type="simple" xlink:href="{taxonomy.SCHEMA_REF}"/>\n'
        f"{_contexts(each)}{_units_used(each)}{facts}{_footnote(each)}</xbrli:xbrl>\n"
    )


def _contexts(each: Return) -> str:
    month = each.month
    over = f"<xbrli:startDate>{month.first}</xbrli:startDate><xbrli:endDate>{month.last}</xbrli:endDate>"
    periods = {
        MONTH: over,
        END: f"<xbrli:instant>{month.last}</xbrli:instant>",
        OPENING: f"<xbrli:instant>{month.opening}</xbrli:instant>",
    }
    used = dict.fromkeys(moment for _, moment in each.values)
    return "".join(_context(each.entity, moment, periods.get(moment, over)) for moment in used)


def _context(entity: str, moment: str, period: str) -> str:
    member = ""
    if moment in CHANNEL_MEMBERS:
        axis, prefix = taxonomy.CHANNEL_AXIS, taxonomy.PREFIX
        member = (
            f'<xbrli:segment><xbrldi:explicitMember dimension="{prefix}:{axis}">{prefix}:{moment}'
            "</xbrldi:explicitMember></xbrli:segment>"
        )
    identifier = f'<xbrli:identifier scheme="{taxonomy.ENTITY_SCHEME}">{escape(entity)}</xbrli:identifier>'
    return (
        f' <xbrli:context id="{moment}"><xbrli:entity>{identifier}{member}</xbrli:entity>'
        f"<xbrli:period>{period}</xbrli:period></xbrli:context>\n"
    )


def _units_used(each: Return) -> str:
    measures = {each.currency: f"iso4217:{each.currency}", "number": "xbrli:pure"}
    return "".join(
        f' <xbrli:unit id="{name}"><xbrli:measure>{measure}</xbrli:measure></xbrli:unit>\n'
        for name, measure in measures.items()
    )


def _fact(each: Return, key: Key, value: Value) -> str:
    (name, moment), concept = key, BY_NAME[key[0]]
    element = f"{taxonomy.PREFIX}:{name}"
    unit = {"monetary": f' unitRef="{each.currency}"', "count": ' unitRef="number"'}.get(concept.kind, "")
    head = f' <{element} id="{name}_{moment}" contextRef="{moment}"{unit}'
    if value is None:
        return f'{head} xsi:nil="true"/>\n'
    text = str(value).lower() if isinstance(value, bool) else escape(str(value))
    decimals = f' decimals="{_accuracy(value, concept.decimals)}"' if unit else ""
    return f"{head}{decimals}>{text}</{element}>\n"


def _accuracy(value: Value, decimals: int) -> int:
    """The accuracy of a line, or whole units where its value has digits beyond that: they would be no XBRL number."""
    return decimals if isinstance(value, int) and value % 10**-decimals == 0 else 0


def _footnote(each: Return) -> str:
    if ("CustomerDeposits", END) not in each.values:
        return ""
    return (
        ' <link:footnoteLink xlink:type="extended" xlink:role="http://www.xbrl.org/2003/role/link">'
        f'<link:loc xlink:type="locator" xlink:href="#CustomerDeposits_{END}" xlink:label="fact"/>'
        '<link:footnote xlink:type="resource" xlink:label="note" '
        'xlink:role="http://www.xbrl.org/2003/role/footnote" xml:lang="en">Days end at midnight UTC.</link:footnote>'
        '<link:footnoteArc xlink:type="arc" xlink:arcrole="http://www.xbrl.org/2003/arcrole/fact-footnote" '
        'xlink:from="fact" xlink:to="note" order="1"/></link:footnoteLink>\n'
    )
