"""Plant what feeds get wrong, one kind at a time, and see whether ingest and validate say so.

The checks do not know that they are tested: their thresholds come from conf/validate/, the files go through the same
ingest and validate as every run.
"""

import os
import shutil
import tempfile
from collections.abc import Iterator, Sequence
from contextlib import chdir, contextmanager
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any

import numpy as np
from omegaconf import OmegaConf

from reperform import ingest, params, paths, simulate, tables, validate
from reperform.defects.kinds import DEFECTS, Defect
from reperform.defects.raw_tables import World
from reperform.errors import ReperformError
from reperform.params import IngestParams, SimulateParams, ValidateParams

# Five institutions in five dialects; large enough that a day of each has some rows.
SMALL = {"accounts": 280, "transactions": 32_000, "days": 90}
INSTITUTIONS = ("northbank", "lakeside", "harbour", "summit", "castle")
CLEAN_WORLDS = 5
# What is wrong with published data, and may well be said: 32 payments of the handbook are of 0.00.
TRUE_OF_HANDBOOK = ("transactions_contract", "amount '0.0 breaks greater_than(0)'")
RAW = "data/simulate/raw"


@dataclass(frozen=True)
class Verdict:
    """What a run over one raw folder said.

    Args:
        findings: as in quality.json; of a run that stopped, none.
        error: why it stopped, if it did.
    """

    findings: list[dict[str, Any]]
    error: str = ""


@dataclass(frozen=True)
class Outcome:
    """Whether a defect was caught.

    Args:
        defect: which.
        caught: by a check that names the right thing and the right file.
        by: that check.
        where: what it said.
        others: further checks that fired.
    """

    defect: Defect
    caught: bool
    by: str = ""
    where: str = ""
    others: list[str] = field(default_factory=list)


def settings(root: Path, seed: int) -> tuple[SimulateParams, IngestParams]:
    """A small world of the demo's settings, and its sources without filings."""
    world = _conf(root / "conf" / "simulate" / "demo.yaml")
    shares = {name: world["institutions"][name] for name in INSTITUTIONS}
    total = sum(one["share"] for one in shares.values())
    world["institutions"] = {name: one | {"share": one["share"] / total} for name, one in shares.items()}
    sources = _conf(root / "conf" / "ingest" / "demo.yaml")
    wanted = ("rates", "accounts", *INSTITUTIONS, "labels")
    sources |= {"sources": {name: sources["sources"][name] for name in wanted}, "raw": RAW, "processes": 1}
    return (
        params.build(SimulateParams, world | SMALL | {"seed": seed}, "simulate"),
        params.build(IngestParams, sources, "ingest"),
    )


def _conf(path: Path) -> dict[str, Any]:
    content = OmegaConf.to_container(OmegaConf.load(path))
    if not isinstance(content, dict):
        raise ReperformError(
            "Settings are no mapping.", expected="keys and values", where=str(path), fix="mend the file"
        )
    return {str(key): value for key, value in content.items()}


def clean_world(given: SimulateParams, project: Path) -> None:
    """The raw files of a world without defects, in a project of its own."""
    (project / RAW).mkdir(parents=True)
    (project / paths.DVC_FILE).write_text("stages: {}\n", encoding="utf-8")
    made = simulate.simulate(given)
    simulate.deliver(made, given, project / RAW)


def copied(project: Path, target: Path) -> None:
    """The same raw files for another project; what is not changed is not copied."""
    shutil.copytree(project / RAW, target / RAW, copy_function=os.link)
    (target / paths.DVC_FILE).write_text("stages: {}\n", encoding="utf-8")


def judge(project: Path, sources: IngestParams, given: ValidateParams) -> Verdict:
    """Run ingest and validate in a project, and collect what they say."""
    with chdir(project):
        try:
            ingest.run(sources)
            validate.run(given)
        except ReperformError as error:
            return Verdict([], str(error))
        return Verdict(tables.read_json("validate", "quality")["findings"])


def outcome(defect: Defect, file: str, verdict: Verdict) -> Outcome:
    """Whether a check that names the right thing fired on the right file."""
    for one in verdict.findings:
        if one["rule"] in defect.rules and _names(one, file):
            rest = sorted({other["rule"] for other in verdict.findings} - {one["rule"]})
            return Outcome(defect, True, one["rule"], f"{one['file'] or one['source']}: {one['observed']}", rest)
    if verdict.error:
        words = (defect.error, *defect.rules) if defect.error else defect.rules
        told = next((word for word in words if word in verdict.error), None)
        if told and file in verdict.error:
            return Outcome(defect, True, f"the run stops ({told})", verdict.error.replace("\n", " ")[:160])
        return Outcome(defect, False, "", f"the run stops: {verdict.error.splitlines()[0]}")
    return Outcome(defect, False, "", "", sorted({one["rule"] for one in verdict.findings}))


def _names(finding: dict[str, Any], file: str) -> bool:
    """Whether a finding names a file; of a long list it names the first and the last."""
    if not file or file in finding["file"]:
        return True
    ends = finding["file"].split(" (")[0].split(" to ")
    return len(ends) > 1 and ends[0] <= file <= ends[1]


@contextmanager
def _folder(keep: Path | None) -> Iterator[Path]:
    if keep is not None:
        keep.mkdir(parents=True, exist_ok=True)
        yield keep.resolve()
        return
    with tempfile.TemporaryDirectory(prefix="defects-") as name:
        yield Path(name)


def planted(
    root: Path, folder: Path, given: ValidateParams, seed: int, defects: Sequence[Defect] = DEFECTS
) -> Iterator[Outcome]:
    """Plant each defect by itself into a copy of one clean world, and judge the copy.

    Args:
        root: the project whose settings count.
        folder: an empty one to work in.
        given: the thresholds.
        seed: of the world and of the defects.
        defects: which kinds.
    """
    world, sources = settings(root, seed)
    clean_world(world, folder / "clean")
    for number, defect in enumerate(defects):
        project = folder / defect.name
        project.mkdir()
        copied(folder / "clean", project)
        file = defect.plant(World(project / RAW, np.random.default_rng([seed, number])))
        yield outcome(defect, file, judge(project, sources, given))


def false_alarms(
    root: Path, folder: Path, given: ValidateParams, seeds: Sequence[int]
) -> Iterator[tuple[str, Verdict]]:
    """What clean worlds, and the handbook's data where they are, make the checks say: it should be nothing."""
    for seed in seeds:
        world, sources = settings(root, seed)
        project = folder / f"clean-{seed}"
        clean_world(world, project)
        yield f"demo world, seed {seed}", judge(project, sources, given)
    handbook = _conf(root / "conf" / "ingest" / "handbook.yaml")
    raw = (root / handbook["raw"]).resolve()
    if not (raw / "transactions.csv.gz").is_file():
        return
    project = folder / "handbook"
    project.mkdir()
    (project / paths.DVC_FILE).write_text("stages: {}\n", encoding="utf-8")
    sources = replace(params.build(IngestParams, handbook, "ingest"), raw=str(raw), processes=1)
    verdict = judge(project, sources, given)
    rule, seen = TRUE_OF_HANDBOOK
    false = [one for one in verdict.findings if one["rule"] != rule or seen not in one["observed"]]
    told = "" if len(false) == len(verdict.findings) else " (beside its payments of 0.00, which are no false alarm)"
    yield f"handbook{told}", Verdict(false, verdict.error)


def main(seed: int = 1, keep: Path | None = None) -> int:
    """Plant everything, print what was caught and by what, then what clean data made the checks say."""
    root = paths.project_root()
    given = params.load(ValidateParams)
    with _folder(keep.resolve() if keep else None) as folder:
        outcomes = []
        for one in planted(root, folder, given, seed):
            outcomes.append(one)
            print(line(one), flush=True)
        alarms = 0
        for name, verdict in false_alarms(root, folder, given, range(seed, seed + CLEAN_WORLDS)):
            told = [f"{f['rule']} in {f['file'] or f['source']}: {f['observed']}" for f in verdict.findings]
            told += [verdict.error] if verdict.error else []
            alarms += len(told)
            print(f"clean  {name}: {len(told)} findings" + "".join(f"\n       {text}" for text in told), flush=True)
    caught = sum(one.caught for one in outcomes)
    print(f"planted: {len(outcomes)}, caught: {caught}; false alarms on clean data: {alarms}")
    return 0 if caught >= 0.96 * len(outcomes) and not alarms else 1  # 24 of 25


def line(one: Outcome) -> str:
    """One outcome as people read it."""
    verdict = "caught" if one.caught else "MISSED"
    by = f" by {one.by}" if one.caught else ""
    more = f" (also: {', '.join(one.others)})" if one.others else ""
    return f"{verdict} {one.defect.name.replace('_', ' ')} ({one.defect.says}){by} {one.where}{more}".rstrip()
