"""A file that was handed in, as rows to score and records refused: ingest's own readers, validate's own rules."""

import hashlib
import json
import re
import tempfile
import zipfile
from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from pathlib import Path, PurePosixPath
from typing import Any, Literal

import polars as pl
import pyarrow as pa
import pyarrow.parquet as pq
from polars.exceptions import PanicException, PolarsError

from reperform import schemas, validate, validity
from reperform.errors import ReperformError, nearest
from reperform.ingest import check_source, iso20022, table
from reperform.ingest.archives import MAGIC, SUFFIXES
from reperform.ingest.column_map import Format
from reperform.ingest.source import FILE, RECORD, SourceResult, UnreadableFileError
from reperform.params import IngestParams, JobsParams, ValidateParams
from reperform.service.refusals import Refusal

FileFormat = Literal["csv", "parquet", "camt.053"]
KINDS = {"csv": "table", "parquet": "table", "camt.053": "iso20022"}
FORMATS = tuple(KINDS)
SUFFIX = {"csv": ".csv", "parquet": ".parquet", "camt.053": ".xml"}
CANONICAL = "canonical"  # Parquet whose columns are canonical already
UNSTORABLE = "text_with_nul"
# What hostile bytes bring about in the readers' libraries. A full disk or memory is no fault of the file.
UNREADABLE = (PolarsError, PanicException, pa.ArrowException, ValueError, zipfile.BadZipFile)
_WILDCARD = re.compile(r"[*?\[\]]+")
_COLUMNS = list(schemas.TRANSACTIONS.columns)
_OWN = ("amount", "direction", "source_file", "source_record")  # described elsewhere, or given by the reader
# Rules that only a service needs say themselves why; these are told in the words of validate.
REASONS = {
    UNSTORABLE: "a text holds no NUL character",
    table.MISSING: "a value that must be there is missing",
    table.UNKNOWN_CURRENCY: "the currency is an ISO 4217 code",
    table.BOTH_SIDES: "an amount goes out or comes in, and not both",
    iso20022.NOT_BOOKED: "an entry is booked; a pending one comes again once it is",
}


@dataclass(frozen=True)
class FileRead:
    """A file after its reading.

    Args:
        rows: as `schemas.TRANSACTIONS`, in order of known_at; `amount_base` is null where the file does not tell it.
        refused: as `schemas.QUARANTINE`.
        records: that the file holds.
        left_out: records that the source's own description leaves out.
    """

    rows: pl.DataFrame
    refused: pl.DataFrame
    records: int
    left_out: int


def description(given: IngestParams, source: str | None, form: str) -> dict[str, Any]:
    """The description by which a file is read.

    Args:
        given: sources, as conf/ingest/ composes them.
        source: a name in it; None for Parquet with canonical columns.
        form: of the file.

    Raises:
        Refusal: 422, for an unknown format or source, and for a source of something else.
    """
    if form not in KINDS:
        raise _wrong("format", f"There is no format {form!r}.", form, FORMATS)
    if source is None and form == "parquet":
        return {"kind": CANONICAL}
    fitting = [name for name, one in given.sources.items() if _fits(one, form)]
    if source not in fitting:
        what = f"There is no source {source!r} of transactions in {form}."
        raise _wrong("source", what, str(source), fitting)
    return dict(given.sources[source])


def _fits(source: Mapping[str, Any], form: str) -> bool:
    return (source["kind"], source.get("target", "transactions")) == (KINDS[form], "transactions")


def _wrong(what: str, problem: str, got: str, known: Iterable[str]) -> Refusal:
    told = ", ".join(known) or "none: no source in conf/ingest/ fits"
    return Refusal(422, f"unknown-{what}", problem, expected=told, got=got, where=what, fix=nearest(got, known))


def file_name(source: Mapping[str, Any], form: FileFormat, job_id: str, beginning: bytes) -> str:
    """How a file would be called below the raw folder: as its source calls files, with the job in place of what varies.

    Some sources take the institution from the folder. What the file is packed with shows in its first bytes.
    """
    files = source.get("files") or [f"file-*{SUFFIX[form]}"]
    pattern = files if isinstance(files, str) else str(files[0])
    parts = [_WILDCARD.sub(job_id[:12], part) for part in PurePosixPath(pattern.lstrip("/")).parts if part != "**"]
    name = "/".join(re.sub(r"[^\w.\-]", "_", part) for part in parts if part not in ("..", ".")) or job_id[:12]
    if form == "parquet":
        return str(PurePosixPath(name).with_suffix(SUFFIX[form]))
    if form == "csv" and source.get("format", {}).get("compression", "auto") == "auto":
        while PurePosixPath(name).suffix.lower() in (*SUFFIXES, ".parquet", ".xlsx"):
            name = str(PurePosixPath(name).with_suffix(""))
        packed = next((kind for kind, magic in MAGIC.items() if beginning.startswith(magic)), None)
        return name + next((suffix for suffix, kind in SUFFIXES.items() if kind == packed), "")
    return name


def read(
    content: Path,
    source: Mapping[str, Any],
    form: FileFormat,
    *,
    job_id: str,
    accounts: Mapping[str, str],
    rules: ValidateParams,
    limits: JobsParams,
) -> FileRead:
    """Read a file and apply validate's rules about transactions.

    Args:
        content: the file, under whatever name.
        source: its description; see `description`.
        form: how it is written.
        job_id: names the file in quarantine and in rows.
        accounts: institution of each account that is known.
        rules: severities and limits of amounts.
        limits: what a file may hold.

    Raises:
        ReperformError: when the file cannot be read at all, or holds too much.
    """
    with tempfile.TemporaryDirectory(prefix="reperform-") as folder:
        raw = Path(folder)
        with content.open("rb") as stream:
            name = file_name(source, form, job_id, stream.read(4))
        (raw / name).parent.mkdir(parents=True, exist_ok=True)
        (raw / name).symlink_to(content.resolve())
        try:
            got = _result(source, form, raw, name, limits)
            return _read(got, name, accounts, rules, limits)
        except UNREADABLE as error:
            raise UnreadableFileError(
                name, "file_malformed", "the file is no readable file of this format.",
                expected=f"a whole file in {form}", got=f"{type(error).__name__}: {error}"[:300],
                fix="check the format, and send the file again",
            ) from error  # fmt: skip


def _read(
    got: SourceResult, name: str, accounts: Mapping[str, str], rules: ValidateParams, limits: JobsParams
) -> FileRead:
    """Rows and refusals of what the reader gave, once it is sure that nothing was lost."""
    for unreadable in got.unreadable:
        raise unreadable
    records, left_out = sum(one.records for one in got.files), sum(got.left_out.values())
    _check_rows(records, name, limits)
    rows, refused = got.tables["transactions"], got.quarantine
    if rows.height + refused.height + left_out != records:
        raise _lost(records, rows.height, refused.height, left_out)
    kept, wrong = ruled(rows.drop(FILE, RECORD), accounts, rules)
    ordered = kept.sort("known_at", "booked_at", "transaction_id")
    return FileRead(ordered, storable(pl.concat([refused, wrong])), records, left_out)


def _result(source: Mapping[str, Any], form: FileFormat, raw: Path, name: str, limits: JobsParams) -> SourceResult:
    """What the reader of ingest makes of the file, within the service's limits."""
    if form == "parquet":
        _check_parquet(raw / name, limits)
    if source["kind"] == CANONICAL:
        source = canonical_map(raw / name, name)
    plain = {**source, "files": [name]}
    check_source("batch-process", plain)
    if plain["kind"] == "iso20022":
        return iso20022.read("batch-process", plain, raw, processes=1)
    given = dict(plain.get("format", {}))
    largest = given.get("max_unpacked_bytes", Format().max_unpacked_bytes)
    plain["format"] = {**given, "max_unpacked_bytes": min(largest, limits.most_unpacked_bytes)}
    _check_single(raw / name, name)
    return table.read("batch-process", plain, raw, processes=1)


def _check_single(path: Path, name: str) -> None:
    """Refuse a zip of several files: each would be a job of its own."""
    if path.suffix.lower() != ".zip" or not zipfile.is_zipfile(path):
        return
    with zipfile.ZipFile(path) as archive:  # a damaged one is told as such
        files = [info for info in archive.infolist() if not info.is_dir()]
    if len(files) != 1:
        raise UnreadableFileError(
            name, "file_several", "the archive holds several files, or none.",
            expected="one file", got=f"{len(files)} files", fix="send each file by itself",
        )  # fmt: skip


def _check_parquet(path: Path, limits: JobsParams) -> None:
    """Refuse a Parquet file by what its end says of it, before anything is unpacked."""
    try:
        told = pq.read_metadata(path)
    except (pa.ArrowException, OSError) as error:
        raise UnreadableFileError(
            path.name, "file_malformed", "the file is no readable Parquet.",
            expected="a whole Parquet file", got=str(error)[:300], fix="send the file again",
        ) from error  # fmt: skip
    unpacked = sum(told.row_group(place).total_byte_size for place in range(told.num_row_groups))
    _check_rows(told.num_rows, path.name, limits)
    if unpacked > limits.most_unpacked_bytes:
        raise _too_much(path.name, f"{limits.most_unpacked_bytes} bytes unpacked", f"{unpacked} bytes")


def _check_rows(records: int, name: str, limits: JobsParams) -> None:
    if records > limits.most_rows:
        raise _too_much(name, f"{limits.most_rows} records", f"{records} records")


def _too_much(name: str, expected: str, got: str) -> UnreadableFileError:
    return UnreadableFileError(
        name, "file_too_large", "the file holds more than the service takes at once.",
        expected=f"at most {expected} (serve.jobs)", got=got, fix="send it in several files",
    )  # fmt: skip


def canonical_map(path: Path, name: str) -> dict[str, Any]:
    """The description of a Parquet file that has canonical columns already; those that may be missing are."""
    there = [column for column in pq.read_schema(path).names if column in _COLUMNS]
    return {
        "kind": "table",
        "target": "transactions",
        "files": [name],
        "times": {"format": "iso", "time_zone": "UTC"},
        "columns": {column: column for column in there if column not in _OWN} | _needed(there),
        "amounts": {"column": "amount", "direction_column": "direction", "in_values": ["in"], "out_values": ["out"]},
    }


def _needed(there: list[str]) -> dict[str, str]:
    """Columns that must be there: the reader says in its words which of them are not."""
    schema = schemas.TRANSACTIONS.columns
    return {n: n for n in _COLUMNS if not schema[n].nullable and n not in (*_OWN, *there, "amount_base")}


def ruled(rows: pl.DataFrame, accounts: Mapping[str, str], given: ValidateParams) -> tuple[pl.DataFrame, pl.DataFrame]:
    """Rows that may be scored, and those that break a rule, as `schemas.QUARANTINE`.

    Args:
        rows: as `schemas.TRANSACTIONS`; `amount_base` may be null.
        accounts: institution of each account that is known.
        given: a `stop` is a `quarantine` here: one bad row must not hold up the others.
    """
    text = [name for name, kind in rows.schema.items() if kind == pl.String]
    has_nul = pl.any_horizontal(pl.col(name).str.contains("\0", literal=True).fill_null(value=False) for name in text)
    clean, unstorable = rows.filter(~has_nul), rows.filter(has_nul)
    severity = {name: "quarantine" if one == "stop" else one for name, one in given.rules.items()}
    parents = {"accounts": _accounts(accounts), "amount_limits": validity.amount_limits(given.amount_limits)}
    # The rate is looked up when the row's turn comes; until then the amount stands in, so that the contract can hold.
    complete = clean.with_columns(amount_base=pl.coalesce("amount_base", "amount"))
    got = validate.check_table("transactions", complete, parents, severity)
    place = ["source_file", "source_record"]
    kept = clean.join(got.clean.select(place), on=place, how="semi", maintain_order="left")
    told = unstorable.select(
        table=pl.lit("transactions"),
        source_file="source_file",
        source_record="source_record",
        rule=pl.lit(UNSTORABLE),
        column=pl.lit(None, pl.String),
        value=pl.lit(None, pl.String),
        row=pl.struct(rows.columns).struct.json_encode(),
    )
    return kept, pl.concat([told, got.refused])


def _accounts(accounts: Mapping[str, str]) -> pl.DataFrame:
    kinds = schemas.polars_schema(schemas.ACCOUNTS)
    frame = pl.DataFrame({"account_id": list(accounts), "entity_id": list(accounts.values())})
    return frame.select(
        (pl.col(name) if name in frame.columns else pl.lit(None)).cast(kind).alias(name) for name, kind in kinds.items()
    )


def storable(refused: pl.DataFrame) -> pl.DataFrame:
    """Refused records as a database can hold them: PostgreSQL's texts have no NUL."""
    return refused.with_columns(pl.col(pl.String).str.replace_all("\0", "␀", literal=True))


def reason_of(rule: str) -> str:
    """What a rule asks for, in one sentence."""
    if rule in REASONS:
        return REASONS[rule]
    if rule in validity.names():
        return validity.meaning(rule)
    return f"the record can be read: {rule.replace('_', ' ')}"


def digest(content_sha256: str, source: str | None, form: str, described: Mapping[str, Any], data_version: str) -> str:
    """A job's id: the same for the same content that is read in the same way on top of the same data."""
    told = json.dumps([content_sha256, source, form, dict(described), data_version], sort_keys=True)
    return hashlib.sha256(told.encode()).hexdigest()


def _lost(records: int, rows: int, refused: int, left_out: int) -> ReperformError:
    return ReperformError(
        "The counts of the file do not add up.",
        expected=f"{records} records",
        got=f"{rows} rows + {refused} refused + {left_out} left out",
        where="reading",
        fix="report this: a reader has lost or doubled a record; nothing was scored",
    )
