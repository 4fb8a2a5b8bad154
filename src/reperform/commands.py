"""What the command line calls. Heavy modules are imported only by the command that needs them."""

import argparse
import importlib
import os
import sys
from collections.abc import Iterator
from contextlib import closing, contextmanager
from typing import Any

from reperform import compose, params, paths, summary
from reperform.stages import Stage

# Set before any heavy library is imported. No telemetry, no progress bars in outputs, no wall-clock dates in figures.
QUIET_ENVIRONMENT = {
    "DO_NOT_TRACK": "1",
    "MLFLOW_DISABLE_TELEMETRY": "true",
    # Threads that wait must sleep: where cores are shared, spinning made boosting four times slower.
    "OMP_WAIT_POLICY": "passive",
    "PYTHONHASHSEED": "0",
    "SOURCE_DATE_EPOCH": "0",
    "TQDM_DISABLE": "1",
    "CUBLAS_WORKSPACE_CONFIG": ":4096:8",
}


def run_stage(arguments: argparse.Namespace) -> int:
    """Run one stage as DVC does: through its notebook where it has one, else its module's `run`."""
    stage: Stage = arguments.stage
    _quiet()
    with _only_one(stage, getattr(arguments, "detector", None)):
        if stage.notebook and not arguments.module:
            from reperform import notebooks  # noqa: PLC0415  # papermill costs a second

            notebooks.execute(stage.notebook)
        else:
            call_module(stage, getattr(arguments, "detector", None))
    return 0


def call_module(stage: Stage, detector: str | None = None) -> Any:
    """Load the stage's parameters and call its `run`, whose annotation names the dataclass that it takes."""
    run = importlib.import_module(f"reperform.{stage.name}").run
    section: Any = params.load(params.SECTIONS[stage.name])
    return run(section, detector) if detector else run(section)


def add_commands(sub: Any) -> None:
    """Commands that are no stages."""
    one = sub.add_parser("params", help="compose params.yaml from conf/")
    one.add_argument("--experiment", default=None, help="a name in conf/experiment/")
    one.add_argument("overrides", nargs="*", help="Hydra overrides such as model.xgboost.max_depth=8")
    one.set_defaults(call=_compose)
    one = sub.add_parser("psql", help="open the exported results in psql, with a role that can only read")
    one.add_argument("-c", dest="statement", help="run one statement and leave")
    one.add_argument("--csv", action="store_true", help="print rows as CSV")
    one.set_defaults(call=_psql)
    one = sub.add_parser("database", help="run a program such as pg_dump on the database that the project uses")
    one.add_argument("words", nargs="+", metavar="command", help="after `--`: the program and its arguments")
    one.set_defaults(call=_database)
    one = sub.add_parser("log", help="show when runs were audited, and check that nobody has changed the log")
    one.set_defaults(call=_log)
    one = sub.add_parser("certify", help="prove that no KPI looks ahead: change what comes after a moment, and compare")
    one.add_argument("--cuts", type=int, default=3, help="moments to compare at (default: 3)")
    one.add_argument("--rows", type=int, default=None, help="draw whole histories of about so many rows for each cut")
    one.add_argument("--seed", type=int, default=0, help="of cuts, samples and changes (default: 0)")
    one.set_defaults(call=_certify)
    one = sub.add_parser("kpi-value", help="measure what each KPI finds alone, and what is lost without it")
    one.add_argument("name", help="of the data, such as demo: a section of docs/kpi-value.md")
    one.set_defaults(call=_kpi_value)
    one = sub.add_parser("kpi-docs", help="write docs/kpis.md from the declarations of all KPIs")
    one.set_defaults(call=_kpi_docs)
    one = sub.add_parser("api-docs", help="write docs/api.md from the OpenAPI document of the scoring service")
    one.set_defaults(call=_api_docs)
    one = sub.add_parser("defects", help="plant what feeds get wrong, and report which kinds ingest and validate catch")
    one.add_argument("--seed", type=int, default=1, help="of the small world and of the defects (default: 1)")
    one.add_argument("--keep", default=None, metavar="DIR", help="keep the spoiled files and what was made of them")
    one.set_defaults(call=_defects)
    one = sub.add_parser("changes", help="say what changed in the data since the last run with other data")
    one.set_defaults(call=_quality_changes)
    _add_studies(sub)
    one = sub.add_parser("serve", help="score transactions over HTTP, as they come")
    one.add_argument("--host", default=None, help="address to listen on (default: params.yaml:serve.host)")
    one.add_argument("--port", type=int, default=None, help="likewise (default: params.yaml:serve.port)")
    one.add_argument("--workers", type=int, default=None, help="processes (default: params.yaml:serve.workers)")
    one.add_argument("--tls", nargs=2, metavar=("CERTIFICATE", "KEY"), default=None, help="speak HTTPS")
    one.set_defaults(call=_serve)
    _add_keys(sub.add_parser("keys", help="give out, list, rotate and revoke API keys of the scoring service"))
    _add_deliveries(sub.add_parser("deliveries", help="list alerts that did not reach a receiver, or send them again"))
    _add_service(sub)
    one = sub.add_parser("summary", help="say what the last run found, and open its report")
    one.set_defaults(call=_summary)
    _add_sources(sub.add_parser("sources", help="describe data of your own: draft a map of a file, and try it"))


def _add_service(sub: Any) -> None:
    one = sub.add_parser("feedback", help="write what people told the service to data/feedback/, for the next run")
    one.set_defaults(call=_feedback)
    one = sub.add_parser("calls", help="say where the service's log of calls ends, keep that, and export it")
    one.add_argument("--to", default=None, metavar="FILE", help="write all entries to this file, for tools/verify.py")
    one.set_defaults(call=_calls)
    one = sub.add_parser("replay-answers", help="compute every answer of the service once more, and compare")
    one.add_argument("--until", type=int, default=None, metavar="SEQUENCE", help="last event (default: the newest)")
    one.set_defaults(call=_replay_answers)


def _add_studies(sub: Any) -> None:
    one = sub.add_parser("heldout", help="train without one typology and test on it, for each: what is found unseen")
    one.add_argument("typologies", nargs="*", help="only these (default: every typology of the test)")
    one.set_defaults(call=_heldout)
    one = sub.add_parser("stability", help="fit detectors again from several seeds, and compare their alerts")
    one.add_argument("--seeds", type=int, default=None, help="how many (default: params.yaml:studies.seeds)")
    one.add_argument("detectors", nargs="*", help="which (default: params.yaml:studies.seeded)")
    one.set_defaults(call=_stability)
    one = sub.add_parser("power", help="inject patterns into your own data: which amounts, tempos, lengths are found")
    one.add_argument("patterns", nargs="*", help="only these (default: every pattern of params.yaml:studies.power)")
    one.set_defaults(call=_power)
    one = sub.add_parser("compare", help="show two versions side by side: metrics, alerts gained and lost")
    for name in ("before", "after"):
        one.add_argument(name, help="MLflow version or alias, git revision, folder of results, or `workspace`")
    one.set_defaults(call=_compare)
    one = sub.add_parser("promote", help="make a version the champion, if the written rule allows it")
    one.add_argument("version", help="an MLflow version or alias, such as challenger")
    one.add_argument("--by", default=None, help="who decides (default: git's user.name)")
    one.set_defaults(call=_promote)


def _add_keys(parser: Any) -> None:
    sub = parser.add_subparsers(dest="action", required=True, metavar="action", title="actions")
    one = sub.add_parser("create", help="make a key; its secret is printed once")
    one.add_argument("name", help="whom it is for")
    one.add_argument("--scopes", default="score,read", help="of score, read, admin (default: score,read)")
    one.add_argument("--days", type=float, default=90, help="how long it lives (default: 90; 0: until it is revoked)")
    one.add_argument("--per-minute", type=int, default=6_000, help="requests that it may send (default: 6000)")
    one.set_defaults(call=_keys)
    one = sub.add_parser("list", help="show all keys, without their secrets")
    one.set_defaults(call=_keys)
    one = sub.add_parser("rotate", help="give a key a new secret; the old one is taken for a while, too")
    one.add_argument("id", help="the key's public part")
    one.add_argument("--grace-hours", type=float, default=24, help="for so long (default: 24; 0 if it has leaked)")
    one.set_defaults(call=_keys)
    one = sub.add_parser("revoke", help="withdraw a key for good")
    one.add_argument("id", help="the key's public part")
    one.set_defaults(call=_keys)


def _add_deliveries(parser: Any) -> None:
    sub = parser.add_subparsers(dest="action", required=True, metavar="action", title="actions")
    one = sub.add_parser("list", help="show what was given up, with the last error")
    one.add_argument("--all", action="store_true", help="show what is still tried, too")
    one.set_defaults(call=_deliveries, ids=[], receiver=None)
    one = sub.add_parser("retry", help="send again what was given up")
    one.add_argument("ids", nargs="*", metavar="ID", help="only these (default: everything that was given up)")
    one.add_argument("--receiver", default=None, help="only what goes to this receiver")
    one.set_defaults(call=_deliveries, all=False)


def _add_sources(parser: Any) -> None:
    sub = parser.add_subparsers(dest="action", required=True, metavar="action", title="actions")
    one = sub.add_parser("list", help="show the maps in conf/ingest/, and whether their files are there")
    one.set_defaults(call=_sources)
    one = sub.add_parser("suggest", help="draft a map from the beginning of a file, saying for each column why")
    one.add_argument("file", help="delimited text, Parquet, Excel or ISO 20022; plain, gzip, zip or zstd")
    one.add_argument("--write", help="write it to conf/ingest/NAME.yaml instead of the terminal")
    one.add_argument("--force", action="store_true", help="replace a file that is there")
    one.set_defaults(call=_sources)
    one = sub.add_parser("check", help="show the first rows that a map gives, and what would be quarantined")
    one.add_argument("name", help="a map: NAME stands for conf/ingest/NAME.yaml")
    one.add_argument("--file", help="try it with this file instead of its own")
    one.add_argument("--source", action="append", default=[], help="try this source alone; may be repeated")
    one.add_argument("--rows", type=int, default=1_000, help="records to read of each file (default: 1000)")
    one.set_defaults(call=_sources)


def _psql(arguments: argparse.Namespace) -> int:
    from reperform.export import shell  # noqa: PLC0415  # psycopg is slow to import

    given = [*(["-c", arguments.statement] if arguments.statement else []), *(["--csv"] if arguments.csv else [])]
    return shell.psql(paths.project_root(), params.load(params.ExportParams), given)


def _database(arguments: argparse.Namespace) -> int:
    from reperform.export import shell  # noqa: PLC0415  # psycopg is slow to import

    return shell.with_address(paths.project_root(), arguments.words)


def _log(_: argparse.Namespace) -> int:
    from reperform import audit  # noqa: PLC0415  # no other command needs it

    print("\n".join(audit.log_lines(audit.read_log(paths.data("audit") / audit.LOG))))
    return 0


def _certify(arguments: argparse.Namespace) -> int:
    from reperform import certify  # noqa: PLC0415  # pulls in the KPIs

    return certify.main(arguments.cuts, arguments.seed, arguments.rows)


def _kpi_value(arguments: argparse.Namespace) -> int:
    from reperform import kpi_value  # noqa: PLC0415  # pulls in KPIs and detectors

    return kpi_value.main(arguments.name, paths.project_root() / "docs")


def _kpi_docs(_: argparse.Namespace) -> int:
    from reperform import kpi_docs  # noqa: PLC0415  # pulls in the KPIs

    return kpi_docs.main(paths.project_root() / "docs")


def _api_docs(_: argparse.Namespace) -> int:
    from reperform.service import api_docs  # noqa: PLC0415  # pulls in FastAPI

    return api_docs.main(paths.project_root() / "docs")


def _defects(arguments: argparse.Namespace) -> int:
    from pathlib import Path  # noqa: PLC0415  # only here

    from reperform import defects  # noqa: PLC0415  # pulls in the whole of ingest

    return defects.main(arguments.seed, Path(arguments.keep) if arguments.keep else None)


def _quality_changes(_: argparse.Namespace) -> int:
    from reperform import quality_changes  # noqa: PLC0415  # no other command needs it

    print(quality_changes.told().rstrip())
    return 0


def _heldout(arguments: argparse.Namespace) -> int:
    _quiet()
    from reperform import heldout  # noqa: PLC0415  # pulls in KPIs and detectors

    return heldout.main(arguments.typologies)


def _stability(arguments: argparse.Namespace) -> int:
    _quiet()
    from reperform import stability  # noqa: PLC0415  # pulls in detectors

    return stability.main(arguments.detectors, arguments.seeds)


def _power(arguments: argparse.Namespace) -> int:
    _quiet()
    from reperform import power  # noqa: PLC0415  # pulls in KPIs and detectors

    return power.main(arguments.patterns)


def _compare(arguments: argparse.Namespace) -> int:
    _quiet()
    from reperform import compare  # noqa: PLC0415  # MLflow costs a second

    return compare.main(arguments.before, arguments.after)


def _promote(arguments: argparse.Namespace) -> int:
    _quiet()
    from reperform import promote  # noqa: PLC0415  # MLflow costs a second

    return promote.main(arguments.version, arguments.by)


def _quiet() -> None:
    for name, value in QUIET_ENVIRONMENT.items():
        os.environ.setdefault(name, value)
    os.chdir(paths.project_root())


def _serve(arguments: argparse.Namespace) -> int:
    _quiet()
    from reperform.service import app  # noqa: PLC0415  # pulls in FastAPI and the models

    tls = (arguments.tls[0], arguments.tls[1]) if arguments.tls else None
    return app.main(arguments.host, arguments.port, arguments.workers, tls)


def _keys(arguments: argparse.Namespace) -> int:
    from reperform.service import database, keys  # noqa: PLC0415  # psycopg is slow to import

    with closing(database.Database(connections=1)) as opened:
        database.prepare(opened)
        return keys.main(opened, arguments)


def _deliveries(arguments: argparse.Namespace) -> int:
    from reperform.service import database, webhooks  # noqa: PLC0415  # psycopg is slow to import

    with closing(database.Database(connections=1)) as opened:
        database.prepare(opened)
        return webhooks.main(opened, arguments.action, arguments.ids, arguments.receiver, every=arguments.all)


def _feedback(_: argparse.Namespace) -> int:
    from reperform.service import database, feedback  # noqa: PLC0415  # psycopg is slow to import

    with closing(database.Database(connections=1)) as opened:
        database.prepare(opened)
        return feedback.main(opened)


def _calls(arguments: argparse.Namespace) -> int:
    from pathlib import Path  # noqa: PLC0415  # only here

    from reperform import audit  # noqa: PLC0415  # no other command needs it
    from reperform.service import calls, database  # noqa: PLC0415  # psycopg is slow to import

    with closing(database.Database(connections=1)) as opened:
        database.prepare(opened)
        return calls.main(opened, paths.data("audit") / audit.LOG, Path(arguments.to) if arguments.to else None)


def _replay_answers(arguments: argparse.Namespace) -> int:
    from reperform.service import database, replay  # noqa: PLC0415  # pulls in the models

    with closing(database.Database(connections=1)) as opened:
        database.prepare(opened)
        return replay.main(opened, params.load(params.ServeParams), arguments.until)


def _summary(_: argparse.Namespace) -> int:
    root = paths.project_root()
    print("\n".join(summary.lines(root)))
    summary.open_report(root)
    return 0


def _sources(arguments: argparse.Namespace) -> int:
    from reperform.sources import cli  # noqa: PLC0415  # pulls in ingest and validate

    if arguments.action == "suggest":
        return cli.suggest(arguments.file, arguments.write, force=arguments.force)
    if arguments.action == "check":
        return cli.check(arguments.name, arguments.file, arguments.source, arguments.rows)
    return cli.listing()


def _compose(arguments: argparse.Namespace) -> int:
    target = compose.write(arguments.experiment or None, tuple(arguments.overrides))
    print(f"composed {target.name}; next: dvc repro")
    return 0


@contextmanager
def _only_one(stage: Stage, detector: str | None) -> Iterator[None]:
    """Hold a lock while a stage runs.

    After `kill -9` of `dvc repro` the stage itself lives on; the next run of the same stage waits until it is gone,
    so that a late write can't land on top of the new one.
    """
    import fcntl  # noqa: PLC0415  # not on every platform; the lock is a refinement there

    folder = paths.project_root() / ".cache" / "locks"
    folder.mkdir(parents=True, exist_ok=True)
    with (folder / f"{stage.name}-{detector or 'all'}.lock").open("w") as lock:
        try:
            fcntl.flock(lock, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError:
            print(f"{stage.name}: an earlier run of this stage is still ending; waiting for it", file=sys.stderr)
            fcntl.flock(lock, fcntl.LOCK_EX)
        yield
