"""Make a version the champion, by a written rule and no other way; the decision is kept, whichever it is."""

import getpass
import json
import subprocess
from collections.abc import Mapping
from dataclasses import asdict, dataclass
from datetime import UTC, datetime
from typing import Any

from reperform import audit, compare, params, paths, tracking
from reperform.compare import Comparison
from reperform.errors import ReperformError
from reperform.params import PromotionParams, StudiesParams

EVENT = "promotion"
PROMOTED, REFUSED = "promoted", "refused"


@dataclass(frozen=True)
class Decision:
    """Whether a version becomes champion, and why.

    Args:
        verdict: `promoted` or `refused`.
        reasons: each condition with its figures, those that failed first.
        not_judged: typologies with too few anomalies.
    """

    verdict: str
    reasons: tuple[str, ...]
    not_judged: tuple[str, ...]

    @property
    def is_promoted(self) -> bool:
        """Whether it becomes champion."""
        return self.verdict == PROMOTED


def rule_in_words(rule: PromotionParams) -> str:
    """The rule as people read it."""
    return (
        f"average precision above the champion's in at least {rule.confidence:.0%} of {rule.bootstrap_rounds:,} paired "
        f"day-block bootstrap rounds, and no typology with {rule.least_anomalies} anomalies or more whose recall at "
        f"the champion's number of alerts falls by more than {rule.largest_typology_loss:g}"
    )


def decide(found: Comparison, rule: PromotionParams) -> Decision:
    """Hold a comparison of champion and candidate against the rule."""
    gain = found.metric("average_precision")
    surely = gain.share_above is not None and gain.share_above >= rule.confidence
    conditions = [(surely, _gain_in_words(gain, rule))]
    not_judged = []
    for one in found.typologies:
        if one["change"] is None:
            continue
        if one["n"] < rule.least_anomalies:
            not_judged.append(f"{one['typology']} ({one['n']} anomalies)")
            continue
        kept = one["change"] >= -rule.largest_typology_loss - 1e-12
        told = f"recall of {one['typology']} {one['recall_before']:.3f} before, {one['recall_after']:.3f} after"
        conditions.append((kept, told + ("" if kept else f": falls by more than {rule.largest_typology_loss:g}")))
    failed = tuple(told for holds, told in conditions if not holds)
    passed = tuple(told for holds, told in conditions if holds)
    return Decision(REFUSED if failed else PROMOTED, failed + passed, tuple(not_judged))


def _gain_in_words(gain: compare.Difference, rule: PromotionParams) -> str:
    if gain.share_above is None or gain.before is None or gain.after is None:
        return "average precision cannot be compared: no anomaly is known in the test"
    return (
        f"average precision {gain.before:.4f} before, {gain.after:.4f} after: above in {gain.share_above:.1%} of "
        f"rounds, {rule.confidence:.0%} are asked for"
    )


def _tags(found: Comparison, decision: Decision, rule: PromotionParams, by: str, now: datetime) -> dict[str, str]:
    return {
        "promotion.verdict": decision.verdict,
        "promotion.by": by,
        "promotion.at": now.isoformat(timespec="seconds"),
        "promotion.rule": rule_in_words(rule),
        "promotion.against": found.before.told,
        "promotion.figures": json.dumps([one.as_dict() for one in found.metrics], sort_keys=True)[:4000],
        "promotion.reasons": "; ".join(decision.reasons)[:4000],
    }


def _facts(found: Comparison, decision: Decision, rule: PromotionParams, by: str) -> Mapping[str, Any]:
    """What the run log keeps of a decision."""
    gain = found.metric("average_precision")
    return {
        "verdict": decision.verdict,
        "by": by,
        "version": found.after.version.number if found.after.version else None,
        "champion_before": found.before.version.number if found.before.version else None,
        "rule": asdict(rule),
        "average_precision": gain.as_dict(),
        "reasons": list(decision.reasons),
        "not_judged": list(decision.not_judged),
    }


def _who() -> str:
    try:
        got = subprocess.run(
            ["git", "config", "user.name"],  # noqa: S607  # the user's own git
            cwd=paths.project_root(),
            capture_output=True,
            text=True,
            check=False,
        )
        return got.stdout.strip() or getpass.getuser()
    except OSError:
        return getpass.getuser()


def main(name: str, by: str | None = None) -> int:
    """Judge a version; move `champion` to it, or refuse with the reason (exit code 1). Both are written down."""
    rule = params.load(StudiesParams).promotion
    candidate, champion = tracking.version(name), tracking.version(tracking.FIRST_ALIAS)
    if candidate.number == champion.number:
        raise ReperformError(
            f"Version {candidate.number} is the champion already.",
            expected="another version",
            got=name,
            fix="`python -m reperform compare champion challenger` shows whether there is a better one",
        )
    found = compare.compared(compare.side(str(champion.number)), compare.side(str(candidate.number)))
    decision, who, now = decide(found, rule), by or _who(), datetime.now(UTC)
    log = paths.data("audit") / audit.LOG
    audit.read_log(log)  # a broken log must stop this before anything is moved
    tags = _tags(found, decision, rule, who, now)
    if decision.is_promoted:
        tracking.make_champion(candidate, tags)
    else:
        tracking.tag_version(candidate, tags)
    audit.append(log, EVENT, _facts(found, decision, rule, who), now=now)
    print("\n".join(lines(found, decision, rule)))
    return 0 if decision.is_promoted else 1


def lines(found: Comparison, decision: Decision, rule: PromotionParams) -> list[str]:
    """The decision in a few lines."""
    told = [f"{found.after.told}: {decision.verdict}", f"rule: {rule_in_words(rule)}"]
    told += [f"  {reason}" for reason in decision.reasons]
    told += [f"  not judged, too few anomalies: {', '.join(decision.not_judged)}"] if decision.not_judged else []
    return told
