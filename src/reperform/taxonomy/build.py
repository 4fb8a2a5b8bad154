"""Write the taxonomy's XML from `RETURN`: `python -m reperform.taxonomy.build` puts the files beside this module.

The files are package data; a test builds them again and compares. Their structure follows XBRL 2.1, Dimensions 1.0 and
Formula 1.0 (https://specifications.xbrl.org).
"""

from collections.abc import Iterable
from pathlib import Path
from xml.sax.saxutils import escape, quoteattr

from reperform import taxonomy
from reperform.taxonomy import BY_CHANNEL, BY_NAME, CHANNEL_AXIS, CHANNEL_MEMBERS, PREFIX, RETURN, SUMS, Concept

ROLE = f"{taxonomy.BASE_URL}role/"
SCHEDULES = {
    "General": "100 - General information",
    "BalanceSheet": "200 - Balance sheet",
    "Income": "300 - Income of the month",
    "Ledger": "400 - Ledger totals of the month",
}
TABLE = "LedgerByChannelTable"
DOMAIN = "AllChannelsDomain"
XML = '<?xml version="1.0" encoding="UTF-8"?>\n'
_TYPES = {
    "monetary": "monetaryItemType",
    "count": "nonNegativeIntegerItemType",
    "text": "stringItemType",
    "flag": "booleanItemType",
}
_LINKBASE_ARCROLE = "http://www.w3.org/1999/xlink/properties/linkbase"
_STANDARD = "http://www.xbrl.org/2003"
_DIM = "http://xbrl.org/int/dim/arcrole"
_FORMULA_SCHEMAS = {
    "http://xbrl.org/2008/generic": "http://www.xbrl.org/2008/generic-link.xsd",
    "http://xbrl.org/2008/variable": "http://www.xbrl.org/2008/variable.xsd",
    "http://xbrl.org/2008/validation": "http://www.xbrl.org/2008/validation.xsd",
    "http://xbrl.org/2008/assertion/value": "http://www.xbrl.org/2008/value-assertion.xsd",
    "http://xbrl.org/2008/assertion/existence": "http://www.xbrl.org/2008/existence-assertion.xsd",
    "http://xbrl.org/2008/filter/concept": "http://www.xbrl.org/2008/concept-filter.xsd",
    "http://xbrl.org/2008/filter/period": "http://www.xbrl.org/2008/period-filter.xsd",
    "http://xbrl.org/2010/filter/aspect-cover": "http://www.xbrl.org/2010/aspect-cover-filter.xsd",
    "http://xbrl.org/2010/message": "http://www.xbrl.org/2010/generic-message.xsd",
}


def build() -> dict[str, str]:
    """All files of the taxonomy: name to content."""
    return {
        "brr.xsd": schema(),
        "brr_pre.xml": presentation(),
        "brr_cal.xml": calculation(),
        "brr_def.xml": definition(),
        "brr_lab.xml": labels(),
        "brr_for.xml": formula(),
    }


def schedule_lines() -> dict[str, tuple[str, ...]]:
    """Concepts of each schedule, in the order of the return."""
    cut = {
        "CashAndCentralBankBalances": "BalanceSheet",
        "NetInterestIncome": "Income",
        "OutgoingTransactionsNumber": "Ledger",
    }
    lines: dict[str, list[str]] = {name: [] for name in SCHEDULES}
    current = "General"
    for concept in RETURN:
        current = cut.get(concept.name, current)
        lines[current].append(concept.name)
    return {name: tuple(names) for name, names in lines.items()}


def schema() -> str:
    """The schema: roles, linkbases and elements."""
    roles = "".join(_role_type(name, definition_) for name, definition_ in SCHEDULES.items())
    named = [
        ("brr_pre.xml", "presentation"),
        ("brr_cal.xml", "calculation"),
        ("brr_def.xml", "definition"),
        ("brr_lab.xml", "label"),
    ]
    linkbases = "".join(
        f'   <link:linkbaseRef xlink:type="simple" xlink:href="{file}" xlink:arcrole="{_LINKBASE_ARCROLE}" '
        f'xlink:role="{_STANDARD}/role/{kind}LinkbaseRef"/>\n'
        for file, kind in named
    )
    linkbases += (
        f'   <link:linkbaseRef xlink:type="simple" xlink:href="brr_for.xml" xlink:arcrole="{_LINKBASE_ARCROLE}"/>\n'
    )
    return (
        XML + f'<xs:schema xmlns:xs="http://www.w3.org/2001/XMLSchema" xmlns:xbrli="{_STANDARD}/instance"\n'
        f'  xmlns:link="{_STANDARD}/linkbase" xmlns:xlink="http://www.w3.org/1999/xlink"\n'
        f'  xmlns:xbrldt="http://xbrl.org/2005/xbrldt" xmlns:{PREFIX}="{taxonomy.NAMESPACE}"\n'
        f'  targetNamespace="{taxonomy.NAMESPACE}" elementFormDefault="qualified" attributeFormDefault="unqualified">\n'
        f" <xs:annotation><xs:appinfo>\n{roles}{linkbases} </xs:appinfo></xs:annotation>\n"
        f"{_import(f'{_STANDARD}/instance', f'{_STANDARD}/xbrl-instance-2003-12-31.xsd')}"
        f"{_import(f'{_STANDARD}/linkbase', f'{_STANDARD}/xbrl-linkbase-2003-12-31.xsd')}"
        f"{_import('http://xbrl.org/2005/xbrldt', 'http://www.xbrl.org/2005/xbrldt-2005.xsd')}"
        f"{''.join(_element(concept) for concept in RETURN)}"
        f"{''.join(_abstract(f'{name}Abstract') for name in SCHEDULES)}"
        f"{_abstract(TABLE, 'xbrldt:hypercubeItem')}{_abstract(CHANNEL_AXIS, 'xbrldt:dimensionItem')}"
        f"{''.join(_abstract(name) for name in (DOMAIN, *CHANNEL_MEMBERS))}</xs:schema>\n"
    )


def presentation() -> str:
    """The order of lines in each schedule."""
    body = ""
    for schedule, names in schedule_lines().items():
        parent = f"{schedule}Abstract"
        arcs = [(parent, name) for name in names]
        if schedule == "Ledger":
            chain = [(parent, TABLE), (TABLE, CHANNEL_AXIS), (CHANNEL_AXIS, DOMAIN)]
            arcs += chain + [(DOMAIN, member) for member in CHANNEL_MEMBERS]
        lines = "".join(
            _arc("link:presentationArc", f"{_STANDARD}/arcrole/parent-child", source, target, f'order="{order}"')
            for order, (source, target) in enumerate(arcs, start=1)
        )
        body += _link("link:presentationLink", ROLE + schedule, _locators(_ends(arcs)) + lines)
    return _linkbase(_role_refs(SCHEDULES) + body)


def calculation() -> str:
    """Totals and their weighted parts."""
    body = ""
    for schedule, totals in SUMS.items():
        arcs = [(total, part, weight) for total, parts in totals.items() for part, weight in parts.items()]
        lines = "".join(
            _arc(
                "link:calculationArc",
                f"{_STANDARD}/arcrole/summation-item",
                total,
                part,
                f'order="{order}" weight="{weight}"',
            )
            for order, (total, part, weight) in enumerate(arcs, start=1)
        )
        body += _link("link:calculationLink", ROLE + schedule, _locators(_ends(arcs)) + lines)
    return _linkbase(_role_refs(SUMS) + body)


def definition() -> str:
    """The channel dimension of the ledger schedule: one closed table, with the total as its default member."""
    arcs = [(name, TABLE, "all", 'xbrldt:contextElement="segment" xbrldt:closed="true"') for name in BY_CHANNEL]
    arcs += [(TABLE, CHANNEL_AXIS, "hypercube-dimension", ""), (CHANNEL_AXIS, DOMAIN, "dimension-domain", "")]
    # A second arc between the same two labels is a duplicate to XLink, whatever its role: hence a second label.
    arcs += [(CHANNEL_AXIS, f"{DOMAIN}Default", "dimension-default", "")]
    arcs += [(DOMAIN, member, "domain-member", "") for member in CHANNEL_MEMBERS]
    lines = "".join(
        _arc("link:definitionArc", f"{_DIM}/{kind}", source, target, f'order="{order}" {more}'.strip())
        for order, (source, target, kind, more) in enumerate(arcs, start=1)
    )
    refs = "".join(
        f' <link:arcroleRef arcroleURI="{_DIM}/{kind}" xlink:type="simple" '
        f'xlink:href="http://www.xbrl.org/2005/xbrldt-2005.xsd#{kind}"/>\n'
        for kind in dict.fromkeys(arc[2] for arc in arcs)
    )
    named = [name for name in _ends(arcs) if not name.endswith("Default")]
    locators = _locators(named) + _locator(DOMAIN, f"{DOMAIN}Default")
    return _linkbase(_role_refs(["Ledger"]) + refs + _link("link:definitionLink", f"{ROLE}Ledger", locators + lines))


def labels() -> str:
    """Standard labels and documentation of every element."""
    body = ""
    texts = {concept.name: (concept.label, concept.documentation) for concept in RETURN}
    texts |= {f"{name}Abstract": (title.split(" - ")[1], "Heading.") for name, title in SCHEDULES.items()}
    texts |= {TABLE: ("Ledger by channel", "Table."), CHANNEL_AXIS: ("Channel", "How a payment was made.")}
    texts |= {DOMAIN: ("All channels", "Total over channels.")}
    texts |= {name: (_words(name.removesuffix("Member")), "Channel of a payment.") for name in CHANNEL_MEMBERS}
    for name, (label, documentation) in texts.items():
        body += _locator(name) + _label(name, "label", label) + _label(name, "documentation", documentation)
        for role in ("label", "documentation"):
            body += _arc("link:labelArc", f"{_STANDARD}/arcrole/concept-label", name, f"{name}_{role}", 'order="1"')
    return _linkbase(_link("link:labelLink", f"{_STANDARD}/role/link", body))


def formula() -> str:
    """Assertions: what has to be there, what may not be negative, what has to agree."""
    assertions = [_required(concept) for concept in RETURN if concept.required]
    assertions += [_required_when(concept, concept.required_when) for concept in RETURN if concept.required_when]
    assertions += [_not_negative(concept) for concept in RETURN if concept.never_negative]
    assertions += [_identity(), _roll_forward()]
    assertions += [_part_of(part, whole) for part, whole in PARTS_OF_WHOLES.items()]
    namespaces = {
        "generic": "http://xbrl.org/2008/generic",
        "variable": "http://xbrl.org/2008/variable",
        "va": "http://xbrl.org/2008/assertion/value",
        "ea": "http://xbrl.org/2008/assertion/existence",
        "cf": "http://xbrl.org/2008/filter/concept",
        "pf": "http://xbrl.org/2008/filter/period",
        "acf": "http://xbrl.org/2010/filter/aspect-cover",
        "msg": "http://xbrl.org/2010/message",
        PREFIX: taxonomy.NAMESPACE,
    }
    declared = " ".join(f'xmlns:{prefix}="{uri}"' for prefix, uri in namespaces.items())
    locations = " ".join(f"{namespace} {place}" for namespace, place in _FORMULA_SCHEMAS.items())
    refs = (
        _ref(
            "role", "http://www.xbrl.org/2008/role/link", "http://www.xbrl.org/2008/generic-link.xsd#standard-link-role"
        )
        + _ref(
            "role",
            "http://www.xbrl.org/2010/role/message",
            "http://www.xbrl.org/2010/generic-message.xsd#standard-message",
        )
        + _arcrole_ref("2008/variable-set", "2008/variable.xsd#variable-set")
        + _arcrole_ref("2008/variable-filter", "2008/variable.xsd#variable-filter")
        + _arcrole_ref("2008/variable-set-precondition", "2008/variable.xsd#variable-set-precondition")
        + _arcrole_ref(
            "2010/assertion-unsatisfied-message", "2010/validation-message.xsd#assertion-unsatisfied-message"
        )
    )
    link = '<generic:link xlink:type="extended" xlink:role="http://www.xbrl.org/2008/role/link">\n'
    return _linkbase(f"{refs} {link}{''.join(assertions)} </generic:link>\n", f"\n  {declared}", f" {locations}")


PARTS_OF_WHOLES = {
    "CashDepositsNumber": "IncomingTransactionsNumber",
    "CashDepositsValue": "IncomingTransactionsValue",
    "LargeValueTransactionsNumber": "TransactionsNumber",
}


def _required(concept: Concept) -> str:
    name = concept.name
    key = f"required_{name}"
    return (
        f'  <ea:existenceAssertion xlink:type="resource" xlink:label="{key}" id="{key}" aspectModel="dimensional" '
        f'implicitFiltering="true"/>\n' + _variable(key, "fact", name) + _message(key, f"{name} is not reported")
    )


def _required_when(concept: Concept, condition: str | None) -> str:
    key = f"required_{concept.name}"
    cause = BY_NAME[str(condition)]
    test = "$cause eq true()" if cause.kind == "flag" else "$cause gt 0"
    return (
        _value_assertion(key, "exists($fact)", f"{concept.name} is not reported, although {condition} calls for it")
        + f'  <variable:precondition xlink:type="resource" xlink:label="{key}_pre" test="{test}"/>\n'
        + _arc("generic:arc", "http://xbrl.org/arcrole/2008/variable-set-precondition", key, f"{key}_pre", 'order="1"')
        + _variable(key, "cause", cause.name, cover_unit=True)
        + _variable(key, "fact", concept.name, fallback="()", cover_unit=True)
    )


def _not_negative(concept: Concept) -> str:
    key = f"not_negative_{concept.name}"
    return _value_assertion(key, "$fact ge 0", f"{concept.name} is negative") + _variable(key, "fact", concept.name)


def _identity() -> str:
    key = "identity_balance_sheet"
    # Totals are reported in thousands: half a unit of accuracy on each side.
    return (
        _value_assertion(key, "abs($assets - $claims) le 1000", "total assets differ from liabilities and equity")
        + _variable(key, "assets", "TotalAssets")
        + _variable(key, "claims", "TotalLiabilitiesAndEquity")
    )


def _roll_forward() -> str:
    key = "identity_deposits_roll_forward"
    test = "abs($opening + $incoming - $outgoing - $closing) le 2"
    return (
        _value_assertion(
            key, test, "deposits at the end differ from deposits before, plus incoming, less outgoing value"
        )
        + _variable(key, "incoming", "IncomingTransactionsValue")
        + _variable(key, "outgoing", "OutgoingTransactionsValue")
        + _variable(key, "opening", "CustomerDeposits", boundary="start")
        + _variable(key, "closing", "CustomerDeposits", boundary="end")
    )


def _part_of(part: str, whole: str) -> str:
    key = f"part_of_whole_{part}"
    return (
        _value_assertion(key, "$part le $whole", f"{part} exceeds {whole}")
        + _variable(key, "part", part)
        + _variable(key, "whole", whole)
    )


def _value_assertion(key: str, test: str, message: str) -> str:
    return (
        f'  <va:valueAssertion xlink:type="resource" xlink:label="{key}" id="{key}" aspectModel="dimensional" '
        f'implicitFiltering="true" test={quoteattr(test)}/>\n'
    ) + _message(key, message)


def _variable(
    key: str,
    name: str,
    concept: str,
    *,
    fallback: str | None = None,
    cover_unit: bool = False,
    boundary: str | None = None,
) -> str:
    """One fact variable with its filters: by concept, and where the pairing needs it by unit or by end of the month."""
    label = f"{key}_{name}"
    kept = f" fallbackValue={quoteattr(fallback)}" if fallback else ""
    text = (
        f'  <variable:factVariable xlink:type="resource" xlink:label="{label}" bindAsSequence="false"{kept}/>\n'
        f'  <variable:variableArc xlink:type="arc" xlink:arcrole="http://xbrl.org/arcrole/2008/variable-set" '
        f'xlink:from="{key}" xlink:to="{label}" order="1" name="{name}"/>\n'
        f'  <cf:conceptName xlink:type="resource" xlink:label="{label}_c"><cf:concept><cf:qname>{PREFIX}:{concept}'
        f"</cf:qname></cf:concept></cf:conceptName>\n" + _filter_arc(label, f"{label}_c")
    )
    if cover_unit:  # a number and an amount differ in unit, and implicit filtering never pairs facts of different units
        text += f'  <acf:aspectCover xlink:type="resource" xlink:label="{label}_u">'
        text += "<acf:aspect>unit</acf:aspect></acf:aspectCover>\n"
        text += _filter_arc(label, f"{label}_u")
    if boundary:
        text += f'  <pf:instantDuration xlink:type="resource" xlink:label="{label}_p" boundary="{boundary}" '
        text += 'variable="incoming"/>\n'
        text += _filter_arc(label, f"{label}_p")
    return text


def _filter_arc(variable: str, target: str) -> str:
    return (
        f'  <variable:variableFilterArc xlink:type="arc" xlink:arcrole="http://xbrl.org/arcrole/2008/variable-filter" '
        f'xlink:from="{variable}" xlink:to="{target}" order="1" complement="false" cover="true"/>\n'
    )


def _message(key: str, text: str) -> str:
    arcrole = "http://xbrl.org/arcrole/2010/assertion-unsatisfied-message"
    return (
        f'  <msg:message xlink:type="resource" xlink:label="{key}_m" '
        f'xlink:role="http://www.xbrl.org/2010/role/message" xml:lang="en">{escape(text)}</msg:message>\n'
    ) + _arc("generic:arc", arcrole, key, f"{key}_m", 'order="1"')


def _linkbase(body: str, namespaces: str = "", locations: str = "") -> str:
    return (
        XML + f'<link:linkbase xmlns:link="{_STANDARD}/linkbase" xmlns:xlink="http://www.w3.org/1999/xlink" '
        f'xmlns:xbrldt="http://xbrl.org/2005/xbrldt"{namespaces}\n  '
        'xmlns:xsi="http://www.w3.org/2001/XMLSchema-instance" '
        f'xsi:schemaLocation="{_STANDARD}/linkbase {_STANDARD}/xbrl-linkbase-2003-12-31.xsd{locations}">\n'
        f"{body}</link:linkbase>\n"
    )


def _link(element: str, role: str, body: str) -> str:
    return f' <{element} xlink:type="extended" xlink:role="{role}">\n{body} </{element}>\n'


def _locator(name: str, label: str | None = None) -> str:
    return f'  <link:loc xlink:type="locator" xlink:href="brr.xsd#{PREFIX}_{name}" xlink:label="{label or name}"/>\n'


def _locators(names: Iterable[str]) -> str:
    return "".join(_locator(name) for name in names)


def _ends(arcs: Iterable[tuple[object, ...]]) -> list[str]:
    return list(dict.fromkeys(str(end) for arc in arcs for end in arc[:2]))


def _arc(element: str, arcrole: str, source: str, target: str, more: str) -> str:
    return (
        f'  <{element} xlink:type="arc" xlink:arcrole="{arcrole}" xlink:from="{source}" xlink:to="{target}" {more}/>\n'
    )


def _label(name: str, role: str, text: str) -> str:
    return (
        f'  <link:label xlink:type="resource" xlink:label="{name}_{role}" xlink:role="{_STANDARD}/role/{role}" '
        f'xml:lang="en">{escape(text)}</link:label>\n'
    )


def _ref(kind: str, uri: str, place: str) -> str:
    return f' <link:{kind}Ref {kind}URI="{uri}" xlink:type="simple" xlink:href="{place}"/>\n'


def _arcrole_ref(name: str, place: str) -> str:
    return _ref("arcrole", f"http://xbrl.org/arcrole/{name}", f"http://www.xbrl.org/{place}")


def _role_refs(schedules: Iterable[str]) -> str:
    return "".join(_ref("role", ROLE + name, f"brr.xsd#role_{name}") for name in schedules)


def _role_type(name: str, title: str) -> str:
    used = "".join(
        f"<link:usedOn>link:{kind}Link</link:usedOn>" for kind in ("presentation", "calculation", "definition")
    )
    return (
        f'   <link:roleType roleURI="{ROLE}{name}" id="role_{name}">'
        f"<link:definition>{escape(title)}</link:definition>{used}</link:roleType>\n"
    )


def _import(namespace: str, place: str) -> str:
    return f' <xs:import namespace="{namespace}" schemaLocation="{place}"/>\n'


def _element(concept: Concept) -> str:
    side = f' xbrli:balance="{concept.balance}"' if concept.balance else ""
    return (
        f' <xs:element id="{PREFIX}_{concept.name}" name="{concept.name}" type="xbrli:{_TYPES[concept.kind]}" '
        f'substitutionGroup="xbrli:item" nillable="true" xbrli:periodType="{concept.period}"{side}/>\n'
    )


def _abstract(name: str, group: str = "xbrli:item") -> str:
    return (
        f' <xs:element id="{PREFIX}_{name}" name="{name}" type="xbrli:stringItemType" substitutionGroup="{group}" '
        f'abstract="true" nillable="true" xbrli:periodType="duration"/>\n'
    )


def _words(name: str) -> str:
    spaced = "".join(f" {letter.lower()}" if letter.isupper() else letter for letter in name).strip()
    return spaced.capitalize()


def main(target: Path | None = None) -> None:
    """Write every file."""
    for name, content in build().items():
        ((target or taxonomy.folder()) / name).write_text(content, encoding="utf-8")


if __name__ == "__main__":
    main()
