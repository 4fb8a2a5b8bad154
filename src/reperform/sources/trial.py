"""A map at work on a sample: the real ingest and the real rules of validate, over the first records of each file.

Ingest runs as it is, in a temporary project whose raw folder holds the shortened files.
"""

import re
import shutil
import tempfile
from collections.abc import Mapping
from contextlib import chdir
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any

import polars as pl
from omegaconf import OmegaConf
from omegaconf.errors import OmegaConfBaseException
from polars.exceptions import PolarsError
from yaml import YAMLError

from reperform import ingest, params, paths, severity, tables, validate, validity
from reperform.errors import ReperformError, nearest
from reperform.ingest.column_map import TableSource, table_source
from reperform.ingest.source import matching
from reperform.params import IngestParams, ValidateParams
from reperform.sources import sample

MOST_FILES = 3
MOST_BYTES_WHOLE = 64 * 1024 * 1024
MOST_PARENT_ROWS = 200_000  # of accounts, labels and rates, which rules look up for every transaction
MOST_FILES_OF_PARENTS = 50
ABOUT_ACCOUNTS = ("account_known", "account_of_entity")
NAME = re.compile(r"[A-Za-z0-9][A-Za-z0-9_-]*")
_COMMENT = re.compile(r"(?:^|\s)#.*$")
_UNANSWERED = re.compile(r"[:{,\[]\s*\"?TODO\"?\s*(?:$|[,}\]])")


@dataclass(frozen=True)
class Tried:
    """What of a source was tried.

    Args:
        files: the files of which a sample was read.
        others: how many files were not looked at.
        is_whole: whether the sample is all there is.
        note: why it was not tried, if it was not.
    """

    files: tuple[str, ...] = ()
    others: int = 0
    is_whole: bool = False
    note: str = ""


@dataclass(frozen=True)
class Trial:
    """What a map makes of a sample.

    Args:
        name: of the map.
        base_currency: of `amount_base`.
        tried: by source.
        receipt: of ingest, by source: records in, rows out, left out, refused by rule.
        tables: the canonical tables.
        quarantine: what ingest refuses, as `schemas.QUARANTINE`.
        checked: the tables after the rules of validate.
        outside: labels about transactions that are not among the rows that were read.
        not_judged: rules that a sample cannot judge, with the reason.
    """

    name: str
    base_currency: str
    tried: Mapping[str, Tried]
    receipt: Mapping[str, Mapping[str, Any]]
    tables: Mapping[str, pl.DataFrame] = field(repr=False)
    quarantine: pl.DataFrame = field(repr=False)
    checked: Mapping[str, validate.Checked] = field(repr=False)
    outside: int = 0
    not_judged: Mapping[str, str] = field(default_factory=dict)

    @property
    def files_refused(self) -> int:
        """How many files could not be read at all."""
        return sum(sum(one.get("files_refused", {}).values()) for one in self.receipt.values())


def map_file(name: str) -> Path:
    """The file of a map: `NAME` is `conf/ingest/NAME.yaml`, and nothing outside that folder.

    Raises:
        ReperformError: for a name that is none, or one without a file (naming the nearest).
    """
    folder = paths.project_root() / "conf" / "ingest"
    path = folder / f"{name}.yaml"
    if not NAME.fullmatch(name) or not path.is_file():
        known = sorted(one.stem for one in folder.glob("*.yaml"))
        raise ReperformError(
            f"There is no map {name!r}.",
            expected="a file in conf/ingest/",
            got="none",
            where=f"conf/ingest/{name}.yaml",
            fix=f"{nearest(name, known)}; or draft one with `python -m reperform sources suggest FILE --write "
            f"conf/ingest/{name}.yaml`",
        )
    return path


def load(name: str) -> IngestParams:
    """A map as ingest would get it, once every TODO in it is answered.

    Raises:
        ReperformError: for an unanswered TODO (naming its lines), broken YAML, or a map that ingest would refuse.
    """
    path = map_file(name)
    text = path.read_text(encoding="utf-8")
    where = f"conf/ingest/{name}.yaml"
    questions = open_questions(text)
    if questions:
        raise ReperformError(
            "The draft still asks something.",
            expected="an answer in place of every TODO",
            got="; ".join(questions),
            where=where,
            fix="the comment above each line says what is asked; answer it, then run this again",
        )
    try:
        content = OmegaConf.to_container(OmegaConf.create(text), resolve=True)
    except (OmegaConfBaseException, YAMLError, ValueError) as error:
        raise ReperformError(
            "The map is not valid YAML.", got=str(error), where=where, fix="mend the line that is named"
        ) from error
    given: IngestParams = params.build(IngestParams, content, where)
    return given


def open_questions(text: str) -> list[str]:
    """The lines of a map with a TODO in place of a value; a TODO in a comment is only a remark."""
    lines = ((number, _COMMENT.sub("", line)) for number, line in enumerate(text.split("\n"), 1))
    return [f"line {number}: {line.strip()}" for number, line in lines if _UNANSWERED.search(line)]


def rules() -> tuple[dict[str, str], pl.DataFrame]:
    """What validate does by rule, and its limits for amounts. A `stop` is a `quarantine` here: a trial looks on."""
    content = params.raw(paths.project_root() / "conf" / "validate" / "default.yaml")
    given: ValidateParams = params.build(ValidateParams, content, "conf/validate/default.yaml")
    softened = {name: "quarantine" if rule == "stop" else rule for name, rule in severity.of_rules(given.rules).items()}
    return softened, validity.amount_limits(given.amount_limits)


def run(name: str, *, file: Path | None, only: list[str], rows: int) -> Trial:
    """Try a map.

    Args:
        name: of the map in conf/ingest/.
        file: read this file in place of those that the map names.
        only: sources to try; all of them if empty.
        rows: records to read of each file of transactions.

    Raises:
        ReperformError: for a wrong map, a source without files, or a file that cannot be read.
    """
    given = load(name)
    sources, raw = _chosen(given, only), paths.project_root() / given.raw
    by_rule, limits = rules()
    if file is not None:
        sources, raw = _instead(sources, file.resolve())
    with tempfile.TemporaryDirectory(prefix="reperform-") as folder:
        copy = Path(folder)
        tried, shortened = _sampled_all(sources, raw, copy / "raw", rows)
        (copy / paths.DVC_FILE).touch()
        with chdir(copy):
            receipt, read, quarantine = _ingested(replace(given, raw="raw", sources=shortened))
    read, outside = _without_outsiders(read, tried)
    not_judged = _not_judged(sources, tried)
    checked = validate.check_all(read, by_rule | dict.fromkeys(not_judged, "warn"), limits=limits)
    return Trial(name, given.base_currency, tried, receipt, read, quarantine, checked, outside, not_judged)


def _ingested(given: IngestParams) -> tuple[dict[str, Any], dict[str, pl.DataFrame], pl.DataFrame]:
    """Receipt, tables and quarantine of the real stage, run in the project that is the current folder."""
    receipt = ingest.run(replace(given, on_unreadable_file="quarantine"))
    read = {name: tables.read_table("ingest", name) for name in validity.ORDER}
    return dict(receipt["sources"]), read, tables.read_table("ingest", "quarantine")


def _sampled_all(
    sources: Mapping[str, dict[str, Any]], raw: Path, copy: Path, rows: int
) -> tuple[dict[str, Tried], dict[str, dict[str, Any]]]:
    """Shortened files of every source, and the sources with these files in place of their own."""
    copy.mkdir()
    tried: dict[str, Tried] = {}
    shortened: dict[str, dict[str, Any]] = {}
    for name, source in sources.items():
        together = source.get("target", "transactions") == "transactions" or _shares_files(source, sources)
        tried[name], short = _sampled(name, source, raw, copy, rows if together else max(rows, MOST_PARENT_ROWS))
        if short is not None:
            shortened[name] = short
    return tried, shortened


def _not_judged(sources: Mapping[str, Mapping[str, Any]], tried: Mapping[str, Tried]) -> dict[str, str]:
    """Rules that compare a row with rows that a sample may lack."""
    partly = [name for name, one in tried.items() if one.files and not one.is_whole]
    gaps = any(
        len(tried[name].files) > 1 and sources[name].get("target", "transactions") == "transactions" for name in partly
    )
    accounts = any(
        sources[name].get("target") == "accounts" and not _shares_files(sources[name], sources) for name in partly
    )
    found = (
        {"balance_rolls": "only the beginnings of files were read, so rows are missing between them"} if gaps else {}
    )
    return found | (dict.fromkeys(ABOUT_ACCOUNTS, "only some accounts were read") if accounts else {})


def _chosen(given: IngestParams, only: list[str]) -> dict[str, dict[str, Any]]:
    for name in only:
        if name not in given.sources:
            raise ReperformError(
                f"The map has no source {name!r}.",
                expected=f"one of {', '.join(given.sources)}",
                got=name,
                where="--source",
                fix=nearest(name, given.sources),
            )
    return {name: source for name, source in given.sources.items() if not only or name in only}


def _instead(sources: Mapping[str, dict[str, Any]], file: Path) -> tuple[dict[str, dict[str, Any]], Path]:
    """The sources with one file in place of theirs; those that read other files than the transactions are left out."""
    if not file.is_file():
        raise ReperformError(
            "There is no such file.", expected="a file", got="none", where=str(file), fix="check the path"
        )
    targets = {name: source.get("target", "transactions") for name, source in sources.items()}
    main = [name for name, target in targets.items() if target == "transactions"] or list(sources)
    if len(main) > 1:
        raise ReperformError(
            "The file could belong to several sources.",
            expected=f"--source with one of {', '.join(main)}",
            got="none",
            where=str(file),
            fix="say which source the file is tried with",
        )
    meant = sources[main[0]].get("files")
    pattern = sample.literal(file.name)
    return {name: {**s, "files": [pattern]} for name, s in sources.items() if s.get("files") == meant}, file.parent


def _shares_files(source: Mapping[str, Any], sources: Mapping[str, Mapping[str, Any]]) -> bool:
    """Whether a source reads the files of the transactions: then both get the same records."""
    return any(
        other.get("target") == "transactions" and other.get("files") == source.get("files")
        for other in sources.values()
    )


def _sampled(
    name: str, source: dict[str, Any], raw: Path, copy: Path, rows: int
) -> tuple[Tried, dict[str, Any] | None]:
    """The first files of a source, shortened, at the same places below another folder."""
    if source["kind"] == "xbrl":
        return Tried(note="filings are not tried here, their taxonomies take minutes: run `dvc repro ingest`"), None
    patterns = [source["files"]] if isinstance(source["files"], str) else list(source["files"])
    every = matching(name, patterns, raw)
    is_main = source.get("target", "transactions") == "transactions"
    chosen = every[: MOST_FILES if is_main else MOST_FILES_OF_PARENTS]
    whole = [_shortened(path, copy / path.relative_to(raw), name, source, rows) for path in chosen]
    files = tuple(path.relative_to(raw).as_posix() for path in chosen)
    tried = Tried(files, len(every) - len(chosen), is_whole=all(whole) and len(chosen) == len(every))
    return tried, {**source, **_uncompressed(source), "files": [sample.literal(file) for file in files]}


def _uncompressed(source: Mapping[str, Any]) -> dict[str, Any]:
    """Samples of text are written without compression, whatever the file is called."""
    return {"format": {**source.get("format", {}), "compression": "none"}} if source["kind"] == "table" else {}


def _shortened(path: Path, target: Path, name: str, source: Mapping[str, Any], rows: int) -> bool:
    """Write the first records of a file to another place, and say whether these are all."""
    target.parent.mkdir(parents=True, exist_ok=True)
    if path.suffix == ".parquet":
        try:
            lazy = pl.scan_parquet(path, glob=False)
            lazy.head(rows).collect().write_parquet(target)
            return int(lazy.select(pl.len()).collect().item()) <= rows
        except (PolarsError, OSError):
            return _copied(path, target)  # the reader says it better
    if source["kind"] != "table" or sample.is_excel(path):
        return _copied(path, target)
    return _shortened_text(path, target, table_source(name, source), rows)


def _copied(path: Path, target: Path) -> bool:
    if path.stat().st_size > MOST_BYTES_WHOLE:
        raise ReperformError(
            "The file is too large to be tried.",
            expected=f"at most {MOST_BYTES_WHOLE:,} bytes: such files are read whole or not at all",
            got=f"{path.stat().st_size:,} bytes",
            where=str(path),
            fix="give a smaller one with --file, or run `dvc repro ingest`, which reads any size",
        )
    shutil.copyfile(path, target)
    return True


def _shortened_text(path: Path, target: Path, spec: TableSource, rows: int) -> bool:
    most = sample.MOST_BYTES if rows < MOST_PARENT_ROWS else MOST_BYTES_WHOLE
    start = sample.head(path, most)
    encoding = spec.format.encoding
    try:
        text = sample.partly_decoded(start.content, encoding, whole=start.is_whole)
    except UnicodeDecodeError:
        target.write_bytes(start.content)  # the reader says it better, with the place
        return start.is_whole
    header = 0 if spec.format.names else 1
    used, is_whole = sample.first_records(text, spec.format.quote, rows + header, whole=start.is_whole)
    if not is_whole and used.count("\n") <= header:
        raise ReperformError(
            "No row ends in the beginning of the file.",
            expected=f"a line break within {most:,} bytes",
            got="none: a field is that long, or the delimiters or quotes are others",
            where=str(path),
            fix="check `format` in the map, or ask the sender",
        )
    target.write_bytes(used.encode(encoding))
    return is_whole


def _without_outsiders(
    read: Mapping[str, pl.DataFrame], tried: Mapping[str, Tried]
) -> tuple[dict[str, pl.DataFrame], int]:
    """Labels of transactions beyond the sample are no finding: they are counted, and set aside."""
    if all(one.is_whole for one in tried.values()):
        return dict(read), 0
    labels = read["labels"]
    inside = labels.filter(pl.col("transaction_id").is_in(read["transactions"].get_column("transaction_id").implode()))
    return {**read, "labels": inside}, labels.height - inside.height
