"""What tests have a machine do that is not an attempt to get out."""

import ctypes
import errno
import os
import socket
import sqlite3
import sys
import tempfile
import threading
import time
from pathlib import Path

import trio


def about() -> dict[str, object]:
    """What a machine knows of itself."""
    return {
        "pid": os.getpid(),
        "threads": threading.active_count(),
        "environment": dict(os.environ),
        "folder": os.getcwd(),
        "umask": os.umask(0o077),
        "path": sys.path,
        "frozen": __import__("gc").get_freeze_count(),
        "dumpable": ctypes.CDLL(None).prctl(3, 0, 0, 0, 0),
    }


def descriptors() -> list[int]:
    """Its open descriptors."""
    found = []
    for number in range(256):
        try:
            os.fstat(number)
        except OSError:
            continue
        found.append(number)
    return found


def work(disk: str) -> str:
    """Everything a service ordinarily does, under the whole seal."""
    folder = Path(disk)
    (folder / "a").mkdir()
    (folder / "a" / "one.txt").write_text("one")
    (folder / "a" / "one.txt").rename(folder / "two.txt")
    os.link(folder / "two.txt", folder / "a" / "two.txt")
    (folder / "three").symlink_to("two.txt")
    with open(folder / "two.txt", "r+") as file:
        file.truncate(1)
        os.fsync(file.fileno())
    assert (folder / "three").read_text() == "o"
    with tempfile.TemporaryDirectory(dir=disk) as scratch, tempfile.NamedTemporaryFile(dir=scratch) as other:
        other.write(b"x")
    for mode in ("wal", "delete"):
        base = sqlite3.connect(folder / f"{mode}.db")
        assert base.execute(f"pragma journal_mode = {mode}").fetchone() == (mode,)
        base.execute("create table t (a)")
        base.executemany("insert into t values (?)", [(number,) for number in range(100)])
        base.commit()
        assert base.execute("select count(*) from t").fetchone() == (100,)
        base.close()
    memory = os.memfd_create("bulk")
    os.write(memory, b"y" * 65536)
    os.getrandom(8)
    os.sched_getaffinity(0)
    threads = [threading.Thread(target=os.getpid) for _ in range(4)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()

    async def tasks() -> None:
        left, right = trio.socket.socketpair()
        await left.send(b"z")
        assert await right.recv(1) == b"z"
        assert await trio.to_thread.run_sync(lambda: 7) == 7
        await trio.sleep(0.001)
        async with await trio.open_file(folder / "two.txt") as file:
            assert await file.read() == "o"
        left.close()
        right.close()

    trio.run(tasks)
    import colorsys  # of the standard library, and nothing has imported it before
    import wave

    assert colorsys
    assert wave
    return "done"


def allocate(size: int) -> str:
    """Try to have ``size`` bytes."""
    try:
        return f"has {len(bytearray(size))}"
    except MemoryError:
        return "MemoryError"


def listen_on_a_low_port() -> int:
    """Listen on some privileged port that is free; its number."""
    for port in range(1, 1024):
        with socket.socket() as listener:
            try:
                listener.bind(("127.0.0.1", port))
            except OSError as error:
                if error.errno != errno.EADDRINUSE:
                    raise
                continue
            listener.listen()
            return port
    raise OSError(errno.EADDRINUSE, "every low port is taken")


def compute(seconds: float) -> None:
    """Use the processor for so long."""
    until = time.thread_time() + seconds
    while time.thread_time() < until:
        pass
