"""``examples/web`` under measurement: a copy of it, on another port, started and stopped by the command line."""

import contextlib
import http.client
import json
import pathlib
import shutil
from collections.abc import Iterator
from typing import Final

import attrs

from benchmarks import systems
from benchmarks.processes import Storage, cpu_time, descendants, free_port, storage

EXAMPLE: Final = pathlib.Path(__file__).resolve().parent.parent / "examples" / "web"
PLAIN: Final = "/count"
ASGI: Final = "/"

_ADDRESS: Final = "127.0.0.1:8080"
_ROUTES: Final = "config.routes ="
# Machines that a measurement kills every few seconds: the pauses of the example, up to 10 s, would be what is
# measured.
_KILLED: Final = ("[machines.HTTPD]\n", "[machines.SHOP]\n", "[machines.COUNT]\n")
_PAUSE: Final = 'pause = "0s"\n'


@attrs.frozen
class Web:
    """The running example. ``processes`` are the machines by name, then the CP, the nucleus and the saved systems."""

    port: int
    processes: dict[str, int]
    disks: pathlib.Path

    def cpu(self) -> dict[str, float]:
        """Seconds of CPU that each process has used."""
        return {name: cpu_time(pid) for name, pid in self.processes.items()}

    def storage(self) -> dict[str, Storage | None]:
        """What each process keeps; None where we may not look."""
        return {name: storage(pid) for name, pid in self.processes.items()}

    def disk_use(self) -> int:
        """KiB on the disks of all machines."""
        return sum(file.stat().st_size for file in self.disks.rglob("*") if file.is_file()) // 1024


def get(port: int, path: str) -> tuple[int, bytes]:
    """Status and body of one GET. Raises OSError or HTTPException when there is no answer."""
    connection = http.client.HTTPConnection("127.0.0.1", port, timeout=5)
    try:
        connection.request("GET", path)
        response = connection.getresponse()
        return response.status, response.read()
    finally:
        connection.close()


def answers(port: int, path: str = ASGI) -> bool:
    """Whether a server answers a GET with 200."""
    try:
        return get(port, path)[0] == 200
    except (OSError, http.client.HTTPException):
        return False


def topology(text: str, port: int, *, access_log: bool) -> str:
    """The example's topology with another port, no pause after deaths, and HTTPD's access log on or off."""
    if not all(part in text for part in (_ADDRESS, _ROUTES, *_KILLED)):
        raise ValueError("examples/web/web.toml has changed: its address, its machines or HTTPD's routes are not found")
    for part in _KILLED:
        text = text.replace(part, part + _PAUSE)
    switch = f"config.access_log = {'true' if access_log else 'false'}\n"
    return text.replace(_ADDRESS, f"127.0.0.1:{port}").replace(_ROUTES, switch + _ROUTES, 1)


def copy_example(folder: pathlib.Path, port: int, *, access_log: bool) -> pathlib.Path:
    """The example in a folder, with its programs; returns the topology's file."""
    folder.mkdir()
    for program in EXAMPLE.glob("*.py"):
        shutil.copy(program, folder)
    file = folder / "web.toml"
    file.write_text(topology((EXAMPLE / "web.toml").read_text("utf-8"), port, access_log=access_log), "utf-8")
    return file


@contextlib.contextmanager
def running(folder: pathlib.Path, *, access_log: bool) -> Iterator[Web]:
    """The example, up from the start to the end of the block. ``folder`` is made. Raises :exc:`NotStarted`."""
    port = free_port()
    folder.mkdir()
    file = copy_example(folder / "web", port, access_log=access_log)
    state = folder / "state"
    with systems.running(file, state) as nucleus:
        yield Web(port, _processes(state, nucleus), state / "disks")


def _processes(state: pathlib.Path, nucleus: int) -> dict[str, int]:
    machines = json.loads(systems.retinue(state, "ps", "--json").stdout)["machines"]
    found = {machine["name"]: machine["pid"] for machine in machines if machine["pid"] is not None}
    known = set(found.values())
    return {**found, **{name: pid for pid, name in sorted(descendants(nucleus).items()) if pid not in known}}
