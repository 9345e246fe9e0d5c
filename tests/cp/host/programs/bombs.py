"""Ways to use storage and tasks up. Standard library only: some of them run without anything of ours around them."""

import mmap
import os
import subprocess
import sys
import threading

PIECE = 1 << 20


def _fill(memory: "mmap.mmap | bytearray") -> None:
    for at in range(0, len(memory), 4096):
        memory[at] = 1


kept: list[object] = []
"""What is used up stays so until the process ends."""


def private(size: int) -> str:
    """Memory of its own."""
    for _ in range(size // PIECE):
        kept.append(bytearray(b"x") * PIECE)
    return "had it"


def shared(size: int) -> str:
    """Shared anonymous memory, which RLIMIT_DATA does not count."""
    for _ in range(size // (4 * PIECE)):
        memory = mmap.mmap(-1, 4 * PIECE)
        kept.append(memory)
        _fill(memory)
    return "had it"


def memfd(size: int) -> str:
    """Files in memory, written to and not mapped."""
    for _ in range(size // (4 * PIECE)):
        descriptor = os.memfd_create("bomb")
        kept.append(descriptor)
        os.write(descriptor, b"x" * (4 * PIECE))
    return "had it"


def files(size: int, folder: str) -> str:
    """Files in a folder."""
    for number in range(size // (4 * PIECE)):
        with open(f"{folder}/bomb-{number}", "wb") as file:
            file.write(b"x" * (4 * PIECE))
    return "had it"


def threads(count: int) -> int:
    """How many of so many threads could be started."""
    over = threading.Event()
    started = 0
    for _ in range(count):
        thread = threading.Thread(target=over.wait, daemon=True)
        try:
            thread.start()
        except RuntimeError:
            break
        started += 1
    over.set()
    return started


def processes(count: int) -> int:
    """How many of so many processes could be started."""
    started = []
    for _ in range(count):
        try:
            started.append(subprocess.Popen([sys.executable, "-S", "-c", "input()"], stdin=subprocess.PIPE))
        except OSError:
            break
    for process in started:
        process.communicate()
    return len(started)


if __name__ == "__main__":
    input()  # until somebody says that it is where it should be
    print(globals()[sys.argv[1]](int(sys.argv[2]), *sys.argv[3:]), flush=True)
    input()
