"""Sending records on from a real system, sealed as it is, to a plain server and to rsyslog."""

import os
import queue
import re
import signal
import socket
import threading
from collections.abc import Iterator
from contextlib import suppress

import pytest
from tests.services.collectors import free_port, lines_of, needs_rsyslog, rsyslog
from tests.services.rfc5424_reader import Frames, Read, read
from tests.systems import LIMIT, Bench, read_until, wait_for

TOPOLOGY = """\
[system]
name = "{name}"
syslog = "SYSLOG"
[machines.SYSLOG]
program = "retinue.services.syslog"
disks.a = {{}}
uses.out = {{ to = "TCPIP", lazy = true }}
config.forward = {{ to = "{to}" }}
[machines.TCPIP]
program = "retinue.services.tcpip"
network = true
config.allow.SYSLOG = ["{rule}"]
[machines.CHATTY]
program = "chatty"
"""

CHATTY = """\
import logging
from retinue.svm import Machine

async def main(vm: Machine) -> None:
    await vm.ready()
    for number in range(500):
        logging.info("number %d", number, extra={"number": number})
    await vm.stopping.wait()
    for number in range(500, 1000):
        logging.info("number %d", number, extra={"number": number})
"""


def start(bench: Bench, port: int) -> None:
    (bench.folder / "chatty.py").write_text(CHATTY)
    to, rule = f"tcp://127.0.0.1:{port}", f"127.0.0.1:{port}"
    bench.file.write_text(TOPOLOGY.format(name=bench.name, to=to, rule=rule))
    bench.up()


def numbers(texts: list[str]) -> list[int]:
    """What CHATTY has counted, in the order in which each number was first seen."""
    found = (re.search(r"number (\d+)$", text) for text in texts)
    return list(dict.fromkeys(int(each[1]) for each in found if each))


class Server:
    """A collector on threads: what comes is in ``messages``."""

    def __init__(self) -> None:
        self._listener = socket.create_server(("127.0.0.1", 0))
        self.port: int = self._listener.getsockname()[1]
        self._came: queue.Queue[Read] = queue.Queue()
        threading.Thread(target=self._accept, daemon=True).start()

    def _accept(self) -> None:
        while True:
            try:
                connection, _ = self._listener.accept()
            except OSError:
                return
            threading.Thread(target=self._read, args=(connection,), daemon=True).start()

    def _read(self, connection: socket.socket) -> None:
        frames = Frames()
        with connection, suppress(ConnectionResetError):  # TCPIP is killed in the middle of it
            while data := connection.recv(65536):
                for message in frames.feed(data):
                    self._came.put(read(message))

    def until(self, number: int) -> list[Read]:
        """Every message up to CHATTY's with that number."""
        found = [self._came.get(timeout=LIMIT)]
        while f"number {number}" != found[-1].text:
            found.append(self._came.get(timeout=LIMIT))
        return found

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
    messages = server.until(499)
    assert {each.host for each in messages} == {bench.name}
    assert any("SYSLOG is READY" in each.text for each in messages)
    last = messages[-1]
    assert (last.app, last.severity, last.data["fields@32473"]) == ("CHATTY", 6, [("number", "499")])
    for title in ("SYSLOG", "TCPIP"):
        os.kill(bench.pid_of(title), signal.SIGKILL)
    assert bench.run("stop", "CHATTY").returncode == 0
    messages += server.until(999)
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
    lines = lines_of(records)
    assert numbers(lines) == list(range(1000))
    one = next(line for line in lines if line.endswith("number 7"))
    _, host, facility, severity, app, data, text = one.split("|")
    assert (host, facility, severity, app, text) == (bench.name, "daemon", "info", "CHATTY", "number 7")
    assert re.fullmatch(
        r'\[retinue@32473 run="[0-9a-f]{32}" seq="\d+" logger="root"\]\[fields@32473 number="7"\]', data
    )
    told = [
        re.sub(r".*\|tcp://[^ ]+ takes (\w+ \w+).*", r"\1", line) for line in dict.fromkeys(lines) if "takes" in line
    ]
    assert told == ["no records", "records again"]
    assert bench.run("down").returncode == 0
    bench.assert_gone()
