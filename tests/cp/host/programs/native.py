"""What tests have an ``exec`` machine do."""

import contextlib
import ctypes
import errno
import mmap
import os
import signal
import socket
import subprocess
import threading
import time
from collections.abc import Callable
from pathlib import Path


def shell(*command: str) -> list[object]:
    """Run a program; its status and what it said."""
    done = subprocess.run(command, capture_output=True, check=False, timeout=15)
    return [done.returncode, done.stdout.decode(errors="replace"), done.stderr.decode(errors="replace")]


def redis(disk: str) -> list[str]:
    """Serve, be asked, save (in a forked child), stop."""
    address = "/run/redis.sock"
    command = ["redis-server", "--port", "0", "--unixsocket", address, "--dir", disk, "--save", ""]
    server = subprocess.Popen(command, stdout=subprocess.PIPE, stderr=subprocess.STDOUT)
    with socket.socket(socket.AF_UNIX) as asking:
        deadline = time.monotonic() + 10
        while True:
            try:
                asking.connect(address)
                break
            except OSError:
                if server.poll() is not None or time.monotonic() > deadline:
                    server.kill()
                    output = server.stdout.read() if server.stdout else b""
                    return [output.decode(errors="replace")]
        answers = []
        for order in (b"SET a 1", b"GET a", b"BGSAVE", b"SHUTDOWN SAVE"):
            asking.sendall(order + b"\r\n")
            answers.append(asking.recv(4096).decode())
    server.wait(10)
    return [*answers, *sorted(os.listdir(disk))]


def fork_bomb() -> int:
    """How many children it could have at once."""
    children: list[int] = []
    read, write = os.pipe()
    try:
        while len(children) < 2000:
            child = os.fork()
            if child == 0:
                os.close(write)
                os.read(read, 1)
                os._exit(0)
            children.append(child)
    except BlockingIOError:
        pass
    finally:
        os.close(write)
        for child in children:
            os.waitpid(child, 0)
        os.close(read)
    return len(children)


def thread_bomb() -> int:
    """How many threads it could have at once."""
    threading.stack_size(64 * 1024)
    gate = threading.Event()
    threads: list[threading.Thread] = []
    try:
        while len(threads) < 2000:
            thread = threading.Thread(target=gate.wait)
            thread.start()
            threads.append(thread)
    except RuntimeError:
        pass
    finally:
        gate.set()
        for thread in threads:
            thread.join()
    return len(threads)


def shared_memory() -> int:
    """How many MiB of anonymous shared memory it could have."""
    held: list[mmap.mmap] = []
    with contextlib.suppress(OSError):
        while len(held) < 4096:
            held.append(mmap.mmap(-1, 1 << 20))
    return len(held)


def fill(path: str, size: int) -> int:
    """Write a file of ``size`` bytes."""
    return Path(path).write_bytes(bytes(size))


def large_file(path: str, size: int) -> str:
    """Make a file of ``size`` bytes."""
    with open(path, "wb") as file:
        try:
            os.ftruncate(file.fileno(), size)
        except OSError as error:
            return errno.errorcode[error.errno or 0]
    return "made"


def stacks(count: int) -> int:
    """``count`` threads with stacks of a MiB."""
    threading.stack_size(1 << 20)
    gate = threading.Event()
    threads = [threading.Thread(target=gate.wait) for _ in range(count)]
    started = 0
    try:
        for thread in threads:
            thread.start()
            started += 1
    except RuntimeError:
        pass
    finally:
        gate.set()
        for thread in threads[:started]:
            thread.join()
    return started


def addresses(name: str) -> list[str]:
    """What a name resolves to."""
    return sorted({str(found[4][0]) for found in socket.getaddrinfo(name, 80, type=socket.SOCK_STREAM)})


def datagram() -> str:
    """From one UDP socket to another."""
    with socket.socket(type=socket.SOCK_DGRAM) as one, socket.socket(type=socket.SOCK_DGRAM) as other:
        one.bind(("127.0.0.1", 0))
        other.sendto(b"text", one.getsockname())
        return one.recv(16).decode()


def set_mode(path: str) -> None:
    """By a descriptor that was opened for reading."""
    with open(path) as file:
        os.fchmod(file.fileno(), 0o640)


def set_times(path: str) -> None:
    """By a descriptor that was opened for reading."""
    with open(path) as file:
        os.utime(file.fileno(), (1, 1))


def signal_bomb() -> int:
    """How many signals can wait for it, of the kind that is queued."""
    signal.pthread_sigmask(signal.SIG_BLOCK, [signal.SIGRTMIN])
    count = 0
    with contextlib.suppress(BlockingIOError):
        while count < 2000:
            signal.pthread_kill(threading.get_ident(), signal.SIGRTMIN)
            count += 1
    return count


_kept: list[socket.socket] = []


def name(word: str) -> str:
    """Listen under an abstract name."""
    sock = socket.socket(socket.AF_UNIX)
    sock.bind("\0" + word)
    sock.listen()
    _kept.append(sock)
    return "named"


def connect(word: str) -> str:
    """Connect to an abstract name."""
    with socket.socket(socket.AF_UNIX) as sock:
        sock.connect("\0" + word)
    return "connected"


def segment(key: int, make: bool) -> int:
    """A System V segment of shared memory, made or found."""
    result = ctypes.CDLL(None, use_errno=True).shmget(key, 4096, 0o1600 if make else 0o600)
    if result < 0:
        raise OSError(ctypes.get_errno(), "shmget")
    return int(result)


def read(path: str) -> str:
    """Read a file."""
    return Path(path).read_text()


def write(path: str, text: str) -> int:
    """Write a file."""
    return Path(path).write_text(text)


def mounts_again() -> dict[str, str]:
    """Ways to undo its root."""
    libc = ctypes.CDLL(None, use_errno=True)
    found = {}
    calls: dict[str, Callable[[], int]] = {
        "umount": lambda: libc.umount2(b"/", 2),
        "remount": lambda: libc.mount(b"none", b"/", None, 0x1020, None),
        "mount": lambda: libc.mount(b"none", b"/run", b"tmpfs", 0, None),
        "unshare": lambda: libc.unshare(0x10000000),
        "chroot": lambda: libc.chroot(b"/"),
    }
    for name, call in calls.items():
        if call() == 0 or ctypes.get_errno() != errno.EPERM:
            found[name] = errno.errorcode.get(ctypes.get_errno(), "done")
    return found


def exists(*paths: str) -> list[str]:
    """Those of some paths that are there."""
    return [path for path in paths if os.path.lexists(path)]


def identity() -> list[object]:
    """Who it is."""
    return [os.getuid(), os.geteuid(), os.getgid(), os.getgroups(), os.getpid()]


def daemon(disk: str) -> str:
    """Leave a process of another session behind that writes down when its parent is gone."""
    if os.fork() == 0:
        os.setsid()
        if os.fork() == 0:
            signal.signal(signal.SIGHUP, signal.SIG_IGN)
            Path(disk, "daemon").write_text(str(os.getpid()))
            while True:
                time.sleep(60)
        os._exit(0)
    os.wait()
    return "left"
