"""Compose params.yaml from conf/ with Hydra, and check that the two agree. The only module that imports Hydra."""

import os
from pathlib import Path
from typing import Any

from omegaconf import OmegaConf

from reperform import params, paths, tables
from reperform.errors import ReperformError

HEADER = "# Composed from conf/ by `make params`. Edit conf/, not this file.\n"
AGREED = "params.yaml is what conf/ composes to.\n"


def composed(conf: Path, experiment: str | None = None, overrides: tuple[str, ...] = ()) -> dict[str, Any]:
    """Everything that `conf/` says, with one experiment and single values laid over it.

    Args:
        conf: the folder of Hydra groups.
        experiment: a name in `conf/experiment/`.
        overrides: Hydra overrides such as `model.xgboost.max_depth=8` or `split=handbook`.

    Raises:
        ReperformError: for a group, key or value that `conf/` does not know.
    """
    from hydra import compose, initialize_config_dir  # noqa: PLC0415  # costs 0.3 s, and only this stage needs it
    from hydra.errors import HydraException  # noqa: PLC0415
    from omegaconf.errors import OmegaConfBaseException  # noqa: PLC0415

    asked = ([f"+experiment={experiment}"] if experiment else []) + list(overrides)
    try:
        with initialize_config_dir(str(conf.resolve()), version_base="1.3"):
            content = OmegaConf.to_container(compose("config", overrides=asked), resolve=True)
    except (HydraException, OmegaConfBaseException) as error:
        raise ReperformError(
            "conf/ does not compose.",
            expected="groups, keys and values that conf/ knows",
            got=str(error).strip().replace("\n", " "),
            where=f"{conf}, with {' '.join(asked) or 'no overrides'}",
            fix=f"experiments are: {', '.join(sorted(p.stem for p in (conf / 'experiment').glob('*.yaml')))}",
        ) from error
    if not isinstance(content, dict):
        raise ReperformError("conf/ composes to nothing.", where=str(conf))
    return {str(key): value for key, value in content.items()} | {
        "compose": {"experiment": experiment, "overrides": list(overrides)}
    }


def as_yaml(content: dict[str, Any]) -> str:
    """The text of params.yaml."""
    return HEADER + OmegaConf.to_yaml(OmegaConf.create(content))


def write(experiment: str | None = None, overrides: tuple[str, ...] = ()) -> Path:
    """Compose and check everything, then replace params.yaml if it changed."""
    content = composed(paths.project_root() / "conf", experiment, overrides)
    params.check_all(content, where="conf")
    target = paths.params_file()
    text = as_yaml(content)
    if not target.is_file() or target.read_text(encoding="utf-8") != text:
        tables.write_text(text, target)
    return target


def differences(expected: Any, got: Any, at: str = "") -> list[str]:
    """Where two nested documents differ, one phrase for each place."""
    if isinstance(expected, dict) and isinstance(got, dict):
        found = []
        for key in sorted(set(expected) | set(got)):
            found += differences(expected.get(key), got.get(key), f"{at}.{key}" if at else key)
        return found
    return [] if expected == got else [f"{at}: conf/ says {expected!r}, params.yaml says {got!r}"]


def run(_params: params.ComposeParams | None = None) -> None:
    """Refuse stale parameters, so that no stage goes on with them in silence.

    Inside `dvc exp run`, DVC has just composed conf/ with the experiment's own overrides: there is nothing to compare.
    """
    content = params.raw(paths.params_file())
    params.check_all(content, where="params.yaml")
    if not os.environ.get("DVC_EXP_BASELINE_REV"):
        origin = params.load(params.ComposeParams)
        wanted = composed(paths.project_root() / "conf", origin.experiment, tuple(origin.overrides))
        found = differences(wanted, content)
        if found:
            raise ReperformError(
                "params.yaml is older than conf/.",
                expected="the values that conf/ composes to",
                got="; ".join(found[:5]) + (f"; and {len(found) - 5} more" if len(found) > 5 else ""),  # noqa: PLR2004
                where="params.yaml",
                fix="run `make params` (or `make repro`, which composes first), then repeat your command",
            )
    tables.write_text(AGREED, paths.data("compose") / "agreed.txt")
