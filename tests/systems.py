"""Real systems for tests, as users have them: the command, a nucleus, machines; and nothing left behind."""

import json
import os
import pathlib
import secrets
import signal
import string
import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager, suppress
from typing import Any

import pytest
import trio
from tests.command import limited, run_here

from retinue.cp.operator_socket import connect_operator
from retinue.pipes import PathError, SocketTransport, open_path

# No test may take longer for one step than the slowest machine needs for it.
LIMIT = 60

ASKER = """\
import logging
from retinue.svm import Machine

async def main(vm: Machine) -> None:
    path = await vm.connect("server")
    logging.info("the server says %s", await path.call("hello"))
    print("first\\x1b[2J\\rline")
    await vm.ready()
    await vm.stopping.wait()
    print("goodbye")
"""

SERVER = """\
from retinue.svm import Machine

async def main(vm: Machine) -> None:
    async def answer(message):
        return message.body.upper()
    await vm.serve(answer)
"""

FAILING = """\
from retinue.svm import Machine

async def main(vm: Machine) -> None:
    print("so far so good")
    raise ValueError("no such luck")
"""

STUBBORN = """\
import trio
from retinue.svm import Machine

async def main(vm: Machine) -> None:
    await vm.ready()
    with trio.CancelScope(shield=True):
        await trio.sleep_forever()
"""

CHATTY = """\
import trio
from retinue.svm import Machine

async def main(vm: Machine) -> None:
    await vm.ready()
    for number in range(500):
        print("number", number)
    await vm.stopping.wait()
    for number in range(500, 1000):
        print("number", number)
"""


class Bench:
    """A topology of its own, folders of its own, and what is needed to look for leftovers."""

    def __init__(self, folder: pathlib.Path, name: str, environ: dict[str, str]) -> None:
        self.name = name
        self.folder = folder
        self.environ = environ
        self.runtime = pathlib.Path(environ["XDG_RUNTIME_DIR"]) / "retinue"
        self.file = folder / "it.toml"
        self.started: list[subprocess.Popen[str]] = []
        self._orphans: list[int] = []

    def write(self, **programs: str) -> None:
        """One machine for each program; an ASKER uses SERVER."""
        text = f'[system]\nname = "{self.name}"\n'
        for name, source in programs.items():
            (self.folder / f"{name}.py").write_text(source)
            text += f'[machines.{name.upper()}]\nprogram = "{name}"\n'
            if source is ASKER:
                text += 'uses.server = "SERVER"\n'
        self.file.write_text(text)

    def start(self, *args: str, **more: Any) -> "subprocess.Popen[str]":
        code = "import sys; from retinue.cp.cli import main; sys.exit(main())"
        given: dict[str, Any] = {"stdout": subprocess.PIPE, "stderr": subprocess.PIPE, "stdin": subprocess.DEVNULL}
        given["env"] = self.environ
        process = subprocess.Popen([sys.executable, "-c", code, *args], text=True, **(given | more))
        self.started.append(process)
        return process

    def run(self, *args: str) -> "subprocess.CompletedProcess[str]":
        """The command, in this process: to start an interpreter would cost more than what it does."""
        before = _children()
        done = run_here(args, self.environ, LIMIT)
        self._orphans += _children() - before
        return done

    def run_apart(self, *args: str) -> "subprocess.CompletedProcess[str]":
        """The command as a process of its own, as users have it: for tests of that."""
        process = self.start(*args)
        out, err = process.communicate(timeout=LIMIT)
        return subprocess.CompletedProcess(args, process.returncode, out, err)

    def ask(self, verb: str, /, **arguments: Any) -> Any:
        """Ask the control program itself: a command for each look would cost more than what is looked at.

        One that dies meanwhile has a successor, which is asked again.
        """

        async def call() -> Any:
            async with open_path(SocketTransport(connect_operator(self.runtime / self.name))) as path:
                return await path.call([verb, arguments])

        give_up = time.monotonic() + LIMIT
        while True:
            try:
                return trio.run(call)
            except (PathError, OSError):
                assert time.monotonic() < give_up, "nobody answers"
                time.sleep(0.01)

    def machine(self, name: str) -> dict[str, Any]:
        """What ``ps`` says of a machine."""
        (found,) = [each for each in self.ask("ps")["machines"] if each["name"] == name]
        return dict(found)

    def records(self, machine: str) -> list[dict[str, Any]]:
        """All records of a machine, which are not more than one answer holds."""
        answer = self.ask("logs", machine=machine, count=10_000)
        assert answer["more"] is None
        return list(answer["records"])

    def up(self) -> None:
        done = self.run("up", "-d", str(self.file))
        assert done.returncode == 0, done.stderr

    def processes(self) -> dict[int, str]:
        """Every process of the system: pid and title. All of them are told its name when they are started."""
        found = {}
        for entry in os.listdir("/proc"):
            if entry.isdecimal():
                with suppress(OSError, ValueError):  # it is gone; it is somebody else's, who has braces of his own
                    words = pathlib.Path("/proc", entry, "cmdline").read_bytes().split(b"\0")
                    arguments = next((word for word in words if word.startswith(b"{")), b"{}")
                    about = json.loads(arguments)
                    if about.get("system") == self.name:
                        found[int(entry)] = pathlib.Path("/proc", entry, "comm").read_text().strip()
        return found

    def pid_of(self, title: str) -> int:
        (pid,) = [pid for pid, found in self.processes().items() if found.startswith(title)]
        return pid

    def nucleus_pid(self) -> int:
        note = json.loads((self.runtime / self.name / "system.json").read_text())
        return int(note["nucleus_pid"])

    def bury(self) -> None:
        """What ``up`` has left to this process, as an ``up`` apart does to init: it has ended, or is about to."""
        while self._orphans:
            os.waitpid(self._orphans.pop(), 0)

    def cp_pid(self) -> int:
        children = pathlib.Path(f"/proc/{self.nucleus_pid()}/task/{self.nucleus_pid()}/children").read_text()
        programs = set(map(int, children.split())) & {
            pid for pid, title in self.processes().items() if title.startswith("control")
        }
        # The other one, if there is one, was started later, and waits.
        return min(programs)

    def assert_gone(self) -> None:
        """No process, no socket, no folder in the runtime place."""
        assert self.processes() == {}
        assert not self.runtime.exists()


@contextmanager
def open_bench(folder: pathlib.Path) -> Iterator[Bench]:
    """A bench in the folder, for the length of the block; nothing of it survives the block, whatever happens in it."""
    made = make_bench(folder)
    try:
        yield made
    finally:
        _kill(made)


def make_bench(folder: pathlib.Path) -> Bench:
    """A bench with a system name of its own."""
    run = folder / "run"
    run.mkdir(mode=0o700, exist_ok=True)
    environ = {
        name: value
        for name, value in os.environ.items()
        if not name.startswith("RETINUE_") and name not in {"FORCE_COLOR", "NO_COLOR", "COLUMNS"}
    }
    environ |= {"XDG_RUNTIME_DIR": str(run), "XDG_STATE_HOME": str(folder / "state"), "PYTHONWARNINGS": "error"}
    name = "T" + "".join(secrets.choice(string.ascii_uppercase) for _ in range(7))
    return Bench(folder, name, environ)


def _children() -> set[int]:
    """Those of this thread (proc(5)), zombies among them."""
    return set(map(int, pathlib.Path("/proc/thread-self/children").read_text().split()))


def _kill(bench: Bench) -> None:
    """Whatever the test did: nothing of it survives."""
    for pid in bench.processes():
        with suppress(ProcessLookupError):
            os.kill(pid, signal.SIGKILL)
    bench.bury()
    for process in bench.started:
        if process.poll() is None:
            process.kill()
        process.wait()
        for stream in (process.stdout, process.stderr):
            if stream is not None:
                stream.close()
    _remove_groups(bench.name)


def _remove_groups(system: str) -> None:
    """The control groups of a system that was killed: empty, and the next one would remove them; there is none."""
    for line in pathlib.Path("/proc/self/cgroup").read_text().splitlines():
        _, controllers, path = line.split(":", 2)
        ours = pathlib.Path("/sys/fs/cgroup", controllers, path.lstrip("/"))
        for group in ours.glob(f"retinue-{system}-*"):
            for folder, _, _ in os.walk(group, topdown=False):
                with suppress(OSError):  # a process in it is not reaped yet, or it is not ours to remove
                    os.rmdir(folder)


def read_until(stream: Any, condition: Callable[[str], bool]) -> list[str]:
    """Lines of a pipe up to the first one that fits; the end of the stream is a failure."""
    lines: list[str] = []
    with limited(LIMIT):
        for line in stream:
            lines.append(line.rstrip("\n"))
            if condition(lines[-1]):
                return lines
    pytest.fail(f"the stream ended with {lines[-5:]}")


def wait_for(condition: Callable[[], object]) -> None:
    """Poll for what happens in another process, within LIMIT."""
    give_up = time.monotonic() + LIMIT
    while not condition():
        assert time.monotonic() < give_up, "it did not happen in time"
        time.sleep(0.01)
