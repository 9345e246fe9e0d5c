"""Sending records on to a UNIX socket of the host, from a real system, sealed as it is."""

import contextlib
import os
import pathlib
import shutil
import signal
import socket
import tempfile
import threading
from collections.abc import Iterator

import pytest
from tests.services.chatty import CHATTY, TOPOLOGY, Came, check_rsyslog, numbers
from tests.services.collectors import lines_of, needs_rsyslog, rsyslog_at_socket
from tests.systems import LIMIT, Bench, read_until, wait_for


@pytest.fixture
def place() -> Iterator[pathlib.Path]:
    """A folder with a short name, for an address has 107 bytes; whatever user the system runs as may look into it."""
    folder = pathlib.Path(tempfile.mkdtemp(prefix="rt"))
    yield folder
    shutil.rmtree(folder)


class Reader:
    """A collector on a thread, at a UNIX socket."""

    def __init__(self, address: str, kind: int) -> None:
        self.came = Came()
        self.connections = 0
        self._socket = socket.socket(socket.AF_UNIX, kind)
        self._socket.bind(f"\0{address[1:]}" if address.startswith("@") else address)
        self._kind = kind
        if kind == socket.SOCK_STREAM:
            self._socket.listen()
        self._thread = threading.Thread(target=self._run, daemon=True)
        self._thread.start()

    def _run(self) -> None:
        with contextlib.suppress(OSError):  # closed
            while True:
                if self._kind == socket.SOCK_STREAM:
                    self._read(self._socket.accept()[0])
                elif message := self._socket.recv(65536):
                    self.came.put(message)
                else:
                    return

    def _read(self, connection: socket.socket) -> None:
        self.connections += 1
        with connection:
            self.came.take(connection)

    def close(self) -> None:
        self._socket.shutdown(socket.SHUT_RDWR)
        self._thread.join(LIMIT)
        self._socket.close()


def write(bench: Bench, to: str, *, host_sockets: str = "") -> None:
    address = to.partition("://")[2]
    (bench.folder / "chatty.py").write_text(CHATTY)
    text = TOPOLOGY.format(name=bench.name, to=to, rule=f"unix:{address}")
    bench.file.write_text(
        text.replace("network = true\n", f'network = true\nhost_sockets = ["{host_sockets or address}"]\n')
    )


@pytest.mark.parametrize("form", ["unix", "unix-abstract", "unix-stream"])
def test_records_leave_a_sealed_system(bench: Bench, place: pathlib.Path, form: str) -> None:
    """All of them, in order; also when SYSLOG, TCPIP or the control program is killed in between."""
    address = f"@{place.name}/log" if form == "unix-abstract" else str(place / "log")
    reader = Reader(address, socket.SOCK_STREAM if form == "unix-stream" else socket.SOCK_DGRAM)
    with contextlib.closing(reader):
        write(bench, f"{form.removesuffix('-abstract')}://{address}")
        bench.up()
        messages = reader.came.until(499)
        assert {each.host for each in messages} == {bench.name}
        assert any("SYSLOG is READY" in each.text for each in messages)
        match form:
            case "unix":
                os.kill(bench.ask("status")["cp_pid"], signal.SIGKILL)
            case "unix-abstract":
                os.kill(bench.pid_of("TCPIP"), signal.SIGKILL)
            case "unix-stream":
                os.kill(bench.pid_of("SYSLOG"), signal.SIGKILL)
        assert bench.run("stop", "CHATTY").returncode == 0
        messages += reader.came.until(999)
        assert numbers([each.text for each in messages]) == list(range(1000))
        assert bench.run("down").returncode == 0
    bench.assert_gone()


@needs_rsyslog
def test_rsyslog_that_is_away_for_a_while(bench: Bench, place: pathlib.Path) -> None:
    """Its datagram socket: it gets every record in order, one that says that it was away, one that it is back."""
    address, folder = place / "log", bench.folder / "rsyslog"
    with rsyslog_at_socket(folder, address) as records:
        write(bench, f"unix://{address}")
        bench.up()
        wait_for(lambda: numbers(lines_of(records))[-1:] == [499])
    assert bench.run("stop", "CHATTY").returncode == 0
    follow = bench.start("logs", "SYSLOG", "-f", "-n", "all")
    read_until(follow.stdout, lambda line: "takes no records" in line)
    follow.kill()
    with rsyslog_at_socket(folder, address) as records:
        wait_for(lambda: any("takes records again" in line for line in lines_of(records)[-1:]))
    check_rsyslog(lines_of(records), bench.name, "unix")
    assert bench.run("down").returncode == 0
    bench.assert_gone()


def test_what_the_topology_does_not_name_is_told_with_the_line_that_would(bench: Bench, place: pathlib.Path) -> None:
    """TCPIP's own rules are not enough."""
    address = str(place / "log")
    with contextlib.closing(Reader(address, socket.SOCK_DGRAM)):
        write(bench, f"unix://{address}", host_sockets="/run/another")
        bench.up()
        follow = bench.start("logs", "SYSLOG", "-f", "-n", "all")
        said = read_until(follow.stdout, lambda each: "takes no records" in each)
        follow.kill()
        assert f'host_sockets = ["/run/another", "{address}"]  under [machines.TCPIP]' in said[-1]
        assert bench.run("down").returncode == 0
    bench.assert_gone()
