"""The board and the alert rules ask for nothing that the service does not tell, and each rule says what to do."""

import json
import re
import shutil
import subprocess
from typing import Any

import pytest
import yaml
from prometheus_client.parser import text_string_to_metric_families

from reperform.service.telemetry import FACTS, Telemetry
from tests.conftest import ROOT

DEPLOY = ROOT / "deploy"
BOARD: dict[str, Any] = json.loads((DEPLOY / "grafana" / "boards" / "service.json").read_text())
RULES = [
    rule
    for group in yaml.safe_load((DEPLOY / "prometheus" / "rules.yml").read_text())["groups"]
    for rule in group["rules"]
]
ASKED = [target["expr"] for panel in BOARD["panels"] for target in panel["targets"]] + [one["expr"] for one in RULES]
RUNBOOK = (ROOT / "docs" / "how-to" / "operate.md").read_text()
STATES = {"reperform_jobs": ("waiting", "running", "done", "failed"), "reperform_deliveries": ("open", "dead")}


@pytest.fixture(scope="module")
def told() -> dict[str, dict[str, set[str]]]:
    """Every series of the page that Prometheus reads: name to labels and the values that they had."""
    telemetry = Telemetry()
    telemetry.answered("/api/v1/detect-anomalies", "POST", 200, 0.01)
    telemetry.answered("/api/v1/detect-anomalies", "POST", 503, 0.01)
    telemetry.scored(1, 1, dict.fromkeys(("lock", "history", "features", "models", "explanation", "write"), 0.001))
    telemetry.state(ready=True, champion=1, shadow=2, sequence=3)
    facts = {name: dict.fromkeys(STATES[name], 1) if label else 1 for name, (_, label) in FACTS.items()}
    found: dict[str, dict[str, set[str]]] = {"up": {"job": {"reperform"}}}
    for family in text_string_to_metric_families(telemetry.page(facts).decode()):
        for sample in family.samples:
            labels = found.setdefault(sample.name, {"job": {"reperform"}, "instance": set()})
            for name, value in sample.labels.items():
                labels.setdefault(name, set()).add(value)
    return found


@pytest.mark.parametrize("expression", sorted(set(ASKED)))
def test_every_series_that_is_asked_for_is_told(expression: str, told: dict[str, dict[str, set[str]]]) -> None:
    asked = re.findall(r"\b(reperform_\w+|process_\w+|python_\w+|up)\b(?:\{([^}]*)\})?", expression)
    assert asked
    for name, selector in asked:
        assert name in told
        for label, how, value in re.findall(r'(\w+)(=~|!=|=)"([^"]*)"', selector):
            assert label in told[name]
            if how == "=":
                assert value in told[name][label]


@pytest.mark.parametrize("rule", RULES, ids=lambda rule: rule["alert"])
def test_every_alert_says_how_bad_it_is_and_what_to_do(rule: dict[str, Any]) -> None:
    assert rule["labels"]["severity"] in {"warning", "critical"}
    file, _, heading = rule["annotations"]["runbook"].partition("#")
    assert file == "docs/how-to/operate.md"
    assert heading == rule["alert"].lower()
    assert re.search(rf"^#+ {rule['alert']}$", RUNBOOK, flags=re.MULTILINE)


def test_runbook_explains_no_alert_that_does_not_exist() -> None:
    section = RUNBOOK.split("\n## What each alert means\n", 1)[1].split("\n## ", 1)[0]
    assert re.findall(r"^### (\w+)$", section, flags=re.MULTILINE) == [one["alert"] for one in RULES]


def test_panels_lie_side_by_side_and_use_the_provisioned_source() -> None:
    source = yaml.safe_load((DEPLOY / "grafana" / "provisioning" / "datasources" / "prometheus.yaml").read_text())
    uid = source["datasources"][0]["uid"]
    taken: set[tuple[int, int]] = set()
    for panel in BOARD["panels"]:
        assert panel["title"]
        assert panel["description"]
        assert panel["fieldConfig"]["defaults"]["unit"]
        assert {panel["datasource"]["uid"], *(one["datasource"]["uid"] for one in panel["targets"])} == {uid}
        place = panel["gridPos"]
        assert place["x"] + place["w"] <= 24
        cells = {(place["x"] + i, place["y"] + j) for i in range(place["w"]) for j in range(place["h"])}
        assert not cells & taken
        taken |= cells
    assert len({panel["id"] for panel in BOARD["panels"]}) == len(BOARD["panels"])


@pytest.mark.parametrize("words", ["check config deploy/prometheus/prometheus.yml", "test rules tests/alert_rules.yml"])
def test_prometheus_itself_accepts_its_configuration_and_the_rules_do_what_they_say(words: str) -> None:
    if not shutil.which("promtool"):
        pytest.skip("promtool is not installed (Debian: apt-get install prometheus)")
    got = subprocess.run(["promtool", *words.split()], capture_output=True, text=True, check=False, cwd=ROOT)
    assert got.returncode == 0, got.stdout + got.stderr
