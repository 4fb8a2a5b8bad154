"""Reading filings against Arelle's own load of the same file: at most 1.3 times its time.

"Load" is what Arelle does alone: discover the taxonomy and validate the instance's values. Ours reads the file twice
(once strictly, before Arelle), loads it, runs formulas, evaluates every sum in both modes, and writes rows.

    python benchmarks/ingest_xbrl.py [raw folder with FERC's filings]
"""

import gc
import os
import sys
import tempfile
import time
from collections.abc import Callable
from contextlib import chdir
from datetime import date
from pathlib import Path
from typing import Any

from reperform.ingest import taxonomies, xbrl
from reperform.ingest.xbrl_rows import Filing, Task

RAW = Path(__file__).resolve().parents[2] / "shared" / "data" / "xbrl"
# Small, middle and large, one of each form.
FILES = (
    "ferc/ferc60-xbrl-2021/WEC_Business_Services_LLC_form60_Q4_1650632532.xbrl",
    "ferc/ferc6-xbrl-2021/ExxonMobil_Pipeline_Company_LLC_form6_Q4_1679515725.xbrl",
    "ferc/ferc1-xbrl-2021/The_Narragansett_Electric_Company_form1_Q4_1650030119.xbrl",
)
MANY = "ferc/ferc60-xbrl-2022/*.xbrl"
REPEATS = 4
LIMIT = 1.3


def arelle_alone(path: Path, cache: Path) -> int:
    """Facts of a file that Arelle loads, without anything else."""
    from arelle.api.Session import Session  # noqa: PLC0415
    from arelle.logging.handlers.StructuredMessageLogHandler import StructuredMessageLogHandler  # noqa: PLC0415
    from arelle.RuntimeOptions import RuntimeOptions  # noqa: PLC0415

    options = RuntimeOptions(
        entrypointFile=str(path),
        internetConnectivity="offline",
        keepOpen=True,
        disablePersistentConfig=True,
        cacheDirectory=str(cache.resolve()),
    )
    with Session() as session:
        session.run(options, logHandler=StructuredMessageLogHandler())
        facts = len(session.get_models()[0].factsInInstance)
    gc.collect()
    return facts


def ours(path: Path, cache: Path) -> int:
    filing = xbrl.read_filing(Task(path, cache, "f", "e", None, date(2021, 12, 31)))
    if not isinstance(filing, Filing):
        raise TypeError(f"{path.name} is refused: {filing}")
    return filing.facts_read


def seconds(work: Callable[[], Any]) -> tuple[float, Any]:
    start = time.perf_counter()
    answer = work()
    return time.perf_counter() - start, answer


def best(path: Path, cache: Path) -> tuple[float, float, int]:
    """Best seconds of both, run by turns so that both meet the same load of the machine, and the facts of both."""
    alone, read, facts = [], [], 0
    for _ in range(REPEATS):
        spent, expected = seconds(lambda: arelle_alone(path, cache))
        alone.append(spent)
        spent, facts = seconds(lambda: ours(path, cache))
        read.append(spent)
        if facts != expected:
            raise ValueError(f"{path.name}: {facts} facts read, {expected} loaded")
    return min(alone), min(read), facts


def source(**more: Any) -> dict[str, Any]:
    """FERC's filings as conf/ingest/ferc.yaml describes them, without required lines."""
    return {
        "kind": "xbrl",
        "receipts": {"ferc_feeds": "ferc/*/rssfeed"},
        "taxonomies": [{"files": "taxonomies/*.zip", "host": "https/eCollection.ferc.gov"}],
        "cache": ["cache"],
    } | more


def many(raw: Path, processes: int) -> tuple[float, float]:
    """Seconds to read many filings, and to read them again when nothing has changed."""
    with tempfile.TemporaryDirectory() as folder, chdir(folder):
        Path("dvc.yaml").touch()
        first, _ = seconds(lambda: xbrl.read("ferc", source(files=MANY), raw, processes=processes))
        again, _ = seconds(lambda: xbrl.read("ferc", source(files=MANY), raw, processes=processes))
    return first, again


def section(raw: Path = RAW) -> bool:
    """Print the table; whether every file keeps the limit."""
    if not raw.is_dir():
        print(f"xbrl: no filings at {raw}; nothing measured")
        return True
    packages = [
        taxonomies.Package(path, "https/eCollection.ferc.gov") for path in sorted((raw / "taxonomies").glob("*.zip"))
    ]
    ratios = []
    with tempfile.TemporaryDirectory() as folder:
        cache = taxonomies.gather(packages, [raw / "cache"], Path(folder))
        ours(raw / FILES[0], cache)  # imports Arelle
        print(f"load of the machine {os.getloadavg()[0]:.1f}; best of {REPEATS} by turns")
        print("| filing | MB | facts | Arelle alone, s | read, s | ratio | facts per s |")
        print("| --- | --- | --- | --- | --- | --- | --- |")
        for name in FILES:
            alone, read, facts = best(raw / name, cache)
            ratios.append(read / alone)
            size, rate = (raw / name).stat().st_size / 1e6, facts / read
            row = f"{size:.1f} | {facts} | {alone:.2f} | {read:.2f} | {ratios[-1]:.2f} | {rate:.0f}"
            print(f"| {Path(name).name[:40]} | {row} |")
    for processes in (1, 2):
        first, again = many(raw, processes)
        print(f"ten filings with {processes} process(es): {first:.1f} s; again, unchanged: {again:.1f} s")
    print(f"largest ratio {max(ratios):.2f}, limit {LIMIT}")
    return max(ratios) <= LIMIT


if __name__ == "__main__":
    sys.exit(0 if section(Path(sys.argv[1]) if len(sys.argv) > 1 else RAW) else 1)
