"""Load frames into tables in one transaction: all of it arrives, or nothing changes.

A new table is filled by COPY at once. A table that exists already gets its rows through a temporary one: rows that
differ are changed, new ones added, rows that are gone deleted, so that an unchanged table keeps its bytes and a second
run changes nothing. Before the commit the database's own counts and sums are compared with those of the frames.
"""

import hashlib
import json
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field
from decimal import Context, Decimal, localcontext
from importlib.resources import files
from typing import Any

import polars as pl
import psycopg
from psycopg import errors
from psycopg.sql import SQL, Composed, Identifier, Literal

from reperform.errors import ReperformError
from reperform.export import comments
from reperform.export.catalog import Table, View
from reperform.params import ExportParams

Connection = psycopg.Connection[tuple[Any, ...]]
MARK = "Loaded by Reperform"
LOCK_SECONDS = 60
ROWS_PER_CHUNK = 20_000
EXACT = Context(prec=1000)  # a float has at most 767 digits; sums of many need a few more


@dataclass(frozen=True)
class Filled:
    """A table with the rows that it is to hold.

    Args:
        table: its name, key and comment.
        frame: the rows; column types decide those in the database.
    """

    table: Table
    frame: pl.DataFrame

    @property
    def types(self) -> dict[str, str]:
        """Column name to PostgreSQL type."""
        return {name: self.table.type_of(name, dtype) for name, dtype in self.frame.schema.items()}


@dataclass(frozen=True)
class Outcome:
    """What became of one table.

    Args:
        rows: rows that it holds now.
        changed: rows that were added, changed or deleted.
        sums: exact sums of its amounts, the same in the frame and in the database.
        checksum: SHA-256 of all the figures that were compared; it does not depend on the order of rows.
    """

    rows: int
    changed: int
    sums: dict[str, str] = field(default_factory=dict)
    checksum: str = ""


def load(
    connection: Connection, filled: Sequence[Filled], views: Sequence[View], params: ExportParams, *, where: str
) -> dict[str, Outcome]:
    """Bring the schema to what the frames hold, and commit.

    Args:
        connection: its open transaction is used, and ended.
        filled: tables with their rows.
        views: made again after the tables, in this order.
        params: names of the schema and the reader role.
        where: how messages name the database.

    Returns:
        Table name to what became of it.

    Raises:
        ReperformError: when the database refuses or sums differ; then nothing has changed.
    """
    with _explained(where), connection:
        _open_schema(connection, params.db_schema, where)
        outcomes = {one.table.name: _fill(connection, one, views) for one in filled}
        _make_views(connection, views)
        _comment(connection, filled, views)
        _let_read(connection, params)
        for one in filled:
            outcomes[one.table.name] = _reconciled(connection, one, outcomes[one.table.name])
    return outcomes


@contextmanager
def _explained(where: str) -> Iterator[None]:
    try:
        yield
    except psycopg.Error as error:
        raise _refused(error, where) from error


def _refused(error: psycopg.Error, where: str) -> ReperformError:
    advice = {
        errors.InsufficientPrivilege: "give the user CREATE and TEMPORARY on the database (and CREATEROLE, or make "
        "the reader role beforehand), or name another user",
        errors.LockNotAvailable: "wait until the other export or the long query has ended, and run this again",
        errors.DependentObjectsStillExist: "drop the view that depends on it, or set export.db_schema to another name",
        errors.UniqueViolation: "mend the stage that made the table: its key repeats",
        errors.NotNullViolation: "mend the stage that made the table: its key is empty",
        errors.DiskFull: "free some space on the database's disk",
    }
    fix = next((text for kind, text in advice.items() if isinstance(error, kind)), "read the server's log")
    return ReperformError(
        "The database refused the export; nothing in it has changed.",
        expected="every table loaded in one transaction",
        got=" ".join(str(error).split())[:600] or type(error).__name__,
        where=where,
        fix=f"{fix}; then run `python -m reperform export`",
    )


def _open_schema(connection: Connection, schema: str, where: str) -> None:
    """Make the schema, wait for other exports into it, and look names up in it from here on."""
    connection.execute(SQL("SET LOCAL lock_timeout = {}").format(Literal(f"{LOCK_SECONDS}s")))
    connection.execute("SET LOCAL timezone = 'UTC'")
    connection.execute("SET LOCAL default_statistics_target = 10")  # ANALYZE looks at every column: a sample will do
    connection.execute("SELECT pg_advisory_xact_lock(hashtextextended('reperform.export.' || %s, 0))", [schema])
    found = connection.execute(
        "SELECT coalesce(obj_description(oid), ''), (SELECT count(*) FROM pg_class WHERE relnamespace = n.oid)"
        " FROM pg_namespace n WHERE nspname = %s",
        [schema],
    ).fetchone()
    if found and not found[0].startswith(MARK) and found[1]:
        raise ReperformError(
            f"Schema {schema} holds tables that are not Reperform's.",
            expected="a schema of its own",
            got=f"{found[1]} tables, views or indexes of someone else",
            where=where,
            fix="set export.db_schema in conf/export/ to another name and run `make params`",
        )
    if not found:
        connection.execute(SQL("CREATE SCHEMA {}").format(Identifier(schema)))
    connection.execute(SQL("SET LOCAL search_path = {}").format(Identifier(schema)))
    text = f"{MARK}; every row can be loaded again from the project's data/ by `python -m reperform export`."
    connection.execute(SQL("COMMENT ON SCHEMA {} IS {}").format(Identifier(schema), Literal(text)))


def _fill(connection: Connection, one: Filled, views: Sequence[View]) -> Outcome:
    name, key = one.table.name, one.table.key
    _check_key(one)
    shape = _shape(connection, name)
    if shape == (one.types, key):
        return Outcome(one.frame.height, _merge(connection, one))
    dropped = _drop(connection, name, views) if shape else 0
    _create(connection, one, temporary=False)
    # Rows that come with their table in one transaction need no second look by VACUUM.
    _copy(connection, one, Identifier(name), options=", FREEZE")
    connection.execute(SQL("ALTER TABLE {} ADD PRIMARY KEY ({})").format(Identifier(name), _names(key)))
    for columns in one.table.indexes:
        connection.execute(SQL("CREATE INDEX ON {} ({})").format(Identifier(name), _names(columns)))
    connection.execute(SQL("ANALYZE {}").format(Identifier(name)))
    return Outcome(one.frame.height, one.frame.height + dropped)


def _check_key(one: Filled) -> None:
    key = list(one.table.key)
    repeated = one.frame.filter(pl.struct(key).is_duplicated() | pl.any_horizontal(pl.col(key).is_null()))
    if repeated.height:
        raise ReperformError(
            f"Table {one.table.name} has rows that its key does not tell apart.",
            expected=f"every {', '.join(key)} once, and never empty",
            got=str(repeated.select(key).head(3).to_dicts()),
            where=one.table.source,
            fix="mend the stage that made it, and run the stage again",
        )


def _shape(connection: Connection, name: str) -> tuple[dict[str, str], tuple[str, ...]] | None:
    """Columns with their types, and the primary key, of a table that exists."""
    columns = connection.execute(
        "SELECT attname, format_type(atttypid, atttypmod) FROM pg_attribute"
        " WHERE attrelid = to_regclass(%s) AND attnum > 0 AND NOT attisdropped ORDER BY attnum",
        [f'"{name}"'],
    ).fetchall()
    if not columns:
        return None
    key = connection.execute(
        "SELECT attname FROM pg_index JOIN pg_attribute ON attrelid = indrelid AND attnum = ANY (indkey)"
        " WHERE indrelid = to_regclass(%s) AND indisprimary ORDER BY array_position(indkey::int2[], attnum)",
        [f'"{name}"'],
    ).fetchall()
    return {row[0]: row[1] for row in columns}, tuple(row[0] for row in key)


def _drop(connection: Connection, name: str, views: Sequence[View]) -> int:
    """Drop a table whose columns are no longer those of its frame; our views on it are made again afterwards."""
    for view in reversed(views):
        connection.execute(SQL("DROP VIEW IF EXISTS {}").format(Identifier(view.name)))
    rows = connection.execute(SQL("SELECT count(*) FROM {}").format(Identifier(name))).fetchone()
    connection.execute(SQL("DROP TABLE {}").format(Identifier(name)))
    return int(rows[0]) if rows else 0


def _create(connection: Connection, one: Filled, *, temporary: bool) -> None:
    columns = SQL(", ").join(SQL("{} {}").format(Identifier(n), SQL(t)) for n, t in one.types.items())
    if temporary:
        connection.execute(SQL("CREATE TEMPORARY TABLE staging ({}) ON COMMIT DROP").format(columns))
    else:
        connection.execute(SQL("CREATE TABLE {} ({})").format(Identifier(one.table.name), columns))


def _copy(connection: Connection, one: Filled, target: Identifier, options: str = "") -> None:
    """Send a frame as CSV. Floats are written with the fewest digits that give the same float again."""
    statement = SQL("COPY {} FROM STDIN (FORMAT csv{})").format(target, SQL(options))
    with connection.cursor().copy(statement) as copy:
        for start in range(0, one.frame.height, ROWS_PER_CHUNK):
            chunk = one.frame.slice(start, ROWS_PER_CHUNK)
            # Quoted text, bare nulls: so an empty text and no text stay apart.
            copy.write(chunk.write_csv(include_header=False, quote_style="non_numeric", line_terminator="\n"))


def _merge(connection: Connection, one: Filled) -> int:
    """Make the table's rows those of the frame; how many had to be touched."""
    _create(connection, one, temporary=True)
    _copy(connection, one, Identifier("staging"))
    connection.execute("ANALYZE staging")
    merged = connection.execute(_merge_statement(one)).rowcount
    same = SQL(" AND ").join(SQL("s.{0} = t.{0}").format(Identifier(name)) for name in one.table.key)
    gone = connection.execute(
        SQL("DELETE FROM {} t WHERE NOT EXISTS (SELECT FROM staging s WHERE {})").format(
            Identifier(one.table.name), same
        )
    ).rowcount
    connection.execute("DROP TABLE staging")
    if merged + gone:
        connection.execute(SQL("ANALYZE {}").format(Identifier(one.table.name)))
    return merged + gone


def _merge_statement(one: Filled) -> Composed:
    name, key, columns = Identifier(one.table.name), one.table.key, list(one.types)
    rest = [column for column in columns if column not in key]
    same = SQL(" AND ").join(SQL("s.{0} = t.{0}").format(Identifier(column)) for column in key)
    update: Composed = SQL("{}").format(SQL(""))
    if rest:
        old, new = (SQL(", ").join(SQL("{}.{}").format(SQL(a), Identifier(c)) for c in rest) for a in ("t", "s"))
        values = SQL(", ").join(SQL("{0} = s.{0}").format(Identifier(column)) for column in rest)
        update = SQL(" WHEN MATCHED AND ROW({}) IS DISTINCT FROM ROW({}) THEN UPDATE SET {}").format(old, new, values)
    given = SQL(", ").join(SQL("s.{}").format(Identifier(column)) for column in columns)
    insert = SQL(" WHEN NOT MATCHED THEN INSERT ({}) VALUES ({})").format(_names(columns), given)
    return SQL("MERGE INTO {} t USING staging s ON {}{}{}").format(name, same, update, insert)


def _make_views(connection: Connection, views: Sequence[View]) -> None:
    for view in views:
        body = SQL(files("reperform.export").joinpath("sql", f"{view.name}.sql").read_text(encoding="utf-8"))
        name = Identifier(view.name)
        try:
            with connection.transaction():
                connection.execute(SQL("CREATE OR REPLACE VIEW {} AS {}").format(name, body))
        except errors.InvalidTableDefinition:  # other columns than before
            connection.execute(SQL("DROP VIEW {}").format(name))
            connection.execute(SQL("CREATE VIEW {} AS {}").format(name, body))


def _comment(connection: Connection, filled: Sequence[Filled], views: Sequence[View]) -> None:
    """Say what every table, view and column is, from the feature dictionary and `comments`."""
    statements, features = [], _features(filled)
    for kind, name, text in [
        *(("TABLE", one.table.name, f"{one.table.comment} From {one.table.source}.") for one in filled),
        *(("VIEW", view.name, view.comment) for view in views),
    ]:
        statements.append(SQL("COMMENT ON {} {} IS {}").format(SQL(kind), Identifier(name), Literal(text)))
        columns = connection.execute(
            "SELECT attname FROM pg_attribute WHERE attrelid = to_regclass(%s) AND attnum > 0 AND NOT attisdropped",
            [f'"{name}"'],
        ).fetchall()
        statements += [
            SQL("COMMENT ON COLUMN {}.{} IS {}").format(
                Identifier(name), Identifier(column), Literal(comments.of(name, column, features))
            )
            for (column,) in columns
        ]
    connection.execute(SQL("; ").join(statements))


def _features(filled: Sequence[Filled]) -> dict[str, str]:
    """Feature name to what it says, from the feature dictionary among the tables."""
    frame = next((one.frame for one in filled if one.table.name == "feature_dictionary"), None)
    if frame is None:
        return {}
    return {row["name"]: f"KPI {row['kpi_number']}: {row['formula']} [{row['unit']}]" for row in frame.to_dicts()}


def _let_read(connection: Connection, params: ExportParams) -> None:
    """Let the reader role read everything in the schema, and do nothing else."""
    role, schema = Identifier(params.reader_role), Identifier(params.db_schema)
    exists = connection.execute("SELECT FROM pg_roles WHERE rolname = %s", [params.reader_role]).rowcount
    if not exists:
        connection.execute(SQL("CREATE ROLE {} LOGIN").format(role))
        connection.execute(SQL("GRANT {} TO CURRENT_USER").format(role))  # so that the loader may look through its eyes
        connection.execute(SQL("ALTER ROLE {} SET search_path = {}").format(role, schema))
        connection.execute(SQL("ALTER ROLE {} SET default_transaction_read_only = on").format(role))
    for statement in (
        "REVOKE ALL ON ALL TABLES IN SCHEMA {schema} FROM PUBLIC, {role}",
        "REVOKE ALL ON SCHEMA {schema} FROM PUBLIC, {role}",
        "GRANT USAGE ON SCHEMA {schema} TO {role}",
        "GRANT SELECT ON ALL TABLES IN SCHEMA {schema} TO {role}",
    ):
        connection.execute(SQL(statement).format(role=role, schema=schema))


def _reconciled(connection: Connection, one: Filled, outcome: Outcome) -> Outcome:
    """The outcome with its sums, when the database counts and sums as the frame does.

    Raises:
        ReperformError: naming the table and what differs; the transaction is then rolled back.
    """
    expected: dict[str, Any] = {"rows": one.frame.height}
    parts: list[Composed | SQL] = [SQL("count(*)")]
    for name, kind in one.types.items():
        for label, expression in FIGURES[kind].items():
            parts.append(SQL(expression).format(Identifier(name)))
            expected[f"{name}: {label}"] = _figure(one.frame[name], kind, label)
    row = connection.execute(SQL("SELECT {} FROM {}").format(SQL(", ").join(parts), Identifier(one.table.name)))
    got = dict(zip(expected, row.fetchone() or (), strict=True))
    wrong = [name for name, value in expected.items() if got[name] != value]
    if wrong:
        raise ReperformError(
            f"Table {one.table.name} does not hold what was sent; nothing has been changed.",
            expected=", ".join(f"{name} {expected[name]}" for name in wrong[:3]),
            got=", ".join(f"{name} {got[name]}" for name in wrong[:3]),
            where=f"table {one.table.name}",
            fix="run `python -m reperform export` again; if it stays, report it with this message",
        )
    sums = {name: _plain(expected[f"{name}: sum"]) for name, kind in one.types.items() if kind == "numeric"}
    figures = json.dumps({name: str(value) for name, value in expected.items()}, sort_keys=True)
    return Outcome(outcome.rows, outcome.changed, sums, hashlib.sha256(figures.encode()).hexdigest())


# Figures that do not depend on the order of rows: sums of floats would, so floats give their extremes.
SUM = {"known": "count({})", "sum": "coalesce(sum({}), 0)"}
EXTREMES = {"known": "count({})", "least": "min({})", "greatest": "max({})"}
FIGURES: Mapping[str, Mapping[str, str]] = {
    "numeric": SUM,
    "bigint": SUM,
    "double precision": {
        "known": "count({})",
        "least": "min({0}) FILTER (WHERE {0} <> 'NaN')",
        "greatest": "max({0}) FILTER (WHERE {0} <> 'NaN')",
    },
    "boolean": {"known": "count({})", "true": "count(*) FILTER (WHERE {})"},
    "text": {"known": "count({})", "bytes": "coalesce(sum(octet_length({})), 0)"},
    "jsonb": {"known": "count({})"},
    "date": EXTREMES,
    "timestamp with time zone": EXTREMES,
}


def _figure(column: pl.Series, kind: str, label: str) -> Any:
    known = column.drop_nulls()
    if label == "known":
        return known.len()
    if label == "true":
        return int(known.sum())
    if label == "bytes":
        return int(known.str.len_bytes().sum())
    if label == "sum":
        return exact_sum(known) if kind == "numeric" else int(known.cast(pl.Int128).sum())
    if kind == "double precision":
        known = known.drop_nans()
    return known.min() if label == "least" else known.max()


def exact_sum(amounts: pl.Series) -> Decimal:
    """The sum of the decimal numbers that the floats stand for, without rounding."""
    with localcontext(EXACT):
        return sum(map(Decimal, map(str, amounts.to_list())), Decimal(0))


def _plain(value: Decimal) -> str:
    return f"{EXACT.normalize(value):f}"


def _names(columns: Sequence[str]) -> Composed:
    return SQL(", ").join(map(Identifier, columns))
