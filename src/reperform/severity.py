"""What conf/validate/ may say: a severity for every rule and no other, limits that exist, codes that are known."""

from collections.abc import Collection, Mapping

from reperform import iso_codes, validity
from reperform.errors import ReperformError, nearest
from reperform.feeds.finding import check_severities

MUST_HOLD = ("_contract", "_unique")  # rules whose breaking no later stage could live with
LIMITS = (
    "batch_rows", "batch_days", "history_rows", "history_days", "day_rows", "missing_day_rows", "ended_early_days",
    "volume_drop_ratio", "volume_surge_ratio", "volume_z", "amount_factor", "day_amount_factor", "share_shift",
    "crossed_share", "hour_gain", "hour_gain_total", "flipped_share", "new_code_share", "constant_share",
    "respelled_rows", "repeated_rows", "duplicate_feed_share", "stale_file_share", "label_flood_rows",
    "label_flood_ratio", "instant_share", "stray_gap_days",
)  # fmt: skip


def check(
    rules: Mapping[str, str],
    feeds: Mapping[str, str],
    feed_limits: Mapping[str, float],
    amount_limits: Mapping[str, Mapping[str, float]],
) -> None:
    """Refuse parameters of stage validate that could not be meant.

    Raises:
        ReperformError: naming the key and the nearest that exists.
    """
    of_rules(rules)
    check_severities(feeds)
    _same_names(feed_limits, LIMITS, "validate.feed_limits", "limit")
    currencies = [*sorted(iso_codes.CURRENCIES), validity.ANY_CURRENCY]
    for currency in amount_limits:
        if currency not in currencies:
            raise ReperformError(
                f"Amounts have limits in an unknown currency {currency!r}.",
                expected=f"an ISO 4217 code, or `{validity.ANY_CURRENCY}` for all others",
                got=currency,
                where=f"validate.amount_limits.{currency}",
                fix=f"{nearest(currency, currencies)} in conf/validate/; then run `make params`",
            )


def of_rules(rules: Mapping[str, str]) -> dict[str, str]:
    """A severity for each row rule, as conf/validate/ says.

    Raises:
        ReperformError: for a rule that does not exist (naming the nearest), one without a severity, or a contract that
            would only warn: no later stage could read the rows.
    """
    known = validity.names()
    _same_names(rules, known, "validate.rules", "severity")
    too_mild = [name for name in known if rules[name] == "warn" and name.endswith(MUST_HOLD)]
    if too_mild:
        raise ReperformError(
            f"Rule {too_mild[0]!r} cannot only warn.",
            expected="quarantine or stop: later stages rely on contracts and on unique ids",
            got=f"warn for {', '.join(too_mild)}",
            where="validate.rules",
            fix="change it in conf/validate/ and run `make params`",
        )
    return dict(rules)


def _same_names(given: Mapping[str, object], known: Collection[str], where: str, what: str) -> None:
    unknown = [name for name in given if name not in known]
    missing = [name for name in known if name not in given]
    if unknown or missing:
        raise ReperformError(
            f"Unknown rule {unknown[0]!r}." if unknown else f"Rule {missing[0]!r} has no {what}.",
            expected=f"a {what} for every rule, and for no other",
            got=", ".join(unknown) if unknown else f"nothing for {', '.join(missing)}",
            where=where,
            fix=f"{nearest(unknown[0], list(known)) if unknown else 'add it'} in conf/validate/; run `make params`",
        )
