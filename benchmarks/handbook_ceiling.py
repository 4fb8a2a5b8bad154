"""How far late labels let anybody get on the Fraud Detection Handbook's data: an upper bound for its metrics.

    python benchmarks/handbook_ceiling.py [project]

A project is a folder with `params.yaml` and `data/` after `make repro EXPERIMENT=handbook` (default: here). Prints one
JSON line: average precision and card precision@100 of the measured test rows, as reached by the ensemble, of a score
that knows every fraud that can be known, and of a score that knows every fraud.

Scenario 2 of the Handbook (every payment at a terminal for 28 days, at usual amounts) leaves no trace in a transaction
but its terminal. Until a first fraud there is old enough for its label to have arrived, nobody can tell such a payment
from others. The score of what can be known is 1 for all other frauds and 0 for the rest.
"""

import json
import sys
from contextlib import chdir
from datetime import timedelta
from pathlib import Path

import numpy as np
import polars as pl

from reperform import metrics, params, paths, tables
from reperform.params import SplitParams

SCENARIO, LASTS_DAYS = "scenario_2", 28
CARDS = 100


def knowable(frauds: pl.DataFrame, delay_days: int) -> pl.DataFrame:
    """Frauds of the scenario at a terminal where an earlier one was old enough to have a label.

    Args:
        frauds: transaction_id, counterparty_id, booked_at of the scenario's frauds.
        delay_days: until a label arrives.

    Returns:
        Their transaction_id.
    """
    rows = frauds.select("transaction_id", "counterparty_id", "booked_at").sort("booked_at")
    earlier = rows.select("counterparty_id", "booked_at", earlier_at="booked_at")
    found = rows.with_columns(latest=pl.col("booked_at") - timedelta(days=delay_days)).join_asof(
        earlier.rename({"booked_at": "latest"}), on="latest", by="counterparty_id", check_sortedness=False
    )
    recent = pl.col("earlier_at") > pl.col("booked_at") - timedelta(days=LASTS_DAYS + 2)
    return found.filter(recent).select("transaction_id")


def measured(rows: pl.DataFrame, score: np.ndarray) -> dict[str, float]:
    """Average precision, and card precision@100 as a mean over days."""
    y = rows["is_anomaly"].to_numpy()
    day = rows["booked_at"].dt.date().rank("dense").to_numpy().astype(np.int64) - 1
    account = rows["account_id"].rank("dense").to_numpy().astype(np.int64) - 1
    ranked = metrics.ranking(y, score, day)
    cards = metrics.daily_card_precision_at(y, score, account, day, CARDS)
    return {
        "average_precision": float(np.ravel(metrics.average_precision(ranked.totals))[0]),
        f"card_precision_at_{CARDS}": float(np.mean(cards)),
    }


def main(project: Path) -> None:
    """Print the bound beside what was reached."""
    with chdir(project):
        delay_days = params.load(SplitParams).label_delay_days
        outcomes = tables.read_table("evaluate", "outcomes").filter(pl.col("is_anomaly").is_not_null())
        rows = tables.read_table(
            "validate", "transactions", ["transaction_id", "account_id", "counterparty_id", "booked_at"]
        )
        labels = tables.read_table("validate", "labels").filter(pl.col("is_anomaly") & (pl.col("typology") == SCENARIO))
    frauds = rows.join(labels.select("transaction_id"), on="transaction_id", how="semi")
    known = knowable(frauds, delay_days)["transaction_id"].implode()
    test = outcomes.drop("account_id", strict=False).join(
        rows.select("transaction_id", "account_id"), on="transaction_id", how="left", maintain_order="left"
    )
    hidden = (test["typology"] == SCENARIO).fill_null(value=False) & ~test["transaction_id"].is_in(known)
    everything = test["is_anomaly"].to_numpy().astype(np.float64)
    print(
        json.dumps(
            {
                "rows": test.height,
                "frauds": int(everything.sum()),
                "of_them_unknowable": int((hidden & test["is_anomaly"]).sum()),
                "reached": measured(test, test["score"].to_numpy()),
                "knowable": measured(test, everything * ~hidden.to_numpy()),
                "perfect": measured(test, everything),
            }
        )
    )


if __name__ == "__main__":
    main(Path(sys.argv[1]) if len(sys.argv) > 1 else paths.project_root())
