"""What the machine with the network can do with the UNIX sockets of the host that it was connected to: nothing else.

The attempts are made in a real machine, sealed as it is, with the descriptors themselves.
"""

import contextlib
import errno
import json
import os
import re
import secrets
import signal
import socket
from collections.abc import Iterator

import pytest
from tests.leaks import count_of
from tests.systems import LIMIT, Bench, read_until

TOPOLOGY = """\
[system]
name = "{name}"
[machines.PRISONER]
program = "prisoner"
network = true
host_sockets = ["@{own}", "@{own}-stream"]
"""

PRISONER = """\
import json
import os
import socket
import stat
from retinue.pipes import AccessDenied
from retinue.svm import Machine

OTHER = "\\x00{other}"

def attempts(sock):
    yield "connect", lambda: sock.connect(OTHER)
    yield "connect-seqpacket", lambda: sock.connect(OTHER + "-seqpacket")
    yield "connect-stream", lambda: sock.connect(OTHER + "-stream")
    yield "sendto", lambda: sock.sendto(b"\\xc1", OTHER)
    yield "sendmsg", lambda: sock.sendmsg([b"\\xc1"], [], 0, OTHER)
    yield "bind", lambda: sock.bind(f"\\x00{own}-{sock.type}")
    yield "listen", lambda: sock.listen(1)

def sockets():
    "The number and kind of every socket that this process has, however it came by it, as the kernel says."
    found = {}
    for number in range(256):
        try:
            if not stat.S_ISSOCK(os.fstat(number).st_mode):
                continue
        except OSError:
            continue
        with socket.socket(fileno=os.dup(number)) as copy:
            found[number] = copy.type
    return found

async def main(vm: Machine) -> None:
    before = sockets()
    path = await vm.host_datagrams("@{own}")
    (number,) = sockets().keys() - before.keys()
    given = socket.socket(fileno=os.dup(number))
    await path.call(b"hello")
    stream = await vm.host_stream("@{own}-stream")
    kinds, got = set(sockets().values()), {}
    connected = socket.socket(fileno=os.dup(stream.socket.fileno()))
    for name, sock in (("stream", connected), ("datagram", given)):
        for what, attempt in attempts(sock):
            try:
                attempt()
                got[f"{name} {what}"] = "done"
            except OSError as exc:
                got[f"{name} {what}"] = exc.errno
    for what in ("@{other}", "/run/another"):
        try:
            await vm.host_datagrams(what)
            got["ask " + what[0]] = "done"
        except AccessDenied as exc:
            got["ask " + what[0]] = exc.text
    print("got", json.dumps([sorted(kinds), got]))
    await vm.ready()
    await vm.stopping.wait()
"""


GREEDY = """\
import os
import socket
import time
from retinue.pipes import wire
from retinue.svm import Machine

async def main(vm: Machine) -> None:
    await vm.ready()
    await (await vm.host_stream("@{own}-stream")).aclose()
    control = vm._control
    first = control.session.last_sent + 1
    with socket.socket(fileno=os.dup(control._transport.fileno())) as sock:
        sock.setblocking(True)
        for number in range(first, first + {asked}):
            question = ["socket", {"address": "@{own}-stream", "kind": "stream"}]
            sock.send(wire.encode([wire.Kind.CALL, number, question]))
    time.sleep(60)  # and reads nothing
"""


class Host:
    """Sockets of the host: the two that the machine may be connected to, and others."""

    def __init__(self, stack: contextlib.ExitStack) -> None:
        self.stack = stack
        self.own, self.other = secrets.token_hex(8), secrets.token_hex(8)
        self.datagrams = self.bind(self.own, socket.SOCK_DGRAM)
        self.streams = self.bind(f"{self.own}-stream", socket.SOCK_STREAM)
        self.others = [
            self.bind(self.other, socket.SOCK_DGRAM),
            self.bind(f"{self.other}-seqpacket", socket.SOCK_SEQPACKET),
            self.bind(f"{self.other}-stream", socket.SOCK_STREAM),
        ]

    def bind(self, name: str, kind: int) -> socket.socket:
        made = self.stack.enter_context(socket.socket(socket.AF_UNIX, kind))
        made.bind(f"\0{name}")
        if kind != socket.SOCK_DGRAM:
            made.listen()
        made.setblocking(False)
        return made


@pytest.fixture
def host() -> Iterator[Host]:
    with contextlib.ExitStack() as stack:
        yield Host(stack)


def reached(sock: socket.socket) -> bool:
    try:
        if sock.type == socket.SOCK_DGRAM:
            sock.recv(100)
        else:
            sock.accept()[0].close()
    except BlockingIOError:
        return False
    return True


def test_sockets_of_the_host_lead_nowhere_else(bench: Bench, host: Host) -> None:
    """Not one attempt reaches another socket, and no socket of datagrams is in the machine."""
    (bench.folder / "prisoner.py").write_text(PRISONER.replace("{own}", host.own).replace("{other}", host.other))
    bench.file.write_text(TOPOLOGY.format(name=bench.name, own=host.own))
    bench.up()
    follow = bench.start("logs", "PRISONER", "-f", "-n", "all")
    line = read_until(follow.stdout, lambda each: " got " in each)[-1]
    follow.kill()
    kinds, got = json.loads(re.sub(r"^.* got ", "", line))
    assert socket.SOCK_DGRAM not in kinds
    assert {socket.SOCK_STREAM, socket.SOCK_SEQPACKET} <= set(kinds)
    for what in ("@", "/"):
        assert "put  host_sockets = [" in got.pop(f"ask {what}")
    # To a pair of packets a destination means nothing: the control program got what was sent, and ended the path.
    # And a name, which the kernel lets a connected socket have, makes it no listener.
    harmless = {"datagram sendto", "datagram sendmsg", "stream bind", "datagram bind"}
    assert {name for name, how in got.items() if how == "done"} <= harmless
    refused = {errno.EISCONN, errno.EINVAL, errno.EPIPE, errno.EPERM, errno.ECONNREFUSED, errno.EPROTOTYPE}
    assert {how for how in got.values() if how != "done"} <= refused
    assert len(got) == 14
    assert not any(map(reached, host.others))
    assert host.datagrams.recv(100) == b"hello"
    assert reached(host.streams)
    assert bench.run("down").returncode == 0
    bench.assert_gone()


def test_sockets_that_are_asked_for_and_not_taken_are_bounded(bench: Bench, host: Host) -> None:
    """Each is a descriptor of the control program, which has only so many."""
    asked = 400
    program = GREEDY.replace("{own}", host.own).replace("{asked}", str(asked))
    (bench.folder / "prisoner.py").write_text(program)
    bench.file.write_text(TOPOLOGY.format(name=bench.name, own=host.own))
    host.streams.listen(asked)
    host.streams.settimeout(LIMIT)
    bench.up()
    control_program, most = bench.cp_pid(), 0
    for _ in range(asked):
        host.streams.accept()[0].close()
        most = max(most, count_of(control_program))
    assert most < 200
    assert bench.machine("PRISONER")["generation"] == 1
    os.kill(bench.pid_of("PRISONER"), signal.SIGKILL)
    assert bench.run("down").returncode == 0
    bench.assert_gone()


def test_a_socket_of_datagrams_would_lead_there(host: Host) -> None:
    """So the attempts say something: this is why a machine gets none, even one that is connected."""
    with socket.socket(socket.AF_UNIX, socket.SOCK_DGRAM) as sock:
        sock.connect(f"\0{host.own}")
        sock.sendto(b"x", f"\0{host.other}")
        assert reached(host.others[0])
        sock.connect(f"\0{host.other}")
        sock.send(b"x")
        assert reached(host.others[0])
