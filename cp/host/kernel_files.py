"""Files in which the kernel says things about processes and groups, and takes orders. Standard library only."""

import os
from collections.abc import Iterator

__all__ = ["number", "read", "read_now", "sizes", "stat", "table", "write"]


def read(path: str) -> str:
    """What a file of the kernel says; nothing if it does not."""
    try:
        with open(path, errors="surrogateescape") as file:
            return file.read()
    except OSError:
        return ""


def read_now(path: str) -> bytes:
    """The first 8 KiB of what a file of the kernel says, by one call and as cheaply as can be. OSError."""
    descriptor = os.open(path, os.O_RDONLY | os.O_CLOEXEC)
    try:
        return os.read(descriptor, 8192)
    finally:
        os.close(descriptor)


def sizes(path: str) -> dict[bytes, int]:
    """The lines such as ``Rss:  20 kB`` of a file, in bytes. OSError."""
    found = {}
    for line in read_now(path).splitlines():
        words = line.split()
        if len(words) == 3 and words[2] == b"kB":
            found[words[0][:-1]] = int(words[1]) * 1024
    return found


def write(path: str, value: str) -> None:
    """Write to a file of the kernel, in one piece."""
    descriptor = os.open(path, os.O_WRONLY | os.O_CLOEXEC)
    try:
        os.write(descriptor, value.encode())
    finally:
        os.close(descriptor)


def number(path: str) -> int:
    text = read(path).strip()
    return int(text) if text.isdecimal() else 0


def table(path: str) -> dict[str, int]:
    """The lines ``name number`` of a file."""

    def lines() -> Iterator[tuple[str, int]]:
        for line in read(path).splitlines():
            name, _, value = line.partition(" ")
            if value.isdecimal():
                yield name, int(value)

    return dict(lines())


def stat(pid: int) -> list[str]:
    """The fields of /proc/PID/stat from the state on; none if it is gone."""
    return read(f"/proc/{pid}/stat").rpartition(")")[2].split()
