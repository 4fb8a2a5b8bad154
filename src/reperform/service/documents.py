"""What the pipeline's run of the champion says of it: explanation, calibration, metrics, forecasts.

Stages explain and forecast run after a version was registered, so the registry does not name their files. They are
those of the workspace while its ensemble is the champion's, else those that DVC's run cache made from that ensemble.
"""

import json
from collections.abc import Iterator, Mapping
from functools import lru_cache
from pathlib import Path
from typing import Any

import polars as pl
import yaml

from reperform import paths, tracking
from reperform.service.refusals import Refusal, echo

MODEL = "ensemble/model.json"
MOST_SERIES_NAMED = 30
STAGE_OF = {"explain": "python -m reperform explain", "forecast": "python -m reperform forecast"}
WORDS = ("formula", "unit", "windows", "source", "null_rule", "kpi", "kpi_number", "family")


class Documents:
    """Documents about one version of the model.

    Args:
        folder: of the version's own files, as `bundle.Bundle.folder`.
        version: its number.
        data_version: what it learned from.
    """

    def __init__(self, folder: Path, version: int, data_version: str) -> None:
        self.folder, self.version, self.data_version = folder / "data", version, data_version
        self._dictionary: dict[str, dict[str, Any]] | None = None
        self._explanation: dict[str, Any] | None = None

    # Explanation

    def explanation(self) -> dict[str, Any]:
        """How the version decides, and how well it does.

        Raises:
            Refusal: 404 when the run's explanation is not here any more.
        """
        if self._explanation is None:
            self._explanation = self._explained_on_the_whole()
        return self._explanation

    def _explained_on_the_whole(self) -> dict[str, Any]:
        model = self._own(MODEL)
        by_kpi = pl.read_parquet(self.path("explain", "importance_by_kpi.parquet"))
        quality = _json(self.path("explain", "quality.json"))
        metrics = _json(self._file("evaluate", "metrics.json"))
        return {
            "model_version": self.version,
            "data_version": self.data_version,
            "importance": by_kpi.to_dicts(),
            "importance_by_feature": pl.read_parquet(self.path("explain", "importance.parquet")).to_dicts(),
            "calibration": model["calibration"],
            "members": [{"detector": one["detector"], "weight": one["weight"]} for one in model["members"]],
            "thresholds": self._own("ensemble/thresholds.json"),
            "metrics": metrics.get("ensemble", {}),
            "explanation_quality": quality,
            "dictionary": list(self.dictionary().values()),
        }

    def dictionary(self) -> dict[str, dict[str, Any]]:
        """Every feature by name."""
        if self._dictionary is None:
            self._dictionary = {one["name"]: one for one in self._own("featurize/dictionary.json")}
        return self._dictionary

    def explained(self, stored: Mapping[str, Any]) -> dict[str, Any]:
        """Why one transaction was answered as it was.

        Args:
            stored: its row of the answers.
        """
        names = (
            "transaction_id", "model_version", "data_version", "score", "probability", "is_alert", "members",
            "answered_at",
        )  # fmt: skip
        known = self.dictionary()
        reasons = [
            {**{word: known.get(one.get("feature", ""), {}).get(word) for word in WORDS}, **one}
            for one in stored["reasons"] or []
        ]
        return {**{name: stored[name] for name in names}, "reasons": reasons}

    # Forecast

    def forecast(self, series: str | None, account: str | None) -> dict[str, Any]:
        """Forecasts beyond the data, and the risk of an account from day to day.

        Args:
            series: one of the series; None: all.
            account: an account; None: none.

        Raises:
            Refusal: 404 for a series or account that there is no forecast of.
        """
        told = _json(self.path("forecast", "metrics.json"))
        table = pl.read_parquet(self.path("forecast", "forecasts.parquet"))
        known = sorted(told["series"])
        if series is not None and series not in known:
            raise Refusal(
                404, "unknown-series", "There is no forecast of this series.", got=series, where="query, series",
                expected=f"one of {', '.join(known[:MOST_SERIES_NAMED])}", fix="leave series out to see all",
            )  # fmt: skip
        chosen = [series] if series is not None else [] if account is not None else known
        return {
            "model_version": self.version,
            "horizon_days": told["horizon_days"],
            "levels": told["levels"],
            "series": [one for name in chosen for one in _future(table, name, told["series"][name])],
            "account": self._risk(account, told) if account is not None else None,
        }

    def _risk(self, account: str, told: Mapping[str, Any]) -> dict[str, Any]:
        rows = pl.scan_parquet(self.path("forecast", "account_risk.parquet")).filter(pl.col("account_id") == account)
        found = rows.sort("snapshot").collect()
        if found.is_empty():
            raise Refusal(
                404, "unknown-account", "There is no forecast of this account.", got=account, where="query, account",
                expected="an account of the pipeline's last run", fix="run `dvc repro forecast` once it has history",
            )  # fmt: skip
        judged, horizon = told["account_risk"].get("judged") or {}, told["account_risk"].get("horizon_days")
        points = [
            {
                **row,
                **_observed(row["probability"], judged.get("reliability") if row["horizon_days"] == horizon else []),
            }
            for row in found.drop("account_id").iter_rows(named=True)
        ]
        return {"account_id": account, "horizon_days": horizon, "points": points}

    # Files

    def path(self, stage: str, name: str) -> Path:
        """A file of a stage that ran after the version was registered."""
        found = _made_from(stage, self._model_md5(), paths.project_root())
        file = found.get(name) if found else None
        if file is None:
            raise Refusal(
                404, "not-here", f"What stage {stage} said of version {self.version} is not here any more.",
                expected=f"data/{stage}/{name} of that version's run, in the workspace or in DVC's cache",
                where=f"version {self.version}", fix=f"check out that version's run and `dvc repro {stage}`",
            )  # fmt: skip
        return file

    def _model_md5(self) -> str:
        return tracking.file_digest(self.folder / MODEL, "md5")

    def _own(self, name: str) -> Any:
        return _json(self.folder / name)

    def _file(self, stage: str, name: str) -> Path:
        """A file of the version itself where it lists it, else of the run in the workspace or the cache."""
        own = self.folder / stage / name
        return own if own.is_file() else self.path(stage, name)


def _future(table: pl.DataFrame, name: str, told: Mapping[str, Any]) -> Iterator[dict[str, Any]]:
    """The best model's forecast from the newest origin on."""
    rows = table.filter((pl.col("series") == name) & (pl.col("model") == told.get("best")))
    if rows.is_empty():
        return
    origin = rows["origin"].max()
    points = rows.filter(pl.col("origin") == origin).sort("day").drop("series", "model", "origin")
    yield {
        "series": name, "model": told["best"], "unit": told.get("unit"), "origin": origin,
        "beats_baseline": told.get("beats_baseline"), "points": points.to_dicts(),
    }  # fmt: skip


def _observed(probability: float, reliability: list[dict[str, Any]] | None) -> dict[str, Any]:
    """How often accounts with about this probability did have an anomaly, with its interval; null where unmeasured."""
    if not reliability:
        return dict.fromkeys(("observed_low", "observed", "observed_high"))
    near = min(reliability, key=lambda one: abs(one["predicted"] - probability))
    return {"observed_low": near["low"], "observed": near["observed"], "observed_high": near["high"]}


# Finding


def _made_from(stage: str, model_md5: str, root: Path) -> dict[str, Path]:
    """Files of a stage's output that were made from this ensemble, by name; empty when there are none."""
    here = root / "data" / MODEL
    folder = root / "data" / stage
    if here.is_file() and folder.is_dir() and _digest(here, here.stat().st_mtime_ns) == model_md5:
        return {path.name: path for path in folder.iterdir() if path.is_file()}
    return _in_run_cache(stage, model_md5, tracking.cache_folder())


@lru_cache(maxsize=64)
def _digest(path: Path, _modified_ns: int) -> str:
    return tracking.file_digest(path, "md5")


@lru_cache(maxsize=64)
def _in_run_cache(stage: str, model_md5: str, cache: Path) -> dict[str, Path]:
    for entry in sorted((cache / "runs").glob("*/*/*")):
        said = yaml.safe_load(entry.read_text(encoding="utf-8"))
        if not isinstance(said, dict) or not str(said.get("cmd", "")).startswith(STAGE_OF.get(stage, stage)):
            continue
        deps = {dep["path"]: dep.get("md5", "") for dep in said.get("deps", [])}
        outs = {out["path"]: out.get("md5", "") for out in said.get("outs", [])}
        ensemble = _listed(deps.get("data/ensemble", ""), cache)
        if ensemble.get("model.json") == model_md5:
            made = _listed(outs.get(f"data/{stage}", ""), cache)
            found = {name: tracking.cached(md5, cache) for name, md5 in made.items()}
            return {name: path for name, path in found.items() if path is not None}
    return {}


def _listed(folder_md5: str, cache: Path) -> dict[str, str]:
    """Files of a folder that DVC keeps, with their hashes."""
    if not folder_md5.endswith(".dir"):
        return {}
    manifest = cache / "files" / "md5" / folder_md5[:2] / folder_md5[2:]
    if not manifest.is_file():
        return {}
    return {one["relpath"]: one["md5"] for one in json.loads(manifest.read_text(encoding="utf-8"))}


def _json(path: Path) -> Any:
    return json.loads(path.read_text(encoding="utf-8"))


def unknown_answer(transaction_id: str, where: str) -> Refusal:
    """Nothing was answered for this transaction."""
    return Refusal(
        404, "unknown-transaction", "Nothing was answered for this transaction.", got=echo(transaction_id),
        expected="a transaction that was answered before", where=where,
        fix="score it first with POST /api/v1/detect-anomalies",
    )  # fmt: skip
