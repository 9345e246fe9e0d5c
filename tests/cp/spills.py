"""Spills as systems leave them, and what a folder holds to the last detail."""

import os
import pathlib
import stat
import urllib.parse
from collections.abc import Iterable
from typing import Any

import msgpack

from retinue.cp.spill import Spill
from retinue.cp.tape import HEAD, size_of


def body(number: int, **more: Any) -> list[Any]:
    return [
        *({"time": float(number), "severity": 6, "logger": "shop", "message": f"sold {number}"} | more).values(),
        {},
    ]


def chunk(first: int, bodies: list[Any]) -> bytes:
    blob: bytes = msgpack.packb(bodies)
    return (HEAD.pack(len(blob), len(bodies), first, 1) + blob).ljust(size_of(len(blob)), b"\0")


def put(state: pathlib.Path, run: str, machine: str, *chunks: Iterable[int]) -> pathlib.Path:
    """One file with records of these numbers, which follow each other in each chunk."""
    numbers = [[*each] for each in chunks]
    data = b"".join(chunk(each[0], [body(number) for number in each]) for each in numbers)
    first, last, count = numbers[0][0], numbers[-1][-1], sum(map(len, numbers))
    Spill(state / "spill", run).put(machine, first, last, count, data)
    return state / "spill" / run / urllib.parse.quote(machine, safe="") / f"{first:020}-{last:020}-{count}"


def contents(folder: pathlib.Path) -> dict[str, Any]:
    """What is in there, and what a change of anything would change."""
    found: dict[str, Any] = {}
    for path in (folder, *folder.rglob("*")):
        about = os.lstat(path)
        data = path.read_bytes() if stat.S_ISREG(about.st_mode) else b""
        found[str(path)] = about.st_ino, about.st_mode, about.st_uid, about.st_mtime_ns, about.st_ctime_ns, data
    return found
