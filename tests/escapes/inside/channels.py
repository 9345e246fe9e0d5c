"""Attempts of two machines without an edge to tell each other one bit. Standard library only.

A channel is a pair of functions. The sender is told a bit and leaves something behind; the receiver, in the other
machine, says which bit it was. Both raise OSError when that is refused them.
"""

import contextlib
import ctypes
import errno
import fcntl
import mmap
import os
import socket
import struct
import threading
import time
from collections.abc import Callable
from typing import Any, Final, NamedTuple

from tests.escapes.inside.attempt import USER, World
from tests.escapes.inside.kernel import call

# What is held between two calls, by channel.
_held: Final[dict[str, Any]] = {}
# A file that both machines may read and nobody maps: a module of the standard library that nothing imports.
SHARED: Final = os.path.join(os.path.dirname(os.__file__), "this.py")
_KEY: Final = 0x52657469


class Channel(NamedTuple):
    """One way to tell a bit."""

    send: Callable[[World, int], object]
    receive: Callable[[World], int]
    unsealed: str


CHANNELS: Final[dict[str, Channel]] = {}


Receive = Callable[[World], int]


def channel(name: str, send: Callable[[World, int], object], *, unsealed: str = USER) -> Callable[[Receive], Receive]:
    """Enter the decorated receiver in the table, with its sender."""

    def enter(receive: Receive) -> Receive:
        CHANNELS[name] = Channel(send, receive, unsealed)
        return receive

    return enter


def _drop(name: str) -> None:
    if (held := _held.pop(name, None)) is not None:
        os.close(held)


# Files that both may read: locks, times, the page cache.


def _send_flock(_: World, bit: int) -> None:
    _drop("flock")
    descriptor = _held["flock"] = os.open(SHARED, os.O_RDONLY)
    if bit:
        fcntl.flock(descriptor, fcntl.LOCK_EX | fcntl.LOCK_NB)


@channel("flock-of-a-shared-file", _send_flock)
def _(_: World) -> int:
    descriptor = os.open(SHARED, os.O_RDONLY)
    try:
        fcntl.flock(descriptor, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except BlockingIOError:
        return 1
    finally:
        os.close(descriptor)
    return 0


def _send_device_lock(_: World, bit: int) -> None:
    _drop("device")
    descriptor = _held["device"] = os.open("/dev/null", os.O_RDONLY)
    if bit:
        fcntl.flock(descriptor, fcntl.LOCK_EX | fcntl.LOCK_NB)


@channel("flock-of-a-device", _send_device_lock)
def _(_: World) -> int:
    descriptor = os.open("/dev/null", os.O_RDONLY)
    try:
        fcntl.flock(descriptor, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except BlockingIOError:
        return 1
    finally:
        os.close(descriptor)
    return 0


def _send_device_record_lock(_: World, bit: int) -> None:
    if "device-record" not in _held:
        _held["device-record"] = os.open("/dev/null", os.O_RDWR)
    kind = fcntl.F_WRLCK if bit else fcntl.F_UNLCK
    fcntl.fcntl(_held["device-record"], fcntl.F_SETLK, struct.pack("hhqqi4x", kind, 0, 0, 0, 0))


@channel("record-lock-of-a-device", _send_device_record_lock)
def _(_: World) -> int:
    descriptor = os.open("/dev/null", os.O_RDWR)
    try:
        fcntl.fcntl(descriptor, fcntl.F_SETLK, struct.pack("hhqqi4x", fcntl.F_WRLCK, 0, 0, 0, 0))
    except (BlockingIOError, PermissionError) as error:
        if error.errno in (errno.EAGAIN, errno.EACCES):
            return 1
        raise
    finally:
        os.close(descriptor)
    return 0


def _send_record_lock(_: World, bit: int) -> None:
    if "record" not in _held:
        _held["record"] = os.open(SHARED, os.O_RDONLY)
    fcntl.fcntl(
        _held["record"], fcntl.F_SETLK, struct.pack("hhqqi4x", fcntl.F_RDLCK if bit else fcntl.F_UNLCK, 0, 0, 0, 0)
    )


@channel("record-lock-of-a-shared-file", _send_record_lock)
def _(_: World) -> int:
    descriptor = os.open(SHARED, os.O_RDONLY)
    try:
        answer = fcntl.fcntl(descriptor, fcntl.F_GETLK, struct.pack("hhqqi4x", fcntl.F_WRLCK, 0, 0, 0, 0))
        return int(struct.unpack_from("h", answer)[0] != fcntl.F_UNLCK)
    finally:
        os.close(descriptor)


def _send_description_lock(_: World, bit: int) -> None:
    _drop("description")
    descriptor = _held["description"] = os.open(SHARED, os.O_RDONLY)
    fcntl.fcntl(descriptor, 37, struct.pack("hhqqi4x", fcntl.F_RDLCK if bit else fcntl.F_UNLCK, 0, 0, 0, 0))


@channel("description-lock-of-a-shared-file", _send_description_lock)
def _(_: World) -> int:
    descriptor = os.open(SHARED, os.O_RDONLY)
    try:
        answer = fcntl.fcntl(descriptor, 36, struct.pack("hhqqi4x", fcntl.F_WRLCK, 0, 0, 0, 0))
        return int(struct.unpack_from("h", answer)[0] != fcntl.F_UNLCK)
    finally:
        os.close(descriptor)


def _send_lease(_: World, bit: int) -> None:
    _drop("lease")
    descriptor = _held["lease"] = os.open(SHARED, os.O_RDONLY)
    fcntl.fcntl(descriptor, fcntl.F_SETLEASE, fcntl.F_RDLCK if bit else fcntl.F_UNLCK)


@channel(
    "lease-of-a-shared-file", _send_lease, unsealed="a lease takes the file's owner, and nobody else may have it open"
)
def _(_: World) -> int:
    descriptor = os.open(SHARED, os.O_RDONLY)
    try:
        return int(fcntl.fcntl(descriptor, fcntl.F_GETLEASE) != fcntl.F_UNLCK)
    finally:
        os.close(descriptor)


def _page(advice: int | None) -> None:
    descriptor = os.open(SHARED, os.O_RDONLY)
    try:
        if advice is None:
            os.pread(descriptor, 1, 0)
        else:
            os.posix_fadvise(descriptor, 0, 0, advice)
    finally:
        os.close(descriptor)


def _cached() -> int:
    descriptor = os.open(SHARED, os.O_RDONLY)
    try:
        os.preadv(descriptor, [bytearray(1)], 0, os.RWF_NOWAIT)
    except BlockingIOError:
        return 0
    finally:
        os.close(descriptor)
    return 1


@channel("page-cache-by-nowait", lambda _, bit: _page(None if bit else os.POSIX_FADV_DONTNEED))
def _(_: World) -> int:
    """preadv2(RWF_NOWAIT) reads what is in the page cache and nothing else; fadvise(DONTNEED) takes it out."""
    return _cached()


@channel(
    "page-cache-by-mincore",
    lambda _, bit: _page(None if bit else os.POSIX_FADV_DONTNEED),
    unsealed="takes the owner of the file",
)
def _(_: World) -> int:
    descriptor = os.open(SHARED, os.O_RDONLY)
    try:
        mapping = mmap.mmap(descriptor, 0, mmap.MAP_SHARED, mmap.PROT_READ)
        found = ctypes.create_string_buffer(16)
        libc = ctypes.CDLL(None, use_errno=True)
        libc.mmap.restype = ctypes.c_void_p
        libc.mmap.argtypes = [ctypes.c_void_p, ctypes.c_size_t, ctypes.c_int, ctypes.c_int, ctypes.c_int, ctypes.c_long]
        mapping.close()
        address = libc.mmap(None, 4096, mmap.PROT_READ, mmap.MAP_SHARED, descriptor, 0)
        call((27, 232), address, 4096, ctypes.addressof(found))
        call((11, 215), address, 4096)
        return found.raw[0] & 1
    finally:
        os.close(descriptor)


def _code(world: World) -> str:
    """A file that both may read, whose owner they may be."""
    return SHARED if world.profile == "exec" else __file__


def _send_time(world: World, bit: int) -> None:
    descriptor = os.open(_code(world), os.O_RDONLY)
    try:
        before = os.fstat(descriptor)
        os.utime(descriptor, ns=(before.st_atime_ns, before.st_mtime_ns & ~1 | bit))
    finally:
        os.close(descriptor)


@channel("time-of-a-shared-file", _send_time)
def _(world: World) -> int:
    return os.stat(_code(world)).st_mtime_ns & 1


def _send_mode(world: World, bit: int) -> None:
    descriptor = os.open(_code(world), os.O_RDONLY)
    try:
        mode = os.fstat(descriptor).st_mode & 0o777
        os.fchmod(descriptor, mode & ~0o001 | bit)
    finally:
        os.close(descriptor)


@channel("mode-of-a-shared-file", _send_mode)
def _(world: World) -> int:
    return os.stat(_code(world)).st_mode & 1


def _watch(_: World) -> None:
    if "watch" not in _held:
        _held["watch"] = call((294, 26), os.O_NONBLOCK)
        call((254, 27), _held["watch"], SHARED.encode(), 0x20)  # IN_OPEN


def _send_open(_: World, bit: int) -> None:
    if bit:
        os.close(os.open(SHARED, os.O_RDONLY))


@channel("inotify-of-a-shared-file", _send_open)
def _(world: World) -> int:
    """The first bit is lost: the watch begins with it; so it is told as the sender begins with a 1."""
    if "watch" not in _held:
        _watch(world)
        return 1
    try:
        os.read(_held["watch"], 4096)
    except BlockingIOError:
        return 0
    return 1


# What one machine has on its own disk.


def _send_size(world: World, bit: int) -> None:
    with open(f"{world.disk}/flag", "wb") as file:
        file.write(b"x" * bit)


@channel("size-of-a-file-on-the-own-disk", _send_size)
def _(world: World) -> int:
    return os.stat(f"{world.other_disk}/flag").st_size


def _send_link(world: World, bit: int) -> None:
    with contextlib.suppress(FileNotFoundError):
        os.unlink(f"{world.disk}/said")
    os.symlink(str(bit), f"{world.disk}/said")


@channel("text-of-a-link-on-the-own-disk", _send_link)
def _(world: World) -> int:
    return int(os.readlink(f"{world.other_disk}/said"))


# What a namespace has.


def _send_abstract(_: World, bit: int) -> None:
    if (old := _held.pop("abstract", None)) is not None:
        old.close()
    if bit:
        made = _held["abstract"] = socket.socket(socket.AF_UNIX)
        made.bind("\0retinue-gallery-channel")
        made.listen()


@channel("abstract-socket", _send_abstract)
def _(_: World) -> int:
    with socket.socket(socket.AF_UNIX) as sock:
        try:
            sock.connect("\0retinue-gallery-channel")
        except ConnectionRefusedError:
            return 0
    return 1


@channel("taken-abstract-name", _send_abstract)
def _(_: World) -> int:
    """A name that is taken cannot be bound, even where it cannot be connected to."""
    with socket.socket(socket.AF_UNIX) as sock:
        try:
            sock.bind("\0retinue-gallery-channel")
        except OSError as error:
            if error.errno == errno.EADDRINUSE:
                return 1
            raise
    return 0


def _send_port(_: World, bit: int) -> None:
    if (old := _held.pop("port", None)) is not None:
        old.close()
    if bit:
        made = _held["port"] = socket.socket()
        made.bind(("127.0.0.1", 47329))
        made.listen()


@channel("tcp-port", _send_port)
def _(_: World) -> int:
    with socket.socket() as sock:
        return int(sock.connect_ex(("127.0.0.1", 47329)) == 0)


def _send_unix(world: World, bit: int) -> None:
    """A socket on its own disk."""
    path = f"{world.disk}/channel"
    if (old := _held.pop("unix", None)) is not None:
        old.close()
        os.unlink(path)
    if bit:
        made = _held["unix"] = socket.socket(socket.AF_UNIX)
        made.bind(path)
        made.listen()


@channel("socket-on-the-own-disk", _send_unix)
def _(world: World) -> int:
    with socket.socket(socket.AF_UNIX) as sock:
        try:
            sock.connect(f"{world.other_disk}/channel")
        except (ConnectionRefusedError, FileNotFoundError):
            return 0
    return 1


def _send_message_queue(_: World, bit: int) -> None:
    queue = call((68, 186), _KEY, 0o1666)
    if not bit:
        call((71, 187), queue, 0, 0)


@channel("sysv-queue", _send_message_queue)
def _(_: World) -> int:
    try:
        call((68, 186), _KEY, 0o666)
    except FileNotFoundError:
        return 0
    return 1


def _send_memory_segment(_: World, bit: int) -> None:
    segment = call((29, 194), _KEY, 4096, 0o1666)
    if not bit:
        call((31, 195), segment, 0, 0)


@channel("sysv-memory", _send_memory_segment)
def _(_: World) -> int:
    try:
        call((29, 194), _KEY, 4096, 0o666)
    except FileNotFoundError:
        return 0
    return 1


def _send_posix_queue(_: World, bit: int) -> None:
    if bit:
        os.close(call((240, 180), b"retinue-gallery", os.O_CREAT | os.O_RDWR, 0o666, 0))
    else:
        with contextlib.suppress(FileNotFoundError):
            call((241, 181), b"retinue-gallery")


@channel("posix-queue", _send_posix_queue)
def _(_: World) -> int:
    try:
        os.close(call((240, 180), b"retinue-gallery", os.O_RDWR, 0, 0))
    except FileNotFoundError:
        return 0
    return 1


def _send_shm(_: World, bit: int) -> None:
    if bit:
        os.close(os.open("/dev/shm/retinue-gallery-channel", os.O_CREAT | os.O_WRONLY, 0o666))
    else:
        with contextlib.suppress(FileNotFoundError):
            os.unlink("/dev/shm/retinue-gallery-channel")


@channel("posix-shared-memory", _send_shm)
def _(_: World) -> int:
    try:
        os.close(os.open("/dev/shm/retinue-gallery-channel", os.O_RDONLY))
    except FileNotFoundError:
        if os.path.isdir("/dev/shm"):
            return 0
        raise
    return 1


def _send_key(_: World, bit: int) -> None:
    """In the keyring of the user, which other machines may have, too."""
    if bit:
        _held["key"] = call((248, 217), b"user", b"retinue-gallery", b"x", 1, -4)
    elif "key" in _held:
        call((250, 219), 9, _held.pop("key"), -4, 0, 0)  # KEYCTL_UNLINK


@channel("key-of-the-user", _send_key)
def _(_: World) -> int:
    try:
        call((250, 219), 10, -4, b"user", b"retinue-gallery", 0)  # KEYCTL_SEARCH
    except OSError as error:
        if error.errno in (errno.ENOKEY, errno.EKEYREVOKED):
            return 0
        raise
    return 1


def _send_name(_: World, bit: int) -> None:
    socket.sethostname(f"gallery{bit}")


@channel("name-of-the-host", _send_name, unsealed="it would rename the host")
def _(_: World) -> int:
    return int(os.uname().nodename == "gallery1")


def _send_existence(world: World, bit: int) -> None:
    """A process or none: its own child."""
    if (old := _held.pop("child", None)) is not None:
        os.kill(old, 9)
        os.waitpid(old, 0)
    if bit:
        pid = os.fork()
        if pid == 0:
            while True:
                time.sleep(60)
        _held["child"] = pid


@channel("process-by-signal", _send_existence, unsealed="pids are guessed")
def _(world: World) -> int:
    """Whether a pid is in use is what a signal tells that is not allowed to be sent."""
    found = 0
    for pid in range(world.other + 1, world.other + 100):
        try:
            os.kill(pid, 0)
        except ProcessLookupError:
            continue
        found += 1
    return int(found > 0)


class _Threads:
    """Many threads that wait."""

    def __init__(self, count: int) -> None:
        self._end = threading.Event()
        self._all = [threading.Thread(target=self._end.wait) for _ in range(count)]
        for thread in self._all:
            thread.start()

    def end(self) -> None:
        self._end.set()
        for thread in self._all:
            thread.join()


def _send_threads(_: World, bit: int) -> None:
    if (old := _held.pop("threads", None)) is not None:
        old.end()
    if bit:
        _held["threads"] = _Threads(20)


@channel("number-of-threads-by-sysinfo", _send_threads, unsealed="the host's other processes disturb it")
def _(_: World) -> int:
    """sysinfo(2) counts the threads of the whole host."""
    buffer = ctypes.create_string_buffer(256)
    call((99, 179), ctypes.addressof(buffer))
    count = int(struct.unpack_from("@QQQQQQQQQQH", buffer)[10])
    before = _held.setdefault("count", count)
    _held["count"] = count
    return int(count - before >= 10)


def _send_pipe_pages(_: World, bit: int) -> None:
    """The pages of all pipes of a user are counted together."""
    for each in _held.pop("pipes", ()):
        os.close(each)
    if bit:
        pipes = _held["pipes"] = []
        while True:
            read, write = os.pipe()
            pipes += [read, write]
            try:
                if fcntl.fcntl(write, 1031, 1 << 20) < 1 << 20:
                    break
            except OSError:
                break


@channel("pipe-pages-of-the-user", _send_pipe_pages, unsealed="root has no bound")
def _(_: World) -> int:
    read, write = os.pipe()
    try:
        fcntl.fcntl(write, 1031, 1 << 20)
    except PermissionError:
        return 1
    finally:
        os.close(read)
        os.close(write)
    return 0


def send(name: str, world: dict[str, Any], bit: int) -> dict[str, Any]:
    """Send by a channel; the answer as of an attempt."""
    return _answer(lambda: CHANNELS[name].send(World(**world), bit))


def receive(name: str, world: dict[str, Any]) -> dict[str, Any]:
    """Receive by a channel; the answer's ``value`` is the bit."""
    return _answer(lambda: CHANNELS[name].receive(World(**world)))


def _answer(code: Callable[[], object]) -> dict[str, Any]:
    try:
        value = code()
    except OSError as error:
        return {"errno": error.errno or 0, "text": str(error)}
    except (RuntimeError, MemoryError) as error:  # no further thread; no further memory
        return {"errno": errno.EAGAIN, "text": str(error)}
    return {"value": value if type(value) is int else 0}
