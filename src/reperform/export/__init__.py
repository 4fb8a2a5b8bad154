"""Load the results into PostgreSQL. The only folder that imports psycopg."""

import time
from collections.abc import Mapping
from typing import Any

from reperform import params, paths, tables
from reperform.export import catalog, loading, server
from reperform.export.loading import Outcome
from reperform.params import ExportParams, TrainParams


def receipt(outcomes: Mapping[str, Outcome], settings: ExportParams) -> dict[str, Any]:
    """What the database holds, and nothing on where or when: equal results give equal bytes."""
    sources = {table.name: table.source for table in catalog.TABLES}
    return {
        "schema": settings.db_schema,
        "reader_role": settings.reader_role,
        "features_of": settings.features_of,
        "tables": {
            name: {"rows": one.rows, "source": sources[name], "sums": one.sums, "sha256": one.checksum}
            for name, one in outcomes.items()
        },
        "views": [view.name for view in catalog.VIEWS],
    }


def run(settings: ExportParams) -> dict[str, Any]:
    """Load every table into the embedded or the configured database, and write `data/export/receipt.json`."""
    root, started = paths.project_root(), time.monotonic()
    filled = [loading.Filled(table, frame) for table, frame in catalog.frames(settings, params.load(TrainParams))]
    with server.reached(root) as address, server.connect(address) as connection:
        outcomes = loading.load(connection, filled, catalog.VIEWS, settings, where=address.shown)
    rows, changed = (sum(getattr(one, part) for one in outcomes.values()) for part in ("rows", "changed"))
    seconds = time.monotonic() - started
    print(f"export: {rows:,} rows in {len(outcomes)} tables, {changed:,} of them new or changed ({seconds:.1f} s)")
    document = receipt(outcomes, settings)
    tables.write_json(document, "export", "receipt")
    return document
