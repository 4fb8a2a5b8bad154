"""Reading a statement of camt.053 against a bare lxml loop that only counts its entries: at most twice its time.

Ours checks the file, reads every entry into canonical rows and details, and holds balances and references against them.
The bare loop builds each entry's tree, counts it, and forgets it. Two files: one whose entries have two shapes, and one
with fifty shapes, batches, indentation, and references to characters, which a parser has to resolve.

    python benchmarks/ingest_camt.py [megabytes, 60 by default]    # speed
    python benchmarks/ingest_camt.py memory    # peak memory of the stage for 100 MB to 1 GB, written and deleted
"""

import subprocess
import sys
import tempfile
import time
from collections.abc import Callable, Iterator
from pathlib import Path

from lxml import etree

from reperform.ingest import iso20022

SPACE = "urn:iso:std:iso:20022:tech:xsd:camt.053.001.08"
SOURCE = {"kind": "iso20022", "entity_id": "bank"}
LIMIT = 2.0
REPEATS = 4


def party(role: str, i: int, *, address: bool) -> str:
    lines = "<AdrLine>1 Main Street</AdrLine><AdrLine>10115 Berlin</AdrLine>" if address else ""
    return (
        f"<{role}><Pty><Nm>{role} {i % 997}</Nm><PstlAdr><Ctry>DE</Ctry>{lines}</PstlAdr></Pty></{role}>"
        f"<{role}Acct><Id><IBAN>DE89{i % 100_000:018d}</IBAN></Id></{role}Acct>"
    )


def details(i: int, amount: str, *, lines: int = 1, address: bool = False, note: str = "Invoice") -> str:
    remittance = "".join(f"<Ustrd>{note} {i} part {line}</Ustrd>" for line in range(lines))
    return (
        f"<TxDtls><Refs><EndToEndId>E2E-{i:09d}</EndToEndId><UETR>8a562c67-ca16-48ba-b074-{i:012d}</UETR></Refs>"
        f'<Amt Ccy="EUR">{amount}</Amt><RltdPties>{party("Dbtr", i, address=address)}'
        f"{party('Cdtr', i * 7, address=address)}</RltdPties><RmtInf>{remittance}</RmtInf></TxDtls>"
    )


def entry(i: int, parts: str, amount: str, side: str) -> str:
    return (
        f'<Ntry><NtryRef>T{i:09d}</NtryRef><Amt Ccy="EUR">{amount}</Amt><CdtDbtInd>{side}</CdtDbtInd><Sts><Cd>BOOK</Cd>'
        "</Sts><BookgDt><DtTm>2025-04-01T12:00:00+02:00</DtTm></BookgDt><ValDt><Dt>2025-04-01</Dt></ValDt>"
        f"<AcctSvcrRef>AS{i:09d}</AcctSvcrRef><BkTxCd><Domn><Cd>PMNT</Cd><Fmly><Cd>RCDT</Cd><SubFmlyCd>ESCT</SubFmlyCd>"
        f"</Fmly></Domn></BkTxCd><NtryDtls>{parts}</NtryDtls></Ntry>\n"
    )


def plain(i: int) -> str:
    amount = f"{i % 9999 + 1}.{i % 100:02d}"
    return entry(i, details(i, amount), amount, "CRDT" if i % 3 else "DBIT")


def mixed(i: int) -> str:
    amount = f"{i % 9999 + 1}.00"
    if i % 20 == 0:
        return entry(i, "".join(details(i + k, amount) for k in range(3)), f"{3 * (i % 9999 + 1)}.00", "CRDT")
    note = "Smith &amp; Sons" if i % 17 == 0 else "Invoice"
    one = entry(i, details(i, amount, lines=i % 5 + 1, address=i % 2 == 0, note=note), amount, "DBIT")
    one = one if i % 3 else one.replace("<ValDt><Dt>2025-04-01</Dt></ValDt>", "")
    return one.replace("><", ">\n    <") if i % 7 < 5 else one


def written(path: Path, made: Callable[[int], str], megabytes: float) -> Path:
    with path.open("w", encoding="utf-8") as stream:
        stream.write(
            f'<?xml version="1.0" encoding="UTF-8"?>\n<Document xmlns="{SPACE}"><BkToCstmrStmt><GrpHdr><MsgId>M1'
            "</MsgId><CreDtTm>2025-04-01T23:30:00+02:00</CreDtTm></GrpHdr><Stmt><Id>S1</Id><Acct><Id><IBAN>DE1</IBAN></Id></Acct>\n"
        )
        size, i = 0, 0
        while size < megabytes * 1e6:
            size += stream.write(made(i))
            i += 1
        stream.write("</Stmt></BkToCstmrStmt></Document>")
    return path


def bare(path: Path) -> int:
    n = 0
    for _, element in etree.iterparse(str(path), events=("end",), tag=f"{{{SPACE}}}Ntry"):
        n += 1
        element.clear()
        while element.getprevious() is not None:
            del element.getparent()[0]
    return n


def ours(path: Path) -> int:
    got = iso20022.read("bank", {**SOURCE, "files": path.name}, path.parent, processes=1)
    if got.unreadable or got.quarantine.height:
        raise ValueError(f"{path.name} was not read as it should be")
    return int(got.counts["entries"])


def best(path: Path) -> tuple[float, float, int]:
    """Best seconds of both, run by turns so that both meet the same load of the machine, and the entries of both."""
    spent: dict[Callable[[Path], int], list[float]] = {bare: [], ours: []}
    found: dict[Callable[[Path], int], int] = {}
    for _ in range(REPEATS):
        for work, seconds in spent.items():
            start = time.perf_counter()
            found[work] = work(path)
            seconds.append(time.perf_counter() - start)
    if found[bare] != found[ours]:
        raise ValueError(f"{found[ours]} entries read, {found[bare]} counted")
    return min(spent[bare]), min(spent[ours]), found[ours]


def camt(megabytes: float = 60) -> Iterator[tuple[str, float, float, int]]:
    """Name, best seconds of the bare loop, best seconds of ours, and entries, of each file."""
    with tempfile.TemporaryDirectory() as folder:
        for made in (plain, mixed):
            path = written(Path(folder) / f"{made.__name__}.xml", made, megabytes)
            yield made.__name__, *best(path)


STAGE = """import re, resource, threading, time
from pathlib import Path
from reperform import ingest, params
own, done = [0.0], threading.Event()
def watch():
    while not done.wait(0.02):
        own.append(int(re.search(r"RssAnon:\\s+(\\d+)", Path("/proc/self/status").read_text())[1]) / 1024)
source = {"kind": "iso20022", "files": "a.xml", "entity_id": "bank"}
given = {"raw": "raw", "sources": {"bank": source}, "on_unreadable_file": "stop", "processes": 1}
given = params.build(params.IngestParams, given, where="benchmark")
before, start = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 1024, time.perf_counter()
threading.Thread(target=watch, daemon=True).start()
one = ingest.run(given)["sources"]["bank"]
done.set()
print(f"{one['rows_out']:,} transactions, {time.perf_counter() - start:.1f} s, peak {max(own):.0f} MB of its own, "
      f"{resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 1024:.0f} MB with pages of files "
      f"({before:.0f} MB before the first)")
"""


def memory() -> None:
    """Peak memory of the whole stage, each file in a process of its own; then with nothing new."""
    with tempfile.TemporaryDirectory() as folder:
        project = Path(folder)
        (project / "dvc.yaml").write_text("stages: {}\n")
        (project / "raw").mkdir()
        for megabytes in (100, 300, 1000):
            written(project / "raw" / "a.xml", plain, megabytes)
            for state in ("new", "read before"):
                told = subprocess.run(
                    [sys.executable, "-c", STAGE], capture_output=True, text=True, check=True, cwd=project
                )
                print(f"{megabytes} MB, {state}: {told.stdout.strip()}", flush=True)


def main() -> None:
    if sys.argv[1:] == ["memory"]:
        memory()
        return
    slowest = 0.0
    for name, alone, read, entries in camt(float(sys.argv[1]) if len(sys.argv) > 1 else 60):
        slowest = max(slowest, read / alone)
        print(f"{name}: {entries:,} entries; bare loop {alone:.2f} s, ours {read:.2f} s: {read / alone:.2f} times")
    print(f"at most {LIMIT} times: {'yes' if slowest <= LIMIT else 'NO'}")
    sys.exit(slowest > LIMIT)


if __name__ == "__main__":
    main()
