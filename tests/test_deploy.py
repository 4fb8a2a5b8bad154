"""What `deploy/` promises, as far as it can be held to it without a container engine."""

import hashlib
import http.client
import json
import os
import re
import shutil
import sqlite3
import ssl
import subprocess
import sys
import threading
import time
from collections.abc import Iterator
from contextlib import ExitStack, closing
from pathlib import Path
from typing import Any
from urllib.request import urlopen

import jsonschema
import pytest
import yaml

from reperform import audit
from reperform.export import server, shell
from reperform.service import answers, calls, database, journal, keys
from tests import balancer, service_rows
from tests.conftest import ROOT

DEPLOY = ROOT / "deploy"
COMPOSE: dict[str, Any] = yaml.safe_load((DEPLOY / "compose.yaml").read_text())
SERVICES: dict[str, Any] = COMPOSE["services"]
RUNNING = [name for name, one in SERVICES.items() if "tools" not in one.get("profiles", [])]
EXAMPLE = (DEPLOY / "env.example").read_text()
ROOTLESS = re.compile(r"[1-9]\d*:\d+|\$\{REPERFORM_USER:-10001:10001\}")


def test_compose_file_fulfils_the_compose_specification() -> None:
    schema = json.loads((ROOT / "tests" / "compose.schema.json").read_text())
    found = jsonschema.Draft7Validator(schema).iter_errors(COMPOSE)
    assert [(list(one.path), one.message) for one in found] == []


def test_every_service_that_was_asked_for_is_there() -> None:
    assert set(RUNNING) == {"postgres", "mlflow", "api", "balancer", "prometheus", "grafana", "jupyter"}
    assert SERVICES["api"]["deploy"]["replicas"] == 2
    assert "ports" not in SERVICES["api"]


@pytest.mark.parametrize("name", SERVICES)
def test_services_have_no_more_rights_than_they_need(name: str) -> None:
    one = SERVICES[name]
    assert ROOTLESS.fullmatch(one["user"])
    assert one["read_only"] is True
    assert one["cap_drop"] == ["ALL"]
    assert one["security_opt"] == ["no-new-privileges:true"]
    assert set(one["deploy"]["resources"]["limits"]) == {"cpus", "memory"}


@pytest.mark.parametrize("name", RUNNING)
def test_services_say_whether_they_are_well_and_come_back(name: str) -> None:
    assert SERVICES[name]["healthcheck"]["test"][0] == "CMD"
    assert SERVICES[name]["restart"] == "unless-stopped"


@pytest.mark.parametrize("name", SERVICES)
def test_images_are_pinned_by_version(name: str) -> None:
    assert re.search(r":v?\d+\.\d+(\.\d+)?(-[a-z]+)?$|:\$\{\w+:-\d+\.\d+\.\d+\}$", SERVICES[name]["image"])


@pytest.mark.parametrize("name", RUNNING)
def test_only_the_balancer_is_reached_from_other_machines(name: str) -> None:
    outside = [port for port in SERVICES[name].get("ports", []) if not port.startswith("127.0.0.1:")]
    assert outside == (["0.0.0.0:${REPERFORM_HTTPS_PORT:-8443}:8443"] if name == "balancer" else [])


def test_no_secret_is_in_the_file_and_every_variable_is_in_the_example() -> None:
    text = (DEPLOY / "compose.yaml").read_text()
    required = set(re.findall(r"\$\{(\w+):\?", text))
    offered = dict(line.split("=", 1) for line in EXAMPLE.splitlines() if line and not line.startswith("#"))
    secret = {name for name in offered if re.search("PASSWORD|TOKEN", name)}
    assert required == secret
    assert {offered[name] for name in secret} == {""}
    for name, value in re.findall(r"^ +(\w*(?:PASSWORD|TOKEN)\w*): (.+)$", text, flags=re.MULTILINE):
        assert value.startswith("${"), name


def test_files_that_compose_mounts_exist() -> None:
    mounted = [v for one in SERVICES.values() for v in one.get("volumes", []) if v.startswith("./")]
    assert mounted
    assert [v for v in mounted if not (DEPLOY / v.split(":")[0]).exists()] == []


def test_volumes_and_networks_are_declared() -> None:
    named = {v.split(":")[0] for one in SERVICES.values() for v in one.get("volumes", []) if v[0] not in "./$"}
    assert named == set(COMPOSE["volumes"])
    assert {n for one in SERVICES.values() for n in one["networks"]} == set(COMPOSE["networks"])
    assert COMPOSE["networks"]["inside"]["internal"] is True


def test_database_is_reached_from_inside_alone() -> None:
    assert SERVICES["postgres"]["networks"] == ["inside"]
    assert "ports" not in SERVICES["postgres"]


def test_image_is_built_from_the_lock_file_and_runs_without_root() -> None:
    text = (DEPLOY / "Dockerfile").read_text()
    stages = text.split("\nFROM ")
    assert len(stages) == 3
    assert re.search(r"^ARG PYTHON=3\.11\.\d+-slim-\w+$", text, flags=re.MULTILINE)
    assert "--requirement requirements.lock" in stages[1]
    for part in ("USER 10001:10001", "HEALTHCHECK", "PYTHONHASHSEED=0", "OMP_WAIT_POLICY=passive"):
        assert part in stages[2]
    assert stages[2].index("USER ") < stages[2].index("\nCMD ")
    copied = {word for line in re.findall(r"^COPY (?!--)(.+)$", text, flags=re.MULTILINE) for word in line.split()[:-1]}
    allowed = {line[1:] for line in (DEPLOY / "Dockerfile.dockerignore").read_text().splitlines() if line[:1] == "!"}
    assert copied == allowed
    assert all((ROOT / name).exists() for name in copied)


def test_secrets_certificates_and_backups_of_a_deployment_are_never_committed() -> None:
    ignored = (ROOT / ".gitignore").read_text().splitlines()
    assert {"/deploy/.env", "/deploy/tls/", "/deploy/backups/"} <= set(ignored)


@pytest.mark.parametrize("path", sorted(DEPLOY.rglob("*.sh")), ids=lambda path: path.name)
def test_scripts_are_sound(path: Path) -> None:
    assert os.access(path, os.X_OK)
    assert "set -euo pipefail" in path.read_text()
    subprocess.run(["bash", "-n", path], check=True)
    if shutil.which("shellcheck"):
        got = subprocess.run(["shellcheck", path], capture_output=True, text=True, check=False)
        assert got.stdout == ""


# --- the load balancer ---------------------------------------------------------------------------------------------


class Balanced:
    """The balancer with its replicas."""

    def __init__(self, folder: Path, stack: ExitStack) -> None:
        self.names, self.port = balancer.Names(), balancer.free_port()
        self.plain, self.tls = balancer.free_port(), balancer.free_port()
        self.folder = folder
        self.names.start()
        stack.callback(self.names.socket.close)
        self.replicas = {host: stack.enter_context(balancer.replica(host, self.port)) for host in balancer.HOSTS}
        for host in balancer.HOSTS:
            balancer.wait_for(host, self.port)
        file = balancer.configuration(folder, names=self.names.port, replicas=self.port, plain=self.plain, tls=self.tls)
        self.command = [balancer.nginx_program(), "-p", str(folder), "-c", str(file)]
        tried = subprocess.run([*self.command, "-t"], check=False, capture_output=True, text=True)
        assert "test is successful" in tried.stderr, tried.stderr
        stack.enter_context(balancer.started([*self.command, "-g", "daemon off;"], cwd=folder))
        balancer.wait_for("127.0.0.1", self.plain)

    def post(self, path: str = "/api/v1/detect-anomalies", body: bytes = b"{}") -> tuple[int, dict[str, Any]]:
        status, text, _ = balancer.call(self.plain, "POST", path, body)
        return status, json.loads(text)


@pytest.fixture
def balanced(tmp_path: Path) -> Iterator[Balanced]:
    balancer.nginx_program()
    with ExitStack() as stack:
        yield Balanced(tmp_path, stack)


def test_requests_go_to_both_replicas(balanced: Balanced) -> None:
    answers = [balanced.post() for _ in range(20)]
    assert {status for status, _ in answers} == {200}
    assert {body["replica"] for _, body in answers} == set(balancer.HOSTS)
    assert {body["request_id"] for _, body in answers} == {None}  # the API names its requests, and the log says so
    assert '"request_id":"$upstream_http_x_request_id"' in (ROOT / "deploy" / "nginx.conf").read_text()
    assert {body["client"] for _, body in answers} == {None}


def test_no_request_fails_while_a_replica_is_killed_and_comes_back(balanced: Balanced) -> None:
    answers: list[tuple[int, str]] = []
    ending = threading.Event()

    def client() -> None:
        while not ending.is_set():
            status, body = balanced.post()
            answers.append((status, body.get("replica", "")))

    clients = [threading.Thread(target=client) for _ in range(4)]
    for one in clients:
        one.start()
    time.sleep(0.5)
    balanced.replicas["127.0.0.2"].kill()
    balanced.replicas["127.0.0.2"].wait()
    killed = len(answers)
    time.sleep(1.5)
    without = len(answers)
    with balancer.replica("127.0.0.2", balanced.port):
        balancer.wait_for("127.0.0.2", balanced.port)
        deadline = time.monotonic() + 20
        while time.monotonic() < deadline and answers[-1][1] != "127.0.0.2":
            time.sleep(0.005)
        ending.set()
        for one in clients:
            one.join()
    assert {status for status, _ in answers} == {200}
    assert "127.0.0.2" in {host for _, host in answers[:killed]}
    assert without - killed > 10
    assert "127.0.0.2" in {host for _, host in answers[without:]}


def test_a_replica_that_leaves_the_name_server_gets_no_more_requests(balanced: Balanced) -> None:
    balanced.names.alive = ["127.0.0.1"]
    deadline = time.monotonic() + 15
    while time.monotonic() < deadline:
        if {balanced.post()[1]["replica"] for _ in range(8)} == {"127.0.0.1"}:
            break
    assert {balanced.post()[1]["replica"] for _ in range(20)} == {"127.0.0.1"}


def test_without_any_replica_clients_are_told_when_to_come_back(balanced: Balanced) -> None:
    for one in balanced.replicas.values():
        one.kill()
        one.wait()
    status, text, headers = balancer.call(balanced.plain, "POST", "/api/v1/detect-anomalies", b"{}")
    assert status == 503
    assert headers["retry-after"] == "2"
    assert headers["content-type"] == "application/problem+json"
    assert json.loads(text)["status"] == 503


def test_balancer_keeps_metrics_inside_and_refuses_what_is_too_large(balanced: Balanced) -> None:
    assert balancer.call(balanced.plain, "GET", "/metrics")[0] == 404
    status, text, headers = balancer.call(balanced.plain, "POST", "/api/v1/feedback", b"x" * (13 << 20))
    assert (status, headers["content-type"]) == (413, "application/problem+json")
    assert json.loads(text)["fix"]


def test_log_of_the_balancer_holds_no_ids_and_no_addresses(balanced: Balanced) -> None:
    balancer.call(balanced.plain, "GET", "/api/v1/anomaly-score/SECRET-7?id=SECRET-8")
    balancer.call(balanced.plain, "GET", "/SECRET-9")
    log = balanced.folder / "access.log"
    deadline = time.monotonic() + 10
    while time.monotonic() < deadline and log.read_text().count("\n") < 2:
        time.sleep(0.05)
    lines = [json.loads(line) for line in log.read_text().splitlines()]
    assert [line["route"] for line in lines] == ["/api/v1/anomaly-score/*", "other"]
    assert "SECRET" not in log.read_text()
    assert not {"client", "remote_addr", "user_agent"} & set(lines[0])


def test_tls_is_spoken_and_kept(balanced: Balanced) -> None:
    trusted = ssl.create_default_context(cafile=str(balanced.folder / "tls.crt"))
    trusted.check_hostname = False
    with urlopen(f"https://127.0.0.1:{balanced.tls}/ready", context=trusted) as answer:
        assert answer.headers["Strict-Transport-Security"] == "max-age=31536000"
        assert json.loads(answer.read())["path"] == "/ready"
    assert "strict-transport-security" not in balancer.call(balanced.plain, "GET", "/ready")[2]


# --- PostgreSQL ----------------------------------------------------------------------------------------------------


@pytest.fixture
def empty_project(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    monkeypatch.delenv(server.ADDRESS_VARIABLE, raising=False)
    shutil.copy(ROOT / "dvc.yaml", tmp_path)
    monkeypatch.chdir(tmp_path)
    return tmp_path


def test_programs_of_postgresql_run_on_the_projects_database(empty_project: Path) -> None:
    target = empty_project / "said"
    assert (
        shell.with_address(empty_project, ["psql", "-XAt", "-o", str(target), "-c", "SELECT current_database()"]) == 0
    )
    assert target.read_text() == "reperform\n"
    assert shell.with_address(empty_project, ["psql", "-X", "-c", "SELECT nothing"]) == 1
    with pytest.raises(server.ReperformError, match="no program"):
        shell.with_address(empty_project, ["no-such-program"])


def test_first_start_of_the_database_makes_roles_that_keep_to_themselves(
    empty_project: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    for name in ("REPERFORM", "READER", "MLFLOW"):
        monkeypatch.setenv(f"{name}_PASSWORD", f"it's {name}")
    with server.reached(empty_project) as address:
        with server.connect(address, dbname="postgres") as connection:
            connection.autocommit = True
            connection.execute("DROP DATABASE reperform")
        environment = {**os.environ, **shell._variables(dict(address.parameters))}
        script = str(DEPLOY / "postgres" / "init.sh")
        path = os.pathsep.join([*server.program_folders(), os.environ["PATH"]])
        subprocess.run(["bash", script], check=True, env={**environment, "PATH": path})
        with server.connect(address, dbname="postgres") as connection:
            roles = connection.execute(
                "SELECT rolname, rolsuper, rolcreaterole, rolpassword LIKE 'SCRAM-SHA-256$%' FROM pg_authid "
                "WHERE rolname IN ('reperform', 'reperform_reader', 'mlflow') ORDER BY 1"
            ).fetchall()
            reach = connection.execute(
                "SELECT r, has_database_privilege(r, d, 'CONNECT') "
                "FROM unnest(ARRAY['reperform', 'reperform_reader', 'mlflow']) r, "
                "unnest(ARRAY['reperform', 'mlflow']) d ORDER BY r, d DESC"
            ).fetchall()
    assert roles == [(name, False, False, True) for name in ("mlflow", "reperform", "reperform_reader")]
    assert [may for _, may in reach] == [False, True, True, False, True, False]


# --- the registry of models -----------------------------------------------------------------------------------------

RECORDED = """
from reperform import tracking
tracking.record({"ensemble": {"n": 1}}, {}, tracking.outputs([]))
print(tracking.version("champion").number)
"""


@pytest.mark.slow
def test_a_run_is_registered_with_the_server_as_compose_starts_it(
    empty_project: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    (empty_project / "data" / "ensemble").mkdir(parents=True)
    (empty_project / "data" / "ensemble" / "model.json").write_text("{}")
    port = balancer.free_port()
    changed = {"--host=0.0.0.0": "--host=127.0.0.1", "--port=5000": f"--port={port}"}
    command = [changed.get(word, word) for word in SERVICES["mlflow"]["command"]]
    command = [word.replace("/var/lib/mlflow", str(empty_project / "artifacts")) for word in command]
    path = os.pathsep.join([str(Path(sys.executable).parent), os.environ["PATH"]])
    environment = {**os.environ, "PATH": path, "MLFLOW_DISABLE_TELEMETRY": "true"}
    asked = {
        **environment,
        "MLFLOW_BACKEND_STORE_URI": f"sqlite:///{empty_project}/server.db",
        "MLFLOW_SERVER_ALLOWED_HOSTS": SERVICES["mlflow"]["environment"]["MLFLOW_SERVER_ALLOWED_HOSTS"],
    }
    quiet = {"stdout": subprocess.DEVNULL, "stderr": subprocess.DEVNULL}
    with balancer.started(command, env=asked, start_new_session=True, **quiet):
        balancer.wait_for("127.0.0.1", port, seconds=90)
        recorded = subprocess.run(
            [sys.executable, "-c", RECORDED],
            env={**environment, "MLFLOW_TRACKING_URI": f"http://127.0.0.1:{port}"},
            capture_output=True,
            text=True,
            check=False,
        )
        inside, stranger = (asked_as(port, host) for host in ("mlflow:5000", "evil.example"))
    assert recorded.stdout == "1\n", recorded.stderr
    assert (inside, stranger) == (200, 403)
    assert not (empty_project / "mlflow.db").exists()


def asked_as(port: int, host: str) -> int:
    connection = http.client.HTTPConnection("127.0.0.1", port, timeout=30)
    connection.request(
        "GET", "/api/2.0/mlflow/experiments/get-by-name?experiment_name=reperform", headers={"Host": host}
    )
    return connection.getresponse().status


# --- backup and restore --------------------------------------------------------------------------------------------


def script(name: str, *words: str) -> "subprocess.CompletedProcess[str]":
    command = ["bash", str(DEPLOY / f"{name}.sh"), *words]
    path = os.pathsep.join([str(Path(sys.executable).parent), os.environ["PATH"]])
    return subprocess.run(command, capture_output=True, text=True, check=False, env={**os.environ, "PATH": path})


def answered(opened: database.Database, name: str) -> None:
    """One transaction that was answered and logged, as the service does it, without its models."""
    rows = service_rows.transactions(name)
    with opened.transaction() as connection:
        journal.locked(connection)
        sequence = journal.append(connection, "transactions", rows)
        answers.write_answers(connection, service_rows.answers(name), sequence=sequence, request_id=name)
        answers.keep_response(connection, "k1", name, "0" * 64, 200, name.encode())
        calls.append(connection, {"method": "POST", "route": "/api/v1/detect-anomalies", "status": 200})


def state(opened: database.Database) -> dict[str, Any]:
    tables = ("journal", "answers", "responses", "api_keys", "calls", "labels", "alerts", "deliveries", "migrations")
    with opened.transaction() as connection:
        return {name: connection.execute(f"SELECT * FROM service.{name} ORDER BY 1, 2").fetchall() for name in tables}


@pytest.fixture
def served_project(empty_project: Path) -> Path:
    for name in ("tools", "conf"):
        (empty_project / name).symlink_to(ROOT / name)
    shutil.copy(ROOT / "params.yaml", empty_project)
    (empty_project / "dvc.lock").write_text("stages: {}\n")
    with sqlite3.connect(empty_project / "mlflow.db") as registry:
        registry.execute("CREATE TABLE versions (number integer)")
        registry.execute("INSERT INTO versions VALUES (7)")
    return empty_project


def backed_up(folder: Path) -> Path:
    got = script("backup", str(folder))
    assert got.returncode == 0, got.stderr
    assert [one.name for one in folder.iterdir() if one.name.startswith(".")] == []
    return Path(got.stdout.splitlines()[-1].removeprefix("backup: "))


@pytest.mark.slow
def test_what_was_answered_survives_the_loss_of_the_database(served_project: Path, tmp_path: Path) -> None:
    with closing(database.Database()) as opened:
        database.prepare(opened)
        _, secret = keys.create(opened, "till", ["score"], days=1)
        for name in ("T1", "T2"):
            answered(opened, name)
        before = state(opened)
        backup = backed_up(tmp_path / "backups")  # while the service runs
        refused = script("restore", str(backup))
        assert refused.returncode == 1
        assert "Stop every replica first; nothing was changed" in refused.stderr
    shutil.rmtree(served_project / server.FOLDER)
    (served_project / "mlflow.db").unlink()

    got = script("restore", str(backup))

    assert got.returncode == 0, got.stderr
    assert got.stdout.splitlines()[-1] == "restore: 2 answers, 1 keys, 2 calls"
    with closing(database.Database()) as opened:
        database.prepare(opened)
        assert state(opened) == before
        assert keys.checked(opened, secret).name == "till"
        with opened.transaction() as connection:
            assert answers.first_response(connection, "k1", "T1", "0" * 64) == (200, b"T1")
        answered(opened, "T3")  # sequences and the chain go on
    with sqlite3.connect(served_project / "mlflow.db") as registry:
        assert registry.execute("SELECT * FROM versions").fetchall() == [(7,)]


@pytest.mark.slow
def test_a_database_that_is_there_is_replaced_only_when_asked(served_project: Path, tmp_path: Path) -> None:
    with closing(database.Database()) as opened:
        database.prepare(opened)
        answered(opened, "T1")
    backup = backed_up(tmp_path / "backups")
    with closing(database.Database()) as opened:
        answered(opened, "T2")
        whole = state(opened)
    calls_main(served_project)  # keeps where the log ended
    refused = script("restore", str(backup))
    assert refused.returncode == 1
    assert "--replace" in refused.stderr

    spoiled = tmp_path / "spoiled"
    shutil.copytree(backup, spoiled)
    (spoiled / "calls.jsonl").write_text("")
    changed = script("restore", str(spoiled), "--replace")
    assert changed.returncode == 1
    assert "not what was written" in changed.stderr
    sums = (spoiled / "SHA256SUMS").read_text().splitlines()
    dump = spoiled / "reperform.dump"
    dump.write_bytes(dump.read_bytes()[:-2000])
    digest = hashlib.sha256(dump.read_bytes()).hexdigest()
    kept = [line for line in sums if not line.endswith(("calls.jsonl", "reperform.dump"))]
    (spoiled / "SHA256SUMS").write_text("\n".join([*kept, f"{digest}  ./reperform.dump"]) + "\n")
    broken = script("restore", str(spoiled), "--replace")
    assert broken.returncode != 0
    assert "nothing was changed" in broken.stderr
    with closing(database.Database()) as opened:
        assert state(opened) == whole

    got = script("restore", str(backup), "--replace")
    assert got.returncode == 0, got.stderr
    assert got.stdout.splitlines()[-1] == "restore: 1 answers, 0 keys, 1 calls"
    assert "calls that were answered after this backup are lost" in got.stderr
    with closing(database.Database()) as opened:
        assert [row[0] for row in state(opened)["answers"]] == ["T1"]


def calls_main(project: Path) -> None:
    with closing(database.Database()) as opened:
        assert calls.main(opened, project / "data" / "audit" / audit.LOG, None) == 0


def test_scripts_say_how_they_are_called(served_project: Path, tmp_path: Path) -> None:
    assert script("backup").returncode == 2
    assert script("restore", str(tmp_path / "none")).returncode == 2
    empty = script("backup", str(tmp_path / "backups"))
    assert empty.returncode == 1
    assert "no schema 'service'" in empty.stderr
    assert list((tmp_path / "backups").iterdir()) == []
