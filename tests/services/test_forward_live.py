"""Sending records on from a real system, sealed as it is, to a plain server and to rsyslog."""

import os
import signal
import socket
import threading
from collections.abc import Iterator
from contextlib import suppress

import pytest
from tests.services.chatty import CHATTY, TOPOLOGY, Came, check_rsyslog, numbers
from tests.services.collectors import free_port, lines_of, needs_rsyslog, rsyslog
from tests.systems import Bench, read_until, wait_for


def start(bench: Bench, port: int) -> None:
    (bench.folder / "chatty.py").write_text(CHATTY)
    to, rule = f"tcp://127.0.0.1:{port}", f"127.0.0.1:{port}"
    bench.file.write_text(TOPOLOGY.format(name=bench.name, to=to, rule=rule))
    bench.up()


class Server:
    """A collector on threads."""

    def __init__(self) -> None:
        self._listener = socket.create_server(("127.0.0.1", 0))
        self.port: int = self._listener.getsockname()[1]
        self.came = Came()
        threading.Thread(target=self._accept, daemon=True).start()

    def _accept(self) -> None:
        while True:
            try:
                connection, _ = self._listener.accept()
            except OSError:
                return
            threading.Thread(target=self._read, args=(connection,), daemon=True).start()

    def _read(self, connection: socket.socket) -> None:
        with connection, suppress(ConnectionResetError):  # TCPIP is killed in the middle of it
            self.came.take(connection)

    def close(self) -> None:
        self._listener.shutdown(socket.SHUT_RDWR)
        self._listener.close()


@pytest.fixture
def server() -> Iterator[Server]:
    made = Server()
    yield made
    made.close()


def test_records_leave_a_sealed_system(bench: Bench, server: Server) -> None:
    """From birth, under the name of the system; also when SYSLOG and TCPIP are killed in between, in order."""
    start(bench, server.port)
    messages = server.came.until(499)
    assert {each.host for each in messages} == {bench.name}
    assert any("SYSLOG is READY" in each.text for each in messages)
    last = messages[-1]
    assert (last.app, last.severity, last.data["fields@32473"]) == ("CHATTY", 6, [("number", "499")])
    for title in ("SYSLOG", "TCPIP"):
        os.kill(bench.pid_of(title), signal.SIGKILL)
    assert bench.run("stop", "CHATTY").returncode == 0
    messages += server.came.until(999)
    assert numbers([each.text for each in messages]) == list(range(1000))
    seqs = list(dict.fromkeys(int(each.about["seq"]) for each in messages))
    assert seqs == sorted(seqs)
    assert bench.run("down").returncode == 0
    bench.assert_gone()


@needs_rsyslog
def test_rsyslog_that_is_away_for_a_while(bench: Bench) -> None:
    """It gets every record in order, one that says that it was away, and one that says that it is back."""
    port, folder = free_port(), bench.folder / "rsyslog"
    with rsyslog(folder, port) as records:
        start(bench, port)
        wait_for(lambda: numbers(lines_of(records))[-1:] == [499])
    follow = bench.start("logs", "SYSLOG", "-f", "-n", "all")
    read_until(follow.stdout, lambda line: "takes no records" in line)
    follow.kill()
    assert bench.run("stop", "CHATTY").returncode == 0
    with rsyslog(folder, port) as records:
        wait_for(lambda: "takes records again" in lines_of(records)[-1:][0] if lines_of(records) else False)
    check_rsyslog(lines_of(records), bench.name, "tcp")
    assert bench.run("down").returncode == 0
    bench.assert_gone()
