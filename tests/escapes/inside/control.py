"""Attempts with the paths of a machine: its control path, other machines' paths, descriptors that come over them.

They run in the trio program of a machine and are given that machine; otherwise they are attempts as all others.
"""

import errno
import os
import socket
import traceback
from collections.abc import Awaitable, Callable, Mapping
from typing import Any, Final, NamedTuple

from tests.escapes.inside.attempt import REFUSALS, World, refused, survivors

from retinue.pipes import AccessDenied, PathError, Rejected
from retinue.svm import Machine

Code = Callable[[Machine[Any], World], Awaitable[object]]


class Attempt(NamedTuple):
    """One way to use a path."""

    code: Code
    codes: frozenset[str]
    """How the control program refuses it; none if it is the kernel that does."""
    needs: Mapping[str, str]
    """Layers of which one must be there, and why: without all of them it is possible."""


CONTROL: Final[dict[str, Attempt]] = {}


def attempt(name: str, *codes: str, needs: Mapping[str, str] | None = None) -> Callable[[Code], Code]:
    """Enter the function in the table: refused with OSError, or as the control program does with one of ``codes``."""

    def enter(code: Code) -> Code:
        CONTROL[name] = Attempt(code, frozenset(codes), needs or {})
        return code

    return enter


async def perform(vm: Machine[Any], name: str, world: Mapping[str, Any]) -> dict[str, Any]:
    """Make an attempt; the answer has ``refused`` if the control program did not want it."""
    try:
        value = await CONTROL[name].code(vm, World(**world))
    except Rejected as exc:
        return {"refused": exc.code, "text": exc.text}
    except OSError as exc:
        return {"errno": exc.errno or 0, "text": str(exc)}
    except Exception:
        return {"raised": traceback.format_exc()}
    return {"value": repr(value)[:500]}


async def _ask(vm: Machine[Any], body: Any, descriptors: tuple[int, ...] = ()) -> object:
    """Ask the control program for anything; nothing it hands over is kept."""
    reply = await vm._control.call_reply(body, descriptors=descriptors)
    for descriptor in reply.descriptors:
        os.close(descriptor)
    return reply.body


def _enter_asks() -> None:
    asks: dict[str, tuple[Any, tuple[str, ...]]] = {
        "connect-to-an-undeclared-edge": (["connect", {"edge": "other", "wait": True}], ("denied",)),
        "connect-by-the-name-of-a-machine": (["connect", {"edge": "OTHER", "wait": True}], ("denied",)),
        "connect-to-the-control-program": (["connect", {"edge": "*CP", "wait": True}], ("denied",)),
        "connect-to-the-log": (["connect", {"edge": "*LOG", "wait": True}], ("denied",)),
        "connect-to-itself": (["connect", {"edge": "PRISONER", "wait": True}], ("denied",)),
        "connect-with-another-origin": (
            ["connect", {"edge": "peer", "wait": True, "origin": "OTHER"}],
            ("unknown-verb",),
        ),
        "connect-with-a-number": (["connect", {"edge": 0, "wait": True}], ("unknown-verb",)),
        "connect-with-a-long-name": (["connect", {"edge": "x" * 60_000, "wait": True}], ("denied",)),
        "verb-of-the-operator-down": (["down", {}], ("unknown-verb",)),
        "verb-of-the-operator-ps": (["ps", {}], ("unknown-verb",)),
        "verb-of-the-operator-tap": (["tap", {"edge": "OTHER.peer"}], ("unknown-verb",)),
        "verb-of-the-operator-connect": (["connect", {"machine": "OTHER"}], ("unknown-verb",)),
        "verb-of-the-control-program-offer": (
            ["offer", {"path": 1, "edge": "x", "peer": "OTHER", "limit": 1}],
            ("unknown-verb",),
        ),
        "verb-of-the-control-program-start": (["start", {}], ("unknown-verb",)),
        "verb-of-the-nucleus-spawn": (["spawn", {"birth": {"machine": "EVIL"}}], ("unknown-verb",)),
        "ready-with-more": (["ready", {"machine": "OTHER"}], ("unknown-verb",)),
        "no-verb": (None, ("unknown-verb",)),
        "deep-body": (_deep(200), ("unknown-verb", "violation")),
        "rebind-of-what-is-no-number": (["rebind", {"path": "1", "stream": False, "wanted": True}], ("unknown-verb",)),
        "rebind-of-a-huge-number": (["rebind", {"path": 2**63 - 1, "stream": False, "wanted": True}], ("lost",)),
        "rebind-of-a-negative-number": (["rebind", {"path": -1, "stream": False, "wanted": True}], ("lost",)),
    }
    for name, (body, codes) in asks.items():

        async def ask(vm: Machine[Any], _: World, body: Any = body) -> object:
            return await _ask(vm, body)

        attempt(f"control/{name}", *codes)(ask)


def _deep(levels: int) -> Any:
    body: Any = []
    for _ in range(levels):
        body = [body]
    return body


_enter_asks()


@attempt("control/guess-every-path", "lost")
async def _guess(vm: Machine[Any], _: World) -> object:
    """Each path of the system has a small number; those of others are not told apart from those that never were.

    Of the one over which the order came it is told that it has not ended: that is its own.
    """
    answers: set[str] = set()
    for number in range(200):
        try:
            return await _ask(vm, ["rebind", {"path": number, "stream": False, "wanted": True}])
        except Rejected as exc:
            answers.add(f"{exc.code}: {exc.text}")
    answers.discard("violation: PRISONER asked for a path that has not ended")
    if len(answers) > 1:
        return answers
    raise Rejected("lost")


@attempt("control/descriptors-to-the-control-program", "unknown-verb")
async def _descriptors(vm: Machine[Any], world: World) -> object:
    """It must close what comes with a message that it does not want."""
    descriptors = tuple(os.memfd_create("gift") for _ in range(4))
    try:
        return await _ask(vm, ["gift", {}], descriptors)
    finally:
        for each in descriptors:
            os.close(each)


async def _given(vm: Machine[Any], what: str) -> int:
    """What the machine at the other end of the edge ``peer`` passes on."""
    path = await vm.connect("peer")
    try:
        reply = await path.call_reply(["give", what])
    finally:
        path.sever()
    (descriptor,) = reply.descriptors
    return descriptor


def _through_a_folder(folder: int, name: str) -> object:
    """Every way from a folder that was passed to what is in it and above it."""

    def read(path: str) -> bytes:
        with open(os.open(path, os.O_RDONLY, dir_fd=folder), "rb") as file:
            return file.read(100)

    def write(path: str) -> None:
        os.close(os.open(path, os.O_WRONLY | os.O_CREAT, 0o600, dir_fd=folder))

    def here() -> bytes:
        os.fchdir(folder)
        try:
            with open(name, "rb") as file:
                return file.read(100)
        finally:
            os.chdir("/")

    return survivors(
        {
            "below": lambda: read(name),
            "above": lambda: os.listdir(os.open("..", os.O_RDONLY, dir_fd=folder)),
            "far above": lambda: read("../../../../../../../../etc/passwd"),
            "by its name": here,
            "write": lambda: write("planted"),
            "make": lambda: os.mkdir("planted-folder", dir_fd=folder),
            "remove": lambda: os.unlink("spare", dir_fd=folder),
            "link": lambda: os.link(name, "linked", src_dir_fd=folder, dst_dir_fd=folder),
        },
        REFUSALS | {errno.EXDEV, errno.EROFS},
    )


_FOLDERS: Final = {
    "landlock": "only Landlock looks at what is opened by way of a folder that was passed",
    "own-uid": "or the sender's disk belongs to somebody else",
}


@attempt("passed/open-below-a-folder", needs=_FOLDERS)
async def _folder(vm: Machine[Any], _: World) -> object:
    """A folder that a peer passes on is what was opened, and nothing that lies in it or above it."""
    folder = await _given(vm, "folder")
    try:
        return _through_a_folder(folder, "mine")
    finally:
        os.close(folder)


@attempt("passed/open-below-an-o-path-folder", needs=_FOLDERS)
async def _path_folder(vm: Machine[Any], _: World) -> object:
    folder = await _given(vm, "o-path")
    try:
        return _through_a_folder(folder, "mine")
    finally:
        os.close(folder)


@attempt("passed/write-to-a-file-opened-for-reading")
async def _file(vm: Machine[Any], _: World) -> object:
    file = await _given(vm, "file")
    try:
        os.pread(file, 10, 0)  # this was delegated
        return survivors(
            {
                "write": lambda: os.pwrite(file, b"x", 0),
                "truncate": lambda: os.ftruncate(file, 0),
                "reopen": lambda: os.open(f"/proc/self/fd/{file}", os.O_WRONLY),
                "empty path": lambda: os.open("", os.O_WRONLY, dir_fd=file),
            },
            REFUSALS | {errno.EBADF, errno.EINVAL, errno.EROFS},
        )
    finally:
        os.close(file)


@attempt("passed/socket-of-the-control-path")
async def _control_socket(vm: Machine[Any], _: World) -> object:
    """A peer passes its own control path on: whoever asks over it is that peer, and has that peer's edges only."""
    descriptor = await _given(vm, "control")
    with socket.socket(fileno=descriptor) as sock:
        if sock.type != socket.SOCK_SEQPACKET:
            raise refused(errno.EPERM)
        # To use it is what the peer could do itself. It must not tell who made it.
        return sock.getsockopt(socket.SOL_SOCKET, 77)


__all__ = ["CONTROL", "AccessDenied", "PathError", "perform"]
