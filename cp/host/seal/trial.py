"""The trial: every step of the seal, done once by a scratch process that tells what this host refuses.

Standard library only. Nothing is concluded from versions and settings: a layer is there if it can be put on and, as far
as that can be seen from inside, if it holds.
"""

import errno
import json
import os
import resource
import signal
import traceback
from collections.abc import Callable
from typing import NamedTuple

from retinue.cp.host import libc
from retinue.cp.host.errors import SealFailed

__all__ = ["Steps", "absent"]


class Steps(NamedTuple):
    """What the scratch process does, in this order; a step that raises OSError is a layer that is absent."""

    descriptors: Callable[[int], None]
    """Keeps one, for the answer."""
    root: Callable[[], None]
    user: Callable[[], None] | str
    """A text: why there is none."""
    readable: tuple[str, ...]
    """What that user must be able to read."""
    namespace: Callable[[], None]
    privileges: Callable[[], None]
    """If this cannot be done, nothing can."""
    files: Callable[[], None]
    calls: Callable[[], None]


def absent(steps: Steps) -> dict[str, str]:
    """The layers that cannot be had, and why.

    :raises SealFailed: no_new_privs cannot be had, or the scratch process died in an unknown way.
    """
    read, write = os.pipe()
    child = os.fork()
    if child == 0:
        status = 1
        try:
            signal.set_wakeup_fd(-1)
            steps.descriptors(write)
            # As a machine is: root would own the files in /proc otherwise, and no map of users could be written.
            libc.prctl(libc.PR_SET_DUMPABLE, 1)
            os.write(write, json.dumps(_try(steps)).encode())
            status = 0
        except BaseException:
            traceback.print_exc()
        finally:
            os._exit(status)
    os.close(write)
    with open(read, "rb") as report:
        text = report.read()
    if status := os.waitpid(child, 0)[1]:
        raise SealFailed("trial", f"a scratch process ended with wait status {status}", errno.EINTR)
    found: dict[str, str] = json.loads(text)
    return found


def _try(steps: Steps) -> dict[str, str]:
    found: dict[str, str] = {}

    def attempt(layer: str, step: Callable[[], None]) -> None:
        try:
            step()
        except OSError as error:
            hint = getattr(error, "hint", "")
            found[layer] = f"{error.strerror} ({hint})" if hint else error.strerror or str(error)

    attempt("mount-ns", steps.root)
    if isinstance(steps.user, str):
        found["own-uid"] = steps.user
    elif "mount-ns" in found:
        found["own-uid"] = "without a root of its own it could reach neither its disks nor its code"
    else:
        attempt("own-uid", steps.user)
        if unreadable := [path for path in steps.readable if not os.access(path, os.R_OK)]:
            found["own-uid"] = f"{unreadable[0]} can be read by its owner only"
    attempt("tasks", steps.namespace)
    steps.privileges()
    # Not before: the bound does not hold for who could raise it.
    if "tasks" not in found and not _tasks_are_bounded():
        found["tasks"] = "the kernel does not count the tasks of root"
    attempt("landlock", steps.files)
    attempt("seccomp", steps.calls)
    return found


def _tasks_are_bounded() -> bool:
    resource.setrlimit(resource.RLIMIT_NPROC, (1, 1))
    try:
        child = os.fork()
    except BlockingIOError:
        return True
    if child == 0:
        os._exit(0)
    os.waitpid(child, 0)
    return False
