"""Attempts to use up what others need. Each says how much it got; what is too much stands in the test.

Standard library only. They are small: without a seal they do no harm to a host.
"""

import _thread
import errno
import fcntl
import mmap
import os
import resource
import select
import socket
import threading
from collections.abc import Callable, Mapping
from typing import Any, Final

from tests.escapes.inside.attempt import World
from tests.escapes.inside.sockets import send_descriptors

MIB: Final = 1 << 20
# What a bomb stops at by itself, in MiB: some more than the machine's storage.
ENOUGH: Final = 160

BOMBS: Final[dict[str, Callable[[World], int]]] = {}
_kept: Final[list[Any]] = []


def bomb(name: str) -> Callable[[Callable[[World], int]], Callable[[World], int]]:
    """Enter it in the table."""

    def enter(code: Callable[[World], int]) -> Callable[[World], int]:
        BOMBS[name] = code
        return code

    return enter


def explode(name: str, world: Mapping[str, Any]) -> dict[str, Any]:
    """Let it go off; what it got stands in ``got`` unless the machine has died of it, what stopped it in ``end``."""
    try:
        got = BOMBS[name](World(**world))
    except MemoryError:
        got = -1
    if name not in HELD:
        _kept.clear()
    return {"got": got}


# What these have taken they hold until they are told to release it.
HELD: Final = ("memory/shared", "memory/memfd", "memory/socket-buffers", "memory/pipes", "descriptors/in-flight")


def release() -> None:
    """Give back what a bomb holds."""
    for each in (*_held, *_kept):
        for one in each if isinstance(each, tuple) else (each,):
            if isinstance(one, int):
                os.close(one)
            else:
                one.close()
    _held.clear()
    _kept.clear()


_held: Final[list[socket.socket]] = []


@bomb("descriptors/in-flight")
def _in_flight(_: World) -> int:
    """Descriptors that were sent and are not received, until they are released: they are counted for the user."""
    sent = 0
    null = os.open("/dev/null", os.O_RDONLY)
    try:
        while sent < 6000:
            left, right = socket.socketpair()
            left.setblocking(False)
            _held.extend((left, right))
            try:
                while sent < 6000:
                    send_descriptors(left, [null] * 250)
                    sent += 250
            except BlockingIOError:
                continue
    except OSError:
        pass
    finally:
        os.close(null)
    return sent


def _until_refused(step: Callable[[], object], most: int) -> int:
    for count in range(most):
        try:
            _kept.append(step())
        except (OSError, MemoryError, RuntimeError, ValueError):
            return count
    return most


def _filled(kind: int) -> mmap.mmap:
    mapping = mmap.mmap(-1, MIB, kind | mmap.MAP_ANONYMOUS)
    _touch(mapping)
    return mapping


def _touch(mapping: mmap.mmap) -> None:
    for page in range(0, len(mapping), 4096):
        mapping[page] = 1


@bomb("memory/private")
def _private(_: World) -> int:
    """MiB of private memory."""
    return _until_refused(lambda: _filled(mmap.MAP_PRIVATE), ENOUGH)


@bomb("memory/shared")
def _shared(_: World) -> int:
    """MiB of shared anonymous memory, which RLIMIT_DATA does not count."""
    return _until_refused(lambda: _filled(mmap.MAP_SHARED), ENOUGH)


@bomb("memory/many-small")
def _small(_: World) -> int:
    """MiB of objects."""
    return _until_refused(lambda: [bytearray(500) for _ in range(2000)], ENOUGH)


@bomb("memory/memfd")
def _memfd(_: World) -> int:
    """MiB in memfds."""

    def step() -> int:
        descriptor = os.memfd_create("bomb")
        os.write(descriptor, b"x" * MIB)
        return descriptor

    return _until_refused(step, ENOUGH)


def _closing(got: int) -> int:
    for each in _kept:
        os.close(each)
    _kept.clear()
    return got


@bomb("memory/file-backed")
def _file(world: World) -> int:
    """MiB of a file on its disk that is mapped and written to."""
    with open(f"{world.disk}/mapped", "w+b") as file:
        try:
            file.truncate(ENOUGH * MIB)
            with mmap.mmap(file.fileno(), ENOUGH * MIB) as mapping:
                _touch(mapping)
        except OSError:
            return 0
        finally:
            os.unlink(f"{world.disk}/mapped")
    return ENOUGH


@bomb("memory/stack")
def _stack(_: World) -> int:
    """Stacks of threads, a part of each used."""
    end = _thread.allocate_lock()
    end.acquire()

    def deep(level: int) -> int:
        if level:
            return max(map(deep, [level - 1]))
        with end:
            return 0

    # Not threading: start() would wait for ever for a thread that has no memory to begin with.
    try:
        return _until_refused(lambda: _thread.start_new_thread(deep, (200,)), 200)
    finally:
        end.release()


@bomb("memory/pipes")
def _pipes(_: World) -> int:
    """MiB in the buffers of pipes."""

    def step() -> tuple[int, int]:
        read, write = os.pipe2(os.O_NONBLOCK)
        try:
            fcntl.fcntl(write, 1031, MIB)
            os.write(write, b"x" * MIB)
        except OSError:
            os.close(read)
            os.close(write)
            raise
        return read, write

    return _until_refused(step, ENOUGH)


@bomb("memory/socket-buffers")
def _sockets(_: World) -> int:
    """MiB in the buffers of socket pairs."""
    got = 0
    try:
        while got < ENOUGH * MIB:
            left, right = socket.socketpair()
            _kept.append((left, right))
            for one in (left, right):
                one.setblocking(False)
                one.setsockopt(socket.SOL_SOCKET, socket.SO_SNDBUF, MIB)
                try:
                    while True:
                        got += one.send(b"x" * 4096)
                except BlockingIOError:
                    pass
    except OSError:
        pass
    return got // MIB


@bomb("descriptors/open")
def _open(_: World) -> int:
    """Descriptors."""
    return _closing(_until_refused(lambda: os.dup(0), 20_000))


@bomb("descriptors/epoll")
def _epoll(_world: World) -> int:
    """Descriptors watched, which are counted for the user: as many as 50 of 4,000 allow."""
    limit = resource.getrlimit(resource.RLIMIT_NOFILE)[0]
    events = _until_refused(lambda: os.eventfd(0), min(limit, 400) - 100)
    watched = 0
    for _ in range(50):
        watcher = select.epoll()
        _kept.append(watcher.fileno())
        for each in _kept[:events]:
            watcher.register(each)
            watched += 1
        os.dup2(watcher.fileno(), watcher.fileno())
        watcher.close()
        _kept.pop()
    return _closing(watched) and watched


@bomb("tasks/threads")
def _threads(_: World) -> int:
    """Threads."""
    end = _thread.allocate_lock()
    end.acquire()

    def wait() -> None:
        with end:
            pass

    threading.stack_size(64 * 1024)
    try:
        return _until_refused(lambda: _thread.start_new_thread(wait, ()), 3000)
    finally:
        end.release()


@bomb("tasks/processes")
def _processes(_world: World) -> int:
    """Processes."""
    read, write = os.pipe()
    children: list[int] = []
    try:
        for _ in range(3000):
            pid = os.fork()
            if pid == 0:
                os.close(write)
                os.read(read, 1)
                os._exit(0)
            children.append(pid)
    except OSError:
        pass
    os.close(write)
    os.close(read)
    for pid in children:
        os.waitpid(pid, 0)
    return len(children)


@bomb("disks/fill-temporary")
def _fill_temporary(world: World) -> int:
    """MiB on the temporary disk, which has 4."""
    return _fill(world.disk.rpartition("/")[0] + "/t")


@bomb("disks/fill-persistent")
def _fill_persistent(world: World) -> int:
    """MiB on a disk of 4."""
    return _fill(world.disk.rpartition("/")[0] + "/s")


def _fill(folder: str) -> int:
    written = 0
    with open(f"{folder}/full", "wb", buffering=0) as file:
        try:
            while written < 32 * MIB:
                written += file.write(bytes(MIB))
        except OSError as error:
            if error.errno not in (errno.ENOSPC, errno.EFBIG, errno.EDQUOT):
                raise
    return written // MIB


@bomb("disks/inodes-of-temporary")
def _inodes(world: World) -> int:
    """Empty files on the temporary disk of 4 MiB."""
    folder = world.disk.rpartition("/")[0] + "/t"
    for count in range(3_000):
        try:
            os.close(os.open(f"{folder}/{count}", os.O_CREAT | os.O_WRONLY, 0o600))
        except OSError:
            return count
    return 3_000


@bomb("disks/inodes-of-persistent")
def _inodes_of_persistent(world: World) -> int:
    """Empty files on a disk of 4 MiB: they have no blocks, but each takes one of the file system's inodes."""
    folder = world.disk.rpartition("/")[0] + "/s"
    for count in range(3_000):
        try:
            os.close(os.open(f"{folder}/{count}", os.O_CREAT | os.O_WRONLY, 0o600))
        except OSError:
            return count
    return 3_000


@bomb("disks/deep-folders")
def _deep(world: World) -> int:
    """Folders in one another on the temporary disk; whoever removes them must not recurse (Python ends at 1,000)."""
    os.chdir(world.disk.rpartition("/")[0] + "/t")
    try:
        for _ in range(1200):
            os.mkdir("d")
            os.chdir("d")
    finally:
        os.chdir("/")
    return 1200


@bomb("limits/file-locks")
def _locks(world: World) -> int:
    """Locks on single bytes of a file, each of which takes memory of the kernel."""
    import struct

    with open(f"{world.disk}/locked", "w+b") as file:
        count = 0
        try:
            for count in range(5000):
                fcntl.fcntl(file, fcntl.F_SETLK, struct.pack("hhqqi4x", fcntl.F_WRLCK, 0, count * 2, 1, 0))
        except OSError:
            pass
    return count + 1
