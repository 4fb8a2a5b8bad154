"""Small tables for the tests of featurize and certify."""

from collections.abc import Sequence
from datetime import UTC, date, datetime, timedelta
from typing import Any

import numpy as np
import polars as pl

from reperform import featurize, schemas
from reperform.params import FeaturizeParams, SplitParams

START = datetime(2025, 3, 3, tzinfo=UTC)  # a Monday
DEFAULTS: dict[str, Any] = {
    "account_id": "a", "counterparty_id": "c", "entity_id": "e", "direction": "out", "amount": 10.0, "currency": "EUR",
    "channel": "card", "country": None, "latitude": None, "longitude": None, "balance_after": None,
    "source_file": "f", "source_record": 0,
}  # fmt: skip


def at(hours: float) -> datetime:
    return START + timedelta(hours=hours)


def transactions(*rows: dict[str, Any]) -> pl.DataFrame:
    """Rows with `hours` since a Monday midnight (and `late`, hours until known); everything else has a default."""
    full = []
    for number, row in enumerate(rows):
        given = dict(row)
        booked = at(given.pop("hours"))
        known = booked + timedelta(hours=given.pop("late", 0))
        line = {"transaction_id": f"t{number:04d}", "booked_at": booked, "known_at": known} | DEFAULTS | given
        full.append(line | {"amount_base": line.get("amount_base", line["amount"])})
    frame = pl.DataFrame(full, schema=schemas.polars_schema(schemas.TRANSACTIONS))
    return schemas.checked(frame.sort("booked_at", "transaction_id"), schemas.TRANSACTIONS)


def labels(*rows: tuple[int, bool, float]) -> pl.DataFrame:
    """Row number, whether it is an anomaly, hours of confirmation."""
    full = [
        {"transaction_id": f"t{n:04d}", "is_anomaly": y, "typology": None, "confirmed_at": at(h)} for n, y, h in rows
    ]
    return pl.DataFrame(full, schema=schemas.polars_schema(schemas.LABELS)).sort("transaction_id")


def accounts(*rows: dict[str, Any]) -> pl.DataFrame:
    full = [
        {"entity_id": "e", "opened_at": None, "timezone": None, "segment": None, "home_country": None} | row
        for row in rows
    ]
    return pl.DataFrame(full, schema=schemas.polars_schema(schemas.ACCOUNTS))


def calendar(fit_end_day: int = 10, maturity_days: int = 2) -> SplitParams:
    """A calendar whose `fit_end` lies so many days after the start."""
    end = (START + timedelta(days=fit_end_day)).date()
    return SplitParams(
        train_days=fit_end_day + 1, train_until=end, label_delay_days=0, label_maturity_days=maturity_days,
        validation_days=1, test_from=end + timedelta(days=1), test_days=5, drop_known_compromised=False,
    )  # fmt: skip


def stage(*kpis: str, **settings: dict[str, Any]) -> FeaturizeParams:
    return FeaturizeParams(kpis=list(kpis), settings=settings)


def features(
    rows: pl.DataFrame,
    *kpis: str,
    labelled: pl.DataFrame | None = None,
    of: pl.DataFrame | None = None,
    split: SplitParams | None = None,
    fitted: dict[str, Any] | None = None,
    **settings: dict[str, Any],
) -> pl.DataFrame:
    """Feature table of hand-made rows."""
    made = featurize.featurize(
        rows,
        accounts() if of is None else of,
        labels() if labelled is None else labelled,
        stage(*kpis, **settings),
        split or calendar(),
        fitted=fitted,
    )
    return made.table


def column(table: pl.DataFrame, name: str) -> list[float | None]:
    return table[name].to_list()


RULES: list[dict[str, Any]] = [
    {"name": "any", "threshold": 1000, "operator": ">=", "effective_from": date(2000, 1, 1), "citation": "test"},
    {
        "name": "cash", "threshold": 500, "channels": ["cash"], "window": "10d", "effective_from": date(2000, 1, 1),
        "citation": "test",
    },
]  # fmt: skip


def world(n: int = 400, seed: int = 0, days: int = 40) -> tuple[pl.DataFrame, pl.DataFrame, pl.DataFrame]:
    """Transactions, labels and accounts with ties, late records, several zones, gaps in every optional column."""
    rng = np.random.default_rng(seed)
    names = [f"a{k}" for k in range(8)]
    parties = [f"c{k}" for k in range(10)] + names[:3]
    hours = np.sort(np.round(rng.uniform(0, 24 * days, n) * 4) / 4)
    late = np.where(rng.random(n) < 0.3, np.round(rng.exponential(20, n) * 4) / 4, 0)
    rows = [
        {
            "hours": float(hours[k]),
            "late": float(late[k]),
            "account_id": str(rng.choice(names)),
            "counterparty_id": None if rng.random() < 0.1 else str(rng.choice(parties)),
            "direction": "in" if rng.random() < 0.4 else "out",
            "amount": float(np.round(rng.lognormal(4, 1.5), 2)) + 0.01,
            "channel": str(rng.choice(["card", "cash", "instant"])),
            "country": None if rng.random() < 0.1 else str(rng.choice(["DE", "FR", "KP"])),
            "latitude": None if rng.random() < 0.3 else float(np.round(rng.uniform(40, 55), 3)),
            "longitude": float(np.round(rng.uniform(0, 15), 3)),
            "balance_after": None if rng.random() < 0.1 else float(np.round(rng.normal(500, 800), 2)),
        }
        for k in range(n)
    ]
    zones = ["Europe/Berlin", "America/New_York", None, "Asia/Tokyo"]
    of = accounts(
        *(
            {
                "account_id": name,
                "timezone": zones[k % 4],
                "segment": ["retail", "business", None][k % 3],
                "home_country": ["DE", None][k % 2],
                "opened_at": [None, at(-24 * 300), at(24 * 5)][k % 3],
            }
            for k, name in enumerate(names)
        )
    )
    table = transactions(*rows)
    picked = rng.random(n) < 0.15
    given = [
        (k, bool(rng.random() < 0.7), float(hours[k] + late[k] + rng.integers(1, 200))) for k in np.flatnonzero(picked)
    ]
    return table, labels(*given), of


def by_row(frame: pl.DataFrame) -> Sequence[dict[str, Any]]:
    return frame.to_dicts()
