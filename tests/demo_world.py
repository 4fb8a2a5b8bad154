"""A small demo world for tests, with the project's own settings."""

from typing import Any

from omegaconf import OmegaConf

from reperform.params import SimulateParams, build
from tests.conftest import ROOT

SMALL = {"accounts": 300, "transactions": 36_000}


def world_params(**changes: Any) -> SimulateParams:
    """The demo's parameters, at a tenth of its size unless the changes say otherwise."""
    settings = OmegaConf.to_container(OmegaConf.load(ROOT / "conf" / "simulate" / "demo.yaml"))
    assert isinstance(settings, dict)
    return build(SimulateParams, {**settings, **SMALL, **changes}, "simulate")


def demo_settings(name: str) -> dict[str, Any]:
    """A copy of one block, to be changed at will."""
    return dict(OmegaConf.to_container(OmegaConf.load(ROOT / "conf" / "simulate" / "demo.yaml"))[name])
