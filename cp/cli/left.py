"""What is left of a system that does not run, by its note about its records. Light: completions wait for it."""

import os
import pathlib
import shlex
from contextlib import suppress

import attrs

from retinue.cp import runtime
from retinue.cp.archive import STOCK, Archive, read_archive
from retinue.cp.cli.command import Selection
from retinue.cp.cli.errors import NO_SYSTEM, CommandError, NoSystem
from retinue.cp.places import Places, find_places


class NotStored(CommandError):
    """The system does not run, and there are no records of it that could be read."""

    code = NO_SYSTEM


class RunsElsewhere(CommandError):
    """The system runs, but where this command does not look."""

    code = NO_SYSTEM

    def __init__(self, running: runtime.Running, state: pathlib.Path, looked_in: pathlib.Path) -> None:
        pid = f" (nucleus pid {running.nucleus_pid})" if running.nucleus_pid else ""
        problem = f"{running.system} is running{pid} with its runtime folder {running.runtime}, not in {looked_in}"
        super().__init__(problem, f"ask it there: {_way(running, state)}")


@attrs.frozen
class Left:
    """A system that does not run, and what its last run has said of its records."""

    state: pathlib.Path
    archive: Archive
    """With the syslog machine whose records are read, which may be that of an earlier run."""
    why: NoSystem
    """What a command is told that needs it to run."""
    earlier: bool = False
    """Whether the records are not where the last run would have kept them."""

    @property
    def system(self) -> str:
        return self.archive.system

    @property
    def remark(self) -> str:
        """What must be said of the records as a whole."""
        return ", of runs before the last, which has stored none" if self.earlier else ""

    def folder(self) -> pathlib.Path:
        """Where its records are. Raises NotStored when only somebody else could tell, or nobody."""
        archive = self.archive
        if archive.machine is None:
            raise NotStored(
                f"{self.system} is not running, and its last run had no machine that keeps records",
                f'name one in its topology: [system] syslog = "SYSLOG"\n{self.why.cure}',
            )
        folder = archive.folder(self.state)
        if archive.program != STOCK or folder is None:
            raise NotStored(
                f"{self.system} is not running, and its records can be read by {archive.machine} alone, "
                f"which runs {archive.program}",
                self.why.cure,
            )
        return folder


class NotFollowed(CommandError):
    """Nothing comes from a system that does not run."""

    code = NO_SYSTEM

    def __init__(self, left: Left) -> None:
        problem = f"{left.system} is not running: nothing is written that could be followed"
        super().__init__(problem, f"what it has written, as far as it is stored: leave out -f\n{left.why.cure}")


def find_left(chosen: Selection, why: NoSystem) -> Left:
    """What is left of the system that the options mean, or of that which was started last.

    Raises ``why`` if nothing is, and RunsElsewhere if it runs nevertheless.
    """
    places = find_places(chosen.state)
    found = [(folder, note) for folder in _folders(places, chosen) if (note := _note(places, folder)) is not None]
    if chosen.system is not None:
        found = [(folder, note) for folder, note in found if note.system == chosen.system]
    if not found:
        raise why
    found.sort(key=lambda each: each[1].time, reverse=True)
    for folder, note in found:
        if (running := _running(folder, note)) is not None:
            raise RunsElsewhere(running, folder, why.looked_in)
    folder, note = found[0]
    readable = note.readable(folder)
    return Left(folder, readable, why, readable.store != note.store)


def _folders(places: Places, chosen: Selection) -> list[pathlib.Path]:
    if places.single:
        return [places.state]
    if chosen.system is None:
        return [*places.state.glob("*")]
    try:
        return [places.folders(chosen.system).state]
    except ValueError:
        return []


def _note(places: Places, folder: pathlib.Path) -> Archive | None:
    """A copy of a state folder beside it is no system of its own."""
    note = read_archive(folder)
    return note if note is not None and (places.single or note.system == folder.name) else None


def _running(state: pathlib.Path, note: Archive) -> runtime.Running | None:
    """The runtime folder depends on who asks, and from where; the state folder less so."""
    running = runtime.running_in(pathlib.Path(note.runtime)) if note.runtime else None
    if running is None or running.state is None:
        return running
    with suppress(OSError):
        return running if os.path.samefile(running.state, state) else None
    return None


def _way(running: runtime.Running, state: pathlib.Path) -> str:
    """The command that finds it."""
    folder = running.runtime
    if folder.name == "run" and folder.parent == state.resolve():
        return f"retinue logs --state {shlex.quote(str(state))}"
    # Without one it is a folder in /tmp.
    base = str(folder.parent.parent) if folder.parent.name == "retinue" else ""
    system = shlex.quote(running.system)
    return f"env -u RETINUE_STATE XDG_RUNTIME_DIR={shlex.quote(base)} retinue logs --system {system}"
