"""Where systems keep their folders: chosen by ``--state``, the XDG variables or the home, and never trusted blindly.

A base in /tmp or /var/tmp lies where strangers create names too, so every folder is looked at after it was created:
it must be a real directory, ours, and closed to others.
"""

import os
import pathlib
import pwd
import stat
from collections.abc import Mapping
from contextlib import suppress

import attrs


class FolderError(Exception):
    """A folder could not be created or must not be trusted."""

    def __init__(self, folder: pathlib.Path, problem: str, cure: str) -> None:
        self.folder, self.problem, self.cure = folder, problem, cure
        super().__init__(f"cannot use the folder {folder}: {problem}")


@attrs.frozen
class Folders:
    """The folders of one system: `base` holds `runtime`; `keep_base` says that the base is not ours to remove."""

    system: str
    base: pathlib.Path
    runtime: pathlib.Path
    state: pathlib.Path
    keep_base: bool


@attrs.frozen
class Places:
    """Where the systems of this user are looked for.

    `single` is set by ``--state DIR``: then DIR is the state folder of the only system there, and DIR/run its
    runtime folder. `notice` tells the operator that an unusual place was taken, and why.
    """

    runtime: pathlib.Path
    state: pathlib.Path
    single: bool = False
    notice: str | None = None

    def folders(self, system: str) -> Folders:
        """The folders of the named system, which need not exist."""
        if not system or system in {".", ".."} or "/" in system or "\0" in system:
            raise ValueError(f"not the name of a system: {system!r}")
        if self.single:
            return Folders(system, self.runtime, self.runtime / "run", self.state, keep_base=True)
        return Folders(system, self.runtime, self.runtime / system, self.state / system, keep_base=False)


def find_places(override: str | os.PathLike[str] | None, environ: Mapping[str, str] = os.environ) -> Places:
    """Choose the places by ``--state`` (`override`), the XDG variables, the home, or private folders in /tmp.

    Nothing is created. A relative XDG variable is ignored, as its specification demands; so is a runtime
    directory of somebody else, which ``su`` and ``setpriv`` leave in the environment.
    """
    if override is not None:
        folder = pathlib.Path(override).resolve()
        return Places(folder, folder, single=True)
    uid = os.geteuid()
    runtime = _absolute(environ.get("XDG_RUNTIME_DIR"))
    if runtime is not None and _belongs_to(runtime, uid):
        runtime = runtime / "retinue"
    else:
        runtime = pathlib.Path(f"/tmp/retinue-{uid}")
    state = _absolute(environ.get("XDG_STATE_HOME"))
    if state is not None:
        return Places(runtime, state / "retinue")
    home = _home(environ, uid)
    if home is not None and _can_be_made(home / ".local" / "state" / "retinue", home):
        return Places(runtime, home / ".local" / "state" / "retinue")
    fallback = _fallback()
    why = "there is no home directory" if home is None else f"{home} is not writable"
    return Places(runtime, fallback, notice=f"the state is kept in {fallback}, because {why}")


def _fallback() -> pathlib.Path:
    return pathlib.Path(f"/var/tmp/retinue-{os.geteuid()}")


def _absolute(value: str | None) -> pathlib.Path | None:
    return pathlib.Path(value) if value and value.startswith("/") else None


def _belongs_to(folder: pathlib.Path, uid: int) -> bool:
    try:
        found = os.stat(folder)
    except OSError:
        return False
    return stat.S_ISDIR(found.st_mode) and found.st_uid == uid and _writable(folder)


def _home(environ: Mapping[str, str], uid: int) -> pathlib.Path | None:
    home = _absolute(environ.get("HOME"))
    if home is None:
        with suppress(KeyError):
            home = _absolute(pwd.getpwuid(uid).pw_dir)
    return home if home is not None and os.path.isdir(home) else None


def _writable(folder: pathlib.Path) -> bool:
    return os.access(folder, os.W_OK | os.X_OK, effective_ids=True)


def _can_be_made(folder: pathlib.Path, home: pathlib.Path) -> bool:
    """Whether this user may write `folder`, or create it below the part of the way that exists."""
    for place in (folder, *folder.parents):
        if os.path.isdir(place):
            return _writable(place)
        if place == home:
            break
    return False


# -- creating ---------------------------------------------------------------------------------------------------


def make_folders_of_state(folders: Folders) -> None:
    """Create the state folder of a system: privately where it lies in /var/tmp, else as the user's own."""
    if folders.state.parent == _fallback():
        make_private_folder(folders.state.parent)
        make_private_folder(folders.state)
    else:
        make_state_folder(folders.state)


def make_private_folder(folder: pathlib.Path) -> None:
    """Make sure that `folder` is a real directory (no link), ours, and closed to everybody else.

    It may lie in a place like /tmp where strangers create names too: what is found there is looked at after it
    was created or refused, never before, and the sticky bit keeps it ours from then on.
    """
    try:
        os.mkdir(folder, 0o700)
    except FileExistsError:
        pass
    except OSError as error:
        raise _cannot_create(folder, error) from error
    found = os.lstat(folder)
    if stat.S_ISLNK(found.st_mode):
        raise FolderError(folder, "it is a symbolic link", f"remove the link, or {ELSEWHERE}")
    if not stat.S_ISDIR(found.st_mode):
        raise FolderError(folder, "it is not a directory", f"remove it, or {ELSEWHERE}")
    if found.st_uid != os.geteuid():
        raise FolderError(folder, f"it belongs to the user with id {found.st_uid}", ELSEWHERE)
    if found.st_mode & 0o077:
        mode = stat.S_IMODE(found.st_mode)
        raise FolderError(folder, f"others may enter it (mode {mode:04o})", f"chmod 700 {folder}")


def make_state_folder(folder: pathlib.Path) -> None:
    """Make sure that `folder` (links are followed: it lies where the user wants it) is a directory of ours."""
    try:
        os.makedirs(folder, 0o700, exist_ok=True)
        found = os.stat(folder)
    except OSError as error:
        raise _cannot_create(folder, error) from error
    if found.st_uid != os.geteuid():
        raise FolderError(folder, f"it belongs to the user with id {found.st_uid}", ELSEWHERE)
    if found.st_mode & 0o002:
        raise FolderError(folder, "everybody may write to it", f"chmod o-w {folder}")
    if not _writable(folder):
        raise FolderError(folder, "it is not writable", f"chmod u+rwx {folder}, or {ELSEWHERE}")


ELSEWHERE = "choose another place with --state DIR"


def _cannot_create(folder: pathlib.Path, error: OSError) -> FolderError:
    problem = f"it cannot be created ({os.strerror(error.errno or 0)})"
    return FolderError(folder, problem, f"create it for yourself (mode 0700), or {ELSEWHERE}")
