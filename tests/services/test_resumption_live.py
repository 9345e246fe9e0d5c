"""A whole system whose HTTPD, and then its application, are killed under load: no client notices but by the time."""

import contextlib
import os
import pathlib
import signal
import socket
import threading
from collections import Counter
from collections.abc import Iterator
from contextlib import closing
from typing import Any

import pytest
from tests.systems import Bench, wait_for

CLIENTS = 8
DEATHS = 4

SITE = """\
[system]
name = "{name}"

[machines.TCPIP]
program = "retinue.services.tcpip"
network = true
uses.web = "HTTPD"
config.listen = {{ "127.0.0.1:{port}" = "web" }}

[machines.HTTPD]
program = "retinue.services.httpd"
pause = "0s"
uses.app = "APP"
config.routes = {{ "/" = "app" }}
config.patience = 30
config.access_log = false

[machines.APP]
program = "app"
pause = "0s"
"""

APP = """\
from collections import Counter
from retinue.pipes import Rejected
from retinue.svm import Machine

done = Counter()

async def main(vm: Machine) -> None:
    async def handle(message):
        scope = message.body["scope"]
        if scope["path"] == "/twice":
            return ",".join(path for path, count in done.items() if count > 1)
        if scope["method"] == "POST":
            if message.redelivered:
                raise Rejected("interrupted")
            done[scope["path"]] += 1
        return scope["method"] + scope["path"]
    await vm.serve(handle)
"""


class Client(threading.Thread):
    """Asks over one connection for as long as the test wants, and never opens another one."""

    def __init__(self, port: int, number: int, stop: threading.Event) -> None:
        super().__init__()
        self.statuses: Counter[tuple[str, int]] = Counter()
        self.error = ""
        self._port = port
        self._number = number
        self._wanted = stop

    def run(self) -> None:
        with contextlib.closing(socket.create_connection(("127.0.0.1", self._port), timeout=60)) as connection:
            count = 0
            while not self._wanted.is_set() and not self.error:
                count += 1
                method = "POST" if count % 5 == 0 else "GET"
                self._ask(connection, method, f"/{self._number}/{count}")

    def _ask(self, connection: socket.socket, method: str, path: str) -> None:
        length = "Content-Length: 4\r\n\r\nbody" if method == "POST" else "\r\n"
        try:
            connection.sendall(f"{method} {path} HTTP/1.1\r\nHost: a\r\n{length}".encode())
            status, body = _receive(connection)
        except (OSError, AssertionError) as exc:
            self.error = f"{method} {path}: {exc!r}"
            return
        self.statuses[method, status] += 1
        if status == 200 and body != f"{method}{path}":
            self.error = f"{method} {path}: {body!r}"


def _receive(connection: socket.socket) -> tuple[int, str]:
    """Status and body of one response, which must be all that comes."""
    data = b""
    length = None
    while length is None or len(data) < length:
        piece = connection.recv(65536)
        assert piece, f"the connection ended after {data!r}"
        data += piece
        head, blank, _ = data.partition(b"\r\n\r\n")
        if blank:
            length = len(head) + 4 + int(head.lower().partition(b"content-length: ")[2].partition(b"\r\n")[0])
    assert len(data) == length, data
    return int(data[9:12]), data.partition(b"\r\n\r\n")[2].decode()


class Site:
    """The running system."""

    def __init__(self, bench: Bench, port: int) -> None:
        self.bench = bench
        self.port = port

    def machine(self, name: str) -> dict[str, Any]:
        return self.bench.machine(name)

    def kill(self, name: str) -> None:
        """End its process, and wait for the next one."""
        before = self.machine(name)
        os.kill(before["pid"], signal.SIGKILL)
        wait_for(lambda: (now := self.machine(name))["generation"] > before["generation"] and now["state"] == "READY")

    def ask(self, path: str) -> tuple[int, str]:
        with closing(socket.create_connection(("127.0.0.1", self.port), timeout=60)) as connection:
            connection.sendall(f"GET {path} HTTP/1.1\r\nHost: a\r\n\r\n".encode())
            return _receive(connection)


@pytest.fixture
def site(bench: Bench, tmp_path: pathlib.Path) -> Iterator[Site]:
    with closing(socket.socket()) as probe:
        probe.bind(("127.0.0.1", 0))
        port = int(probe.getsockname()[1])
    bench.file.write_text(SITE.format(name=bench.name, port=port))
    (bench.folder / "app.py").write_text(APP)
    bench.up()
    yield Site(bench, port)
    down = bench.run("down")
    assert down.returncode == 0, down.stderr
    bench.assert_gone()


@pytest.mark.parametrize("victim", ["HTTPD", "APP"])
def test_no_connection_and_no_answer_is_lost_with_a_machine(site: Site, victim: str) -> None:
    """Each client keeps its one connection; each GET is answered by itself; no POST is carried out twice."""
    stop = threading.Event()
    clients = [Client(site.port, number, stop) for number in range(CLIENTS)]
    for client in clients:
        client.start()
    try:
        for _ in range(DEATHS):
            before = [client.statuses.total() for client in clients]
            site.kill(victim)
            wait_for(
                lambda before=before: all(  # type: ignore[misc]
                    client.statuses.total() > count + 20 or client.error
                    for client, count in zip(clients, before, strict=True)
                )
            )
    finally:
        stop.set()
        for client in clients:
            client.join()
    assert [client.error for client in clients if client.error] == []
    statuses = sum((client.statuses for client in clients), Counter())
    assert set(statuses) <= {("GET", 200), ("POST", 200), ("POST", 503 if victim == "HTTPD" else 502)}
    assert statuses["POST", 200] > 0
    assert site.ask("/twice") == (200, "")
