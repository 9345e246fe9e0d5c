"""Where systems live on this host: their runtime and state folders, and which of them run.

A system has two folders. The *runtime folder* exists only while the system runs: ``lock`` (an flock that the
nucleus holds as long as it lives), ``operator.sock`` and ``system.json``. The *state folder* stays: the disks of
the machines, ``nucleus.log`` and ``end.json``, which tells how the last run ended.

Runtime folders lie side by side in one *base* folder, which is private to the user. Whoever adds or removes one
holds an flock on the base itself (no file is needed for that), so that a folder that is being filled is never
taken for one that a killed nucleus left behind.
"""

import fcntl
import json
import math
import os
import pathlib
import stat
import time
from collections.abc import Iterator
from contextlib import ExitStack, contextmanager, suppress
from typing import Any

import attrs

from retinue.cp.archive import SYSTEM_NAME
from retinue.cp.places import (
    ELSEWHERE,
    FolderError,
    Folders,
    Places,
    make_folders_of_state,
    make_private_folder,
    make_state_folder,
)

LOCK = "lock"
SYSTEM_JSON = "system.json"
END_JSON = "end.json"
NUCLEUS_LOG = "nucleus.log"

# How long `up` waits for another `up` to finish the moment in which it must be alone (some 0.3 s of process start).
START_WAIT = 15.0
# How long a listing waits for that moment to pass before it looks without being sure.
LOOK_WAIT = 3.0
# How long a cleaner waits; what it does not get to clean, the next command cleans.
CLEAN_WAIT = 2.0
# Longest end.json or system.json that is read: some hundred bytes and a topology's path, so this is generous.
NOTE_MAX = 1 << 20
_PID_MAX = 1 << 22  # the kernel's
_FOLDER = os.O_RDONLY | os.O_DIRECTORY | os.O_NOFOLLOW | os.O_CLOEXEC
_FILE = os.O_RDONLY | os.O_NOFOLLOW | os.O_NONBLOCK | os.O_CLOEXEC
_POLL = 0.01


class SystemRuns(Exception):
    """The runtime folder belongs to a system that is running."""

    def __init__(self, running: "Running") -> None:
        self.running = running
        pid = running.nucleus_pid
        super().__init__(f"the system {running.system} is already running" + (f" (nucleus pid {pid})" if pid else ""))


class PlaceBusy(Exception):
    """Another `retinue up` was starting a system at the same place for too long."""

    def __init__(self, folder: pathlib.Path, seconds: float) -> None:
        self.folder, self.seconds = folder, seconds
        super().__init__(f"another system was being started in {folder} for more than {seconds:g} s")


@attrs.frozen
class Running:
    """A system that runs: its lock is held. What its nucleus has not written yet is None."""

    system: str
    runtime: pathlib.Path
    nucleus_pid: int | None = None
    topology: str | None = None
    state: pathlib.Path | None = None
    started: float | None = None


@attrs.frozen
class End:
    """How the last run of a system ended, as its end.json tells: `time` in seconds since the epoch."""

    system: str
    time: float
    how: str
    text: str


# -- creating ---------------------------------------------------------------------------------------------------


class Window:
    """The moment between the creation of a runtime folder and the nucleus' taking of its lock.

    As long as it is open no other command starts, lists or cleans systems in the same base, so close it as soon
    as the nucleus is known to hold its lock. Closing twice is allowed.
    """

    def __init__(self, descriptor: int | None) -> None:
        self._descriptor = descriptor

    def close(self) -> None:
        """Let the others in."""
        if self._descriptor is not None:
            os.close(self._descriptor)
            self._descriptor = None


@contextmanager
def starting(folders: Folders) -> Iterator[Window]:
    """Create the folders of a system that is about to start, and remove what is left of a run that was killed.

    Raises SystemRuns if a system runs there, FolderError if a folder cannot be created or is not safely ours,
    and PlaceBusy if another start took longer than START_WAIT. The record of how the last run ended is removed:
    from here on it would tell of the wrong run.
    """
    window = _open_window(folders)
    try:
        yield window
    finally:
        window.close()


def _open_window(folders: Folders) -> Window:
    while True:
        try:
            if folders.keep_base:
                make_state_folder(folders.base)
            else:
                make_private_folder(folders.base)
            window = Window(_hold(folders.base, fcntl.LOCK_EX, START_WAIT))
        except FileNotFoundError:
            continue  # the end of the last other system removed the empty base just now
        break
    try:
        if _lock_is_held(folders.runtime):
            raise SystemRuns(_read_running(folders.runtime, folders.system))
        if os.path.lexists(folders.runtime):
            _bury(folders.runtime)
        make_private_folder(folders.runtime)
        make_folders_of_state(folders)
        with suppress(FileNotFoundError):
            (folders.state / END_JSON).unlink()
    except BaseException:
        window.close()
        raise
    return window


# -- discovering ------------------------------------------------------------------------------------------------


def running_systems(places: Places) -> tuple[Running, ...]:
    """All systems that run at these places, by name. Folders of killed systems are removed on the way."""
    alive, stale = [], []
    try:
        hold: int | None = _hold(places.runtime, fcntl.LOCK_SH, LOOK_WAIT)
        sure = True
    except (FileNotFoundError, NotADirectoryError):
        return ()
    except PlaceBusy:
        hold, sure = None, False
    except PermissionError as error:
        raise FolderError(places.runtime, "it may not be read", ELSEWHERE) from error
    try:
        for folder in _runtime_folders(places):
            if _lock_is_held(folder):
                alive.append(_read_running(folder, "" if places.single else folder.name))
            elif sure:
                stale.append(folder)
    finally:
        if hold is not None:
            os.close(hold)
    for folder in stale:
        _clean(places.runtime, folder, keep_base=places.single)
    if sure and not alive and not stale and not places.single:
        _remove_base(places.runtime)
    return tuple(sorted(alive, key=lambda each: each.system))


def running_in(folder: pathlib.Path) -> Running | None:
    """The system that runs in a runtime folder, wherever that is; None if none does. Removes nothing.

    A folder that somebody else may have made, or its base, is none: in /tmp strangers take names that became free.
    """
    with ExitStack() as stack:
        try:
            base = _open_folder(stack, folder.parent, 0o002)
            with suppress(PlaceBusy):  # or a nucleus might not get its lock
                stack.callback(os.close, _hold(folder.parent, fcntl.LOCK_SH, LOOK_WAIT))
            inside = _open_folder(stack, folder.name, 0o022, base)
        except OSError:
            return None
        return _read_running(folder, folder.name, inside) if _lock_is_held(folder, inside) else None


def still_runs(system: Running) -> bool:
    """Whether the system that was found running still is. Never blocks."""
    return _lock_is_held(system.runtime)


def clean(folders: Folders) -> None:
    """Remove the runtime folder of a system that has ended, and the base with it if nothing else runs there.

    The nucleus removes its folder itself; this is for a nucleus that was killed, and for the base. Does nothing
    while the system runs.
    """
    _clean(folders.base, folders.runtime, keep_base=folders.keep_base)


def last_end(places: Places, system: str | None = None) -> End | None:
    """How the last run of `system` (None: of the system that ended last) ended, if that is known."""
    if places.single:
        found = [_read_end(places.state, places.state.name)]
    elif system is not None:
        found = [_read_end(places.folders(system).state, system)]
    else:
        try:
            names = os.listdir(places.state)
        except OSError:
            names = []
        found = [_read_end(places.state / name, name) for name in names]
    return max((end for end in found if end is not None), key=lambda end: end.time, default=None)


def read_end(folders: Folders) -> End | None:
    """How the run of this system that just ended did end; None if its nucleus left no word (it was killed)."""
    return _read_end(folders.state, folders.system)


def _runtime_folders(places: Places) -> list[pathlib.Path]:
    if places.single:
        folder = places.runtime / "run"
        return [folder] if folder.is_dir() and not folder.is_symlink() else []
    with os.scandir(places.runtime) as entries:
        return [pathlib.Path(entry.path) for entry in entries if entry.is_dir(follow_symlinks=False)]


def _open_folder(stack: ExitStack, name: str | pathlib.Path, closed: int, base: int | None = None) -> int:
    """A descriptor of a folder of ours or root's that has none of these bits in its mode. OSError."""
    descriptor = os.open(name, _FOLDER, dir_fd=base)
    stack.callback(os.close, descriptor)
    found = os.fstat(descriptor)
    if found.st_uid not in {0, os.geteuid()} or found.st_mode & closed:
        raise PermissionError(f"{name} may be somebody else's")
    return descriptor


def _lock_is_held(folder: pathlib.Path, inside: int | None = None) -> bool:
    """Whether a nucleus holds the lock in `folder`. Never blocks, and creates nothing.

    Here and below, `inside` is a descriptor of the folder, if there is one: then its path is not asked again.
    """
    try:
        descriptor = os.open(folder / LOCK if inside is None else LOCK, _FILE, dir_fd=inside)
    except OSError:
        return False
    try:
        fcntl.flock(descriptor, fcntl.LOCK_SH | fcntl.LOCK_NB)
    except BlockingIOError:
        return True
    finally:
        os.close(descriptor)
    return False


def _read_note(folder: pathlib.Path, name: str, inside: int | None = None) -> dict[str, Any]:
    """A small JSON object from a file; empty if it is missing, torn or no object. Never blocks."""
    try:
        descriptor = os.open(folder / name if inside is None else name, _FILE, dir_fd=inside)
        try:
            regular = stat.S_ISREG(os.fstat(descriptor).st_mode)
            note = json.loads(os.read(descriptor, NOTE_MAX)) if regular else {}
        finally:
            os.close(descriptor)
    except (OSError, ValueError, RecursionError):
        return {}
    return note if isinstance(note, dict) else {}


def _time(untrusted: Any) -> float | None:
    """Seconds since the epoch, if that is what it is."""
    with suppress(OverflowError):
        return float(untrusted) if isinstance(untrusted, int | float) and math.isfinite(untrusted) else None
    return None


def _path(untrusted: Any) -> pathlib.Path | None:
    """A path that the system can be asked for."""
    with suppress(UnicodeError):
        return pathlib.Path(untrusted) if isinstance(untrusted, str) and b"\0" not in os.fsencode(untrusted) else None
    return None


def _read_running(folder: pathlib.Path, name: str, inside: int | None = None) -> Running:
    note = _read_note(folder, SYSTEM_JSON, inside)
    pid, started = note.get("nucleus_pid"), note.get("started")
    topology, state, system = note.get("topology"), note.get("state"), note.get("system")
    return Running(
        system=system if isinstance(system, str) and SYSTEM_NAME.fullmatch(system) else name,
        runtime=folder,
        nucleus_pid=pid if isinstance(pid, int) and 0 < pid <= _PID_MAX else None,
        topology=topology if isinstance(topology, str) else None,
        state=_path(state),
        started=_time(started),
    )


def _read_end(state: pathlib.Path, name: str) -> End | None:
    note = _read_note(state, END_JSON)
    when, how, text = _time(note.get("time")), note.get("how"), note.get("text", "")
    if when is None or not isinstance(how, str) or not isinstance(text, str):
        return None
    system = note.get("system")
    return End(system if isinstance(system, str) else name, when, how, text)


# -- cleaning ---------------------------------------------------------------------------------------------------


def _clean(base: pathlib.Path, folder: pathlib.Path, *, keep_base: bool) -> None:
    try:
        hold = _hold(base, fcntl.LOCK_EX, CLEAN_WAIT)
    except (OSError, PlaceBusy):
        return  # gone already, or somebody else is at work there: the next command tries again
    try:
        if _lock_is_held(folder):
            return
        if os.path.lexists(folder):
            _bury(folder)
        if not keep_base:
            with suppress(OSError):
                os.rmdir(base)
    finally:
        os.close(hold)


def _remove_base(base: pathlib.Path) -> None:
    try:
        hold = _hold(base, fcntl.LOCK_EX, 0)
    except (OSError, PlaceBusy):
        return
    with suppress(OSError):
        os.rmdir(base)
    os.close(hold)


def _bury(folder: pathlib.Path) -> None:
    """Remove the runtime folder of a nucleus that is gone; if it left no word of its end, leave one for it."""
    note = _read_running(folder, folder.name)
    if note.state is not None:
        end = {
            "system": note.system,
            "time": time.time(),
            "how": "nucleus-died",
            "text": f"the nucleus (pid {note.nucleus_pid}) was killed, and all machines with it",
        }
        with suppress(OSError), (note.state / END_JSON).open("x") as file:
            file.write(json.dumps(end) + "\n")
    import shutil  # here because every listing pays for what this module imports, and few bury anybody

    try:
        if folder.is_symlink() or not folder.is_dir():
            folder.unlink()
        else:
            shutil.rmtree(folder)
    except FileNotFoundError:
        pass
    except OSError as error:
        raise FolderError(folder, f"it cannot be removed ({error.strerror})", f"rm -r {folder}") from error


def _hold(base: pathlib.Path, kind: int, seconds: float) -> int:
    """An open descriptor of `base` with an flock on it. Raises PlaceBusy when `seconds` have passed.

    Whoever held the lock before may have removed the directory: then the descriptor is of a directory that no
    longer has a name, and the attempt begins anew (FileNotFoundError if nobody created it again).
    """
    give_up = time.monotonic() + seconds
    while True:
        descriptor = os.open(base, _FOLDER)
        try:
            fcntl.flock(descriptor, kind | fcntl.LOCK_NB)
        except BlockingIOError:
            os.close(descriptor)
            if time.monotonic() >= give_up:
                raise PlaceBusy(base, seconds) from None
            time.sleep(_POLL)
            continue
        except OSError:
            pass  # a file system without flock on directories (NFS): start one system at a time there
        try:
            if os.path.samestat(os.fstat(descriptor), os.stat(base)):
                return descriptor
        except FileNotFoundError:
            os.close(descriptor)
            raise
        os.close(descriptor)
