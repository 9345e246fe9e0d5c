"""A native program inside its machine: real processes and sockets; seal and control program are missing."""

import contextlib
import os
import pathlib
import signal
import socket
import sys
import tempfile
from collections.abc import Iterator

import pytest
import trio
from tests.svm.native_machine import PROGRAM, Record, native
from tests.systems import wait_for

from retinue.pipes import Path, PathSevered, Rejected
from retinue.svm import secret, unix
from retinue.svm.log import CRITICAL, INFO, NOTICE, WARNING

LISTENING = {"door": "listen"}


@pytest.fixture
def run() -> Iterator[pathlib.Path]:
    """A folder with a path that is short enough for sockets."""
    with tempfile.TemporaryDirectory(prefix="native", dir="/tmp") as name:
        yield pathlib.Path(name)


# -- output and end --------------------------------------------------------------------------------------------------


async def test_program_that_writes_and_returns(run: pathlib.Path) -> None:
    """A line is a record, as of a Python program; status 0 ends the machine in order."""
    async with native(run) as it:
        await it.run("say", wait=False)
        assert await it.ended() == 0
        it.lines()
        assert Record(INFO, "stdout", "to standard output") in it.records
        assert Record(NOTICE, "stderr", "to standard error") in it.records
        assert not [record for record in it.records if record.severity < NOTICE]


async def test_program_that_fails_ends_the_machine_with_its_status(run: pathlib.Path) -> None:
    """The last line it said goes into the record that becomes the cause of death."""
    async with native(run) as it:
        await it.run("fail", wait=False)
        assert await it.ended() == 3
        it.lines()
        name = os.path.basename(sys.executable)
        assert Record(CRITICAL, "retinue.exec", f"{name} failed; its last line: no such luck") in it.records


@pytest.mark.parametrize("number", [signal.SIGSEGV, signal.SIGKILL])
async def test_program_that_is_killed_keeps_its_last_words(run: pathlib.Path, number: signal.Signals) -> None:
    """All that it had written is there; the exit status is the shell's, the record names the signal."""
    async with native(run) as it:
        await it.run("crash", str(int(number)), wait=False)
        assert await it.ended() == 128 + number
        assert it.lines() == [*(f"line {each}" for each in range(5000)), "the last word"]
        (record,) = [record for record in it.records if record.severity == CRITICAL]
        assert f"was killed by {number.name}; its last line: the last word" in record.message


async def test_output_that_others_hold_does_not_hold_the_machine(run: pathlib.Path) -> None:
    """A process that the program has left has its standard output, which never ends."""
    async with native(run) as it:
        await it.run("holder", wait=False)
        assert await it.ended() == 0
        assert it.lines() == ["before"]


async def test_orphans_are_reaped(run: pathlib.Path) -> None:
    """While the program lives: none is left to the machine but the program."""
    async with native(run) as it:
        await it.run("orphans")
        await it.said("left")
        await trio.to_thread.run_sync(wait_for, lambda: len(children_of(it.process.pid)) == 1)


async def test_stop_is_a_signal_to_the_program(run: pathlib.Path) -> None:
    """One that knows nothing of SIGTERM ends in order by it; one that does ends as it likes."""
    for word, status in (("wait", 0), ("heed", 5)):
        async with native(run) as it:
            await it.run(word)
            await it.said("waiting")
            await it.stop()
            assert await it.ended() == status
            assert ("good bye" in it.lines()) == bool(status)
            assert not [record for record in it.records if record.severity < WARNING]


async def test_program_goes_on_under_the_next_control_program(run: pathlib.Path) -> None:
    """It has no descriptor of the log, by which that one comes: what it has as 1 and 2 are pipes."""
    async with native(run) as it:
        await it.run("heed")
        await it.said("waiting")
        for _ in range(3):
            async with it.next_control_program() as control:
                assert await control.call(["meters", {}]) == {"uses": {}, "serves": {}, "engaged": 0, "streams": 0}
        async with it.next_control_program():
            await it.stop()
            assert await it.ended() == 5
        assert "good bye" in it.lines()


async def test_program_that_is_started_beside_a_heartbeat(run: pathlib.Path) -> None:
    """A process with two threads makes another one; nothing is said about it."""
    async with native(run) as it:
        await it.control.call(["watch", {"every": 0.01}])
        while not it.beats:
            await trio.lowlevel.checkpoint()
        await it.run("wait")
        await it.said("waiting")
        await it.stop()
        assert await it.ended() == 0
        assert not [record for record in it.records if record.severity <= NOTICE]


async def test_program_does_not_outlive_its_runtime(run: pathlib.Path) -> None:
    """Where there is no PID namespace, the kernel ends it with the machine's own process."""
    async with native(run) as it:
        await it.run("lazybones", str(run / "door.sock"))
        pid = int((await it.said("pid ")).split()[1])
        it.process.kill()
        await trio.to_thread.run_sync(wait_for, lambda: has_ended(pid))


def children_of(pid: int) -> list[str]:
    """The children of a process, zombies among them."""
    return pathlib.Path(f"/proc/{pid}/task/{pid}/children").read_text().split()


def has_ended(pid: int) -> bool:
    """Whether a process is a zombie, or gone."""
    try:
        return "State:\tZ" in pathlib.Path(f"/proc/{pid}/status").read_text()
    except OSError:
        return True


# -- start ------------------------------------------------------------------------------------------------------------


async def test_program_finds_what_it_is_told_and_nothing_else(run: pathlib.Path, tmp_path: pathlib.Path) -> None:
    """Arguments with paths for placeholders, a small environment, the descriptors that it names, default signals."""
    async with native(run) as it:
        words = ["{sockets.db}", "--dir={disks.data}", "{{disks.data}}", "{secrets.key}", "{}", "{links.files}"]
        await it.run(
            *("show", *words),
            sockets={"db": "connect"},
            disks={"data": str(tmp_path), "files": "/usr/share"},
            edges={"db": {"limit": 4}, "peer": {"limit": 4}, "cp": {"limit": 4, "to": "*CP"}},
            secrets={"key": b"hunter2!"},
            wait=False,
        )
        assert await it.ended() == 0
        lines = it.lines()
    shown: dict[str, list[str]] = {}
    for line in lines:
        kind, _, text = line.partition(" ")
        shown.setdefault(kind, []).append(text)
    variables = dict(each.split(" ", 1) for each in shown["variable"])
    numbers = [int(variables.pop(f"RETINUE_{name}")) for name in ("EDGE_PEER", "SECRET_KEY")]
    key = f"/proc/self/fd/{numbers[1]}"
    assert shown["word"] == [f"{run}/db.sock", f"--dir={tmp_path}", "{disks.data}", key, "{}", "/usr/share"]
    assert shown["file"] == ["hunter2!"]
    assert os.listdir(run) == ["db.sock"], "no secret lies in a folder of the host"
    variables.pop("TZ", None)
    variables.pop("LC_CTYPE", None)  # set by the interpreter that this program is written for
    assert variables == {
        "PATH": "/usr/local/bin:/usr/bin:/bin",
        "LANG": os.environ.get("LANG", "C.UTF-8"),
        "HOME": str(tmp_path),
        "RETINUE_MACHINE": "NATIVE",
        "RETINUE_DISK_DATA": str(tmp_path),
        "RETINUE_DISK_FILES": "/usr/share",
    }
    assert shown["folder"] == ["/"]
    assert list(map(int, shown["descriptors"][0].split())) == sorted([0, 1, 2, *numbers])
    assert shown["secret"] == ["hunter2!"]
    assert "it" not in shown


def ignored() -> int:
    """The signals that this process ignores, also those that the C library keeps to itself (posix_spawn(3) does)."""
    status = pathlib.Path("/proc/self/status").read_text()
    return next(int(line.split()[1], 16) for line in status.splitlines() if line.startswith("SigIgn"))


async def test_program_starts_with_default_signals(run: pathlib.Path) -> None:
    """Python ignores some; whoever it starts should not. What was ignored before it (nohup) is not its affair."""
    before = ignored()
    for ours in (signal.SIGPIPE, signal.SIGXFSZ):
        before &= ~(1 << ours - 1)
    async with native(run) as it:
        await it.run(command=["grep", "^SigIgn", "/proc/self/status"], wait=False)
        assert await it.ended() == 0
        assert it.lines() == [f"SigIgn:\t{before:016x}"]


async def test_descriptors_have_numbers_that_a_shell_knows(run: pathlib.Path) -> None:
    """That of Debian knows those of one digit."""
    async with native(run) as it:
        it.targets["peer"] = shout
        script = "echo hello >&$RETINUE_EDGE_PEER; read -r line <&$RETINUE_EDGE_PEER; echo $line $RETINUE_SECRET_KEY"
        await it.run(
            command=["sh", "-c", script], edges={"peer": {"limit": 4}}, secrets={"key": b"hunter2!"}, wait=False
        )
        assert await it.ended() == 0
        assert it.lines() == ["HELLO 4"]


async def test_program_that_cannot_be_run(run: pathlib.Path, tmp_path: pathlib.Path) -> None:
    """It is no file, or no program: the statuses of a shell, and a record that says it."""
    text = tmp_path / "text"
    text.write_text("no program")
    text.chmod(0o700)
    for path, status, reason in (
        (tmp_path / "nothing", 127, "No such file or directory"),
        (tmp_path, 126, "Permission denied"),
        (text, 126, "Exec format error"),
    ):
        async with native(run) as it:
            await it.run(command=[str(path)], wait=False)
            assert await it.ended() == status
            it.lines()
            (record,) = it.records
            assert record.severity == CRITICAL
            assert record.message.startswith(f"{path} cannot be run: ")
            assert reason in record.message


@pytest.mark.parametrize(
    ("arguments", "text"),
    [
        ({"command": ["no-such-program"]}, "there is no program no-such-program in /usr/local/bin, /usr/bin, /bin"),
        ({"command": ["./server"]}, "the program ./server has no absolute path"),
        ({"command": ["/bin/true", "{disks.a}"]}, "exec has {disks.a} in it, and NATIVE has no disks.a"),
        ({"run": "/run/" + "x" * 200, "sockets": LISTENING}, "the path of sockets.door has 215 bytes"),
    ],
)
async def test_command_that_cannot_be_right(run: pathlib.Path, arguments: dict[str, object], text: str) -> None:
    """It is told at load, before anything of the system has started."""
    async with native(run) as it:
        with pytest.raises(Rejected, match="(?s)" + text.replace("{", "\\{")) as caught:
            await it.load(**arguments)  # type: ignore[arg-type]
        assert caught.value.code == "bad-program"


async def test_program_takes_no_config(run: pathlib.Path) -> None:
    """It has arguments."""
    async with native(run) as it:
        with pytest.raises(Rejected, match="takes no config"):
            await it.load("say", config={"a": 1})


# -- sockets: listen --------------------------------------------------------------------------------------------------


async def exchange(path: Path, data: bytes) -> bytes:
    """Send everything, say that it was all, and read to the end."""
    stream = path.stream()
    got = bytearray()

    async def send() -> None:
        await stream.send_all(data)
        await stream.send_eof()

    async with trio.open_nursery() as nursery:
        nursery.start_soon(send)
        async for chunk in stream:
            got += chunk
    return bytes(got)


async def test_machine_is_ready_when_its_program_listens(run: pathlib.Path) -> None:
    """Not before, and never if it ends first; without a socket at once."""
    async with native(run) as it:
        await it.run("echo", "{sockets.door}", "0.3", sockets=LISTENING, wait=False)
        with trio.move_on_after(0.2):
            await it.ready.wait()
        assert not it.ready.is_set()
        await it.ready.wait()
        assert await exchange(await it.path(), b"hello") == b"hello"
    async with native(run) as it:
        await it.run("fail", sockets=LISTENING, wait=False)
        assert await it.ended() == 3
        assert not it.ready.is_set()
    async with native(run) as it:
        await it.run("wait")


async def test_each_path_is_a_connection(run: pathlib.Path) -> None:
    """Many at a time, whole, with half-close; a stale socket of an earlier generation is no hindrance."""
    (run / "door.sock").touch()
    data = os.urandom(3_000_000)
    async with native(run) as it:
        await it.run("echo", "{sockets.door}", sockets=LISTENING)
        async with trio.open_nursery() as nursery:
            for _ in range(20):

                async def check() -> None:
                    assert await exchange(await it.path(), data) == data

                nursery.start_soon(check)


async def test_messages_before_the_stream_are_taken(run: pathlib.Path) -> None:
    """One-way messages such as TCPIP's are received, calls refused; then come bytes."""
    async with native(run) as it:
        await it.run("echo", "{sockets.door}", sockets=LISTENING)
        path = await it.path()
        await path.send({"type": "tcp.open", "client": ["127.0.0.1", 1], "server": ["127.0.0.1", 2]})
        with pytest.raises(Rejected, match="byte stream") as caught:
            await path.call("hello")
        assert caught.value.code == "unknown-message"
        assert await exchange(path, b"hello") == b"hello"


async def test_path_that_waits_for_a_greeting(run: pathlib.Path) -> None:
    """The program speaks first, also when this end has not sent a byte; ended by it, the path ends."""
    async with native(run) as it:
        await it.run("greet", "{sockets.door}", "close", sockets=LISTENING)
        path = await it.path()
        stream = path.stream()
        assert await stream.receive_some() == b"hello"
        assert await stream.receive_some() == b""
        await path.wait_severed()
        assert isinstance(path.severed, PathSevered)
        assert path.severed.code == "closed"


async def test_half_close_by_the_program(run: pathlib.Path) -> None:
    """It has ended its side, and hears ours."""
    async with native(run) as it:
        await it.run("greet", "{sockets.door}", "half", sockets=LISTENING)
        stream = (await it.path()).stream()
        assert await stream.receive_some() == b"hello"
        assert await stream.receive_some() == b""
        await stream.send_all(b"and you")
        assert await it.said("heard b'and you'")


async def test_program_that_dies_cuts_its_connections(run: pathlib.Path) -> None:
    """What it had sent comes, and then no end but an error: nobody takes a part for the whole."""
    async with native(run) as it:
        await it.run("greet_second", "{sockets.door}", "die", sockets=LISTENING)
        stream = (await it.path()).stream()
        got = bytearray()

        async def read() -> None:
            async for chunk in stream:
                got.extend(chunk)

        with pytest.raises(trio.BrokenResourceError):
            await read()
        assert got == b"x" * 100_000


async def test_program_that_leaves_sends_its_last_bytes(run: pathlib.Path) -> None:
    """Ended in order it has closed its connections in order."""
    async with native(run) as it:
        await it.run("greet_second", "{sockets.door}", "leave", sockets=LISTENING)
        stream = (await it.path()).stream()
        assert await stream.receive_some() == b"hello"
        assert await stream.receive_some() == b""
        assert await it.ended() == 0


async def test_program_that_does_not_listen_any_more(run: pathlib.Path) -> None:
    """The path is refused, with a record."""
    async with native(run) as it:
        await it.run("once", "{sockets.door}", sockets=LISTENING)
        await it.said("waiting")
        path = await it.path()
        path.stream()
        await path.wait_severed()
        assert isinstance(path.severed, PathSevered)
        assert path.severed.code == "refused"
        assert "nobody takes connections at sockets.door" in await it.said("nobody takes")


async def test_machine_without_a_listening_socket_refuses_paths(run: pathlib.Path) -> None:
    """At once, and says what is missing."""
    async with native(run) as it:
        await it.run("wait")
        path = await it.path()
        await path.wait_severed()
        assert "NATIVE takes no paths" in str(path.severed)


async def test_full_backlog_is_waited_for(run: pathlib.Path) -> None:
    """connect(2) of a non-blocking socket fails then; no path is lost by it."""
    async with native(run) as it:
        await it.run("lazybones", "{sockets.door}", sockets=LISTENING)
        pid = int((await it.said("pid ")).split()[1])
        streams = [(await it.path()).stream() for _ in range(5)]
        os.kill(pid, signal.SIGUSR1)
        for stream in streams:
            assert await stream.receive_some() == b"at last"


# -- sockets: connect, and descriptors --------------------------------------------------------------------------------


async def shout(path: Path) -> None:
    """The other end of an edge: says in capitals what it hears."""
    stream = path.stream()
    async for chunk in stream:
        await stream.send_all(bytes(chunk).upper())
    with contextlib.suppress(trio.BrokenResourceError):  # the program may have ended meanwhile
        await stream.send_eof()


async def test_each_connection_is_a_path(run: pathlib.Path) -> None:
    """The socket is there before the program, for the machine's user alone."""
    async with native(run) as it:
        it.targets["db"] = shout
        await it.run("ask", "{sockets.db}", "3", sockets={"db": "connect"}, edges={"db": {"limit": 4}}, wait=False)
        assert await it.ended() == 0
        answers = [f"answer b'QUESTION {each}'" for each in range(3)]
        assert it.lines() == [*answers, "mode 0o140600"]


async def test_edge_that_is_refused_closes_the_connection(run: pathlib.Path) -> None:
    """With a record that says why."""
    async with native(run) as it:
        await it.run("ask", "{sockets.db}", sockets={"db": "connect"}, edges={"db": {"limit": 4}}, wait=False)
        assert await it.ended() == 0
        assert it.lines()[0] == "no answer"
        (record,) = [record for record in it.records if record.logger == "retinue.exec"]
        assert record.severity == WARNING
        assert "the edge db is not available" in record.message
        assert "it will not come back" in record.message


async def test_edge_as_a_descriptor(run: pathlib.Path) -> None:
    """Connected at the start: the other end may speak first."""

    async def greet(path: Path) -> None:
        stream = path.stream()
        await stream.send_all(b"good day")
        await stream.send_eof()

    async with native(run) as it:
        it.targets["peer"] = greet
        await it.run("talk", "PEER", "", edges={"peer": {"limit": 4}}, wait=False)
        assert await it.ended() == 0
        assert it.lines() == ["answer b'good day'", "rest b''"]


async def test_lazy_edge_is_connected_when_it_is_used(run: pathlib.Path) -> None:
    """With the first byte; a program that never writes never connects it."""
    connected: list[Path] = []

    async def note(path: Path) -> None:
        connected.append(path)
        await shout(path)

    async with native(run) as it:
        it.targets["peer"] = note
        await it.run("wait", edges={"peer": {"limit": 4, "lazy": True}})
        await it.said("waiting")
        assert not connected
    async with native(run) as it:
        it.targets["peer"] = note
        await it.run("talk", "PEER", edges={"peer": {"limit": 4, "lazy": True}}, wait=False)
        assert await it.ended() == 0
        assert it.lines() == ["answer b'QUESTION'", "rest b''"]
        assert len(connected) == 1


def test_secret_as_a_file(run: pathlib.Path) -> None:
    """Where the machine has a root of its own: for itself alone, and new."""
    path = run / "key.secret"
    path.write_text("an earlier generation's, which is longer")
    assert secret.write_file(str(path), b"hunter2!") == str(path)
    assert path.read_bytes() == b"hunter2!"
    assert path.stat().st_mode & 0o777 == 0o400


# -- UNIX sockets -----------------------------------------------------------------------------------------------------


async def test_hang_up_and_half_close_are_told_apart() -> None:
    """POLLHUP is the one, an end of stream without it the other."""
    ours, theirs = unix.pair()
    assert not unix.hung_up(ours)
    theirs.shutdown(socket.SHUT_WR)
    assert await ours.receive_some() == b""
    assert not unix.hung_up(ours)
    theirs.close()
    assert unix.hung_up(ours)
    await ours.aclose()


async def test_dial_of_a_socket_that_is_not_there(run: pathlib.Path) -> None:
    """Is an error at once."""
    with pytest.raises(FileNotFoundError):
        await unix.dial(str(run / "nothing"))


def test_native_programs_are_a_script() -> None:
    """It runs without anything of ours."""
    assert "retinue." not in pathlib.Path(PROGRAM).read_text()
