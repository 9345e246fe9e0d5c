"""What is seen of processes and folders from outside."""

import os
import pathlib
import subprocess
import sys
import time
from collections.abc import Iterator
from contextlib import contextmanager

import pytest
from tests.leaks import assert_none_left, descriptors

from retinue.cp.host import measure

MIB = 1 << 20

TAKE = """
import mmap, os, sys
def fill(memory):
    for at in range(0, len(memory), 4096):
        memory[at] = 1
def memfd(size, mapped):
    descriptor = os.memfd_create("one")
    os.write(descriptor, b"x" * size)
    if mapped:
        kept.append(mmap.mmap(descriptor, mapped))
        fill(kept[-1])
kept = []
print(flush=True); input()
exec(sys.argv[1])
print(flush=True); input()
"""


@contextmanager
def process(code: str) -> Iterator[tuple[int, int]]:
    """A process that has done that, its pid and the storage it took to do so."""
    with subprocess.Popen(
        [sys.executable, "-S", "-c", TAKE, code], stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True
    ) as one:
        assert one.stdin is not None
        assert one.stdout is not None
        one.stdout.readline()
        before = measure.storage([one.pid])
        one.stdin.write("\n")
        one.stdin.flush()
        one.stdout.readline()
        try:
            yield one.pid, measure.storage([one.pid]) - before
        finally:
            one.kill()


@pytest.mark.parametrize(
    ("code", "takes"),
    [
        ("kept = bytearray(b'x') * (16 << 20)", 16),
        ("kept = mmap.mmap(-1, 16 << 20); fill(kept)", 16),
        ("kept = mmap.mmap(-1, 64 << 20)", 0),
        ("memfd(16 << 20, 0)", 16),
        ("memfd(16 << 20, 16 << 20)", 16),
        ("memfd(16 << 20, 4 << 20)", 16),
        ("memfd(8 << 20, 8 << 20); kept.append(mmap.mmap(-1, 8 << 20)); fill(kept[-1])", 16),
    ],
    ids=["private", "shared", "untouched", "memfd", "mapped", "half-mapped", "both"],
)
def test_storage_of_every_kind_counts_once(code: str, takes: int) -> None:
    with process(code) as (_, took):
        assert abs(took - takes * MIB) < MIB


def test_changed_pages_of_files_count(tmp_path: pathlib.Path) -> None:
    name = str(tmp_path / "file")
    code = f"f = open({name!r}, 'w+b'); f.truncate(8 << 20); kept = mmap.mmap(f.fileno(), 8 << 20); fill(kept)"
    with process(code) as (_, took):
        assert abs(took - 8 * MIB) < MIB


def test_memory_that_two_share_counts_once() -> None:
    code = "kept = mmap.mmap(-1, 16 << 20); fill(kept); os.fork() or (len(bytes(kept)), input())"
    with process(code) as (pid, _):
        family = measure.processes(pid)
        assert len(family) == 2
        assert 16 * MIB < measure.storage(family) < 44 * MIB


def test_nobody_has_no_storage() -> None:
    assert measure.storage([2**22 + 1]) == 0
    assert measure.written([2**22 + 1]) == 0


def test_clock_tells_who_has_run() -> None:
    with process("until = 0") as (pid, _):
        clock = measure.Clock(pid)
        try:
            assert clock.moved()
            assert not clock.moved()
        finally:
            clock.close()
    busy = subprocess.Popen([sys.executable, "-S", "-c", "while True: pass"])
    try:
        clock = measure.Clock(busy.pid)
        give_up = time.monotonic() + 20
        assert clock.moved()
        while not clock.moved():
            assert time.monotonic() < give_up
    finally:
        busy.kill()
        busy.wait()
    with pytest.raises(ProcessLookupError):
        clock.moved()
    clock.close()
    with pytest.raises(FileNotFoundError):
        measure.Clock(busy.pid)


# -- folders ----------------------------------------------------------------------------------------------------------


def test_folder_size_is_what_du_says(tmp_path: pathlib.Path) -> None:
    (tmp_path / "a" / "b").mkdir(parents=True)
    (tmp_path / "a" / "b" / "file").write_bytes(b"x" * 100_000)
    os.link(tmp_path / "a" / "b" / "file", tmp_path / "again")
    with (tmp_path / "holes").open("wb") as file:
        file.truncate(100 * MIB)
    said = subprocess.run(["du", "-s", "--block-size=1", tmp_path], capture_output=True, text=True, check=True).stdout
    # The file with nothing but a hole has no block, and counts like any other.
    assert measure.folder_size(str(tmp_path)) == (int(said.split()[0]) + measure.LEAST, True)


def test_empty_files_count(tmp_path: pathlib.Path) -> None:
    empty = measure.folder_size(str(tmp_path)).size
    for number in range(100):
        (tmp_path / f"{number}").touch()
    assert measure.folder_size(str(tmp_path)).size >= empty + 100 * measure.LEAST


def test_links_do_not_lead_elsewhere(tmp_path: pathlib.Path) -> None:
    (tmp_path / "disk").mkdir()
    (tmp_path / "other").mkdir()
    (tmp_path / "other" / "file").write_bytes(b"x" * MIB)
    empty = measure.folder_size(str(tmp_path / "disk")).size
    (tmp_path / "disk" / "link").symlink_to("../other")  # short enough to take no block
    assert measure.folder_size(str(tmp_path / "disk")).size == empty + measure.LEAST
    with pytest.raises(OSError, match="disk/link"):
        measure.folder_size(str(tmp_path / "disk" / "link"))


def test_removed_files_that_are_open_count(tmp_path: pathlib.Path) -> None:
    empty = measure.folder_size(str(tmp_path)).size
    file = tmp_path / "file"
    with file.open("wb") as kept:
        kept.write(b"x" * MIB)
        kept.flush()
        file.unlink()
        assert measure.folder_size(str(tmp_path)).size == empty
        assert measure.folder_size(str(tmp_path), [os.getpid()]).size == empty + MIB


def test_folders_too_deep_are_told(tmp_path: pathlib.Path) -> None:
    """Deeper than a path may be long, so that nothing but steps leads there; and no descriptor is left."""
    before = descriptors()
    top = os.open(tmp_path, os.O_RDONLY)
    here, made = os.dup(top), []
    for _ in range(measure.DEEPEST + 10):
        os.mkdir("d" * 20, dir_fd=here)
        made.append(here)
        here = os.open("d" * 20, os.O_RDONLY, dir_fd=here)
    os.close(here)
    try:
        found = measure.folder_size(str(tmp_path))
        assert not found.whole
        assert found.size > 0
    finally:
        for parent in reversed(made):
            os.rmdir("d" * 20, dir_fd=parent)
            os.close(parent)
        os.close(top)
    assert_none_left(before)


def test_too_many_files_are_told(tmp_path: pathlib.Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(measure, "MOST_FILES", 3)
    for number in range(5):
        (tmp_path / f"{number}").mkdir()
    assert not measure.folder_size(str(tmp_path)).whole


@pytest.mark.skipif(os.geteuid() == 0, reason="nothing is closed to root")
def test_closed_folders_are_told(tmp_path: pathlib.Path) -> None:
    (tmp_path / "closed").mkdir(mode=0)
    assert not measure.folder_size(str(tmp_path)).whole
    (tmp_path / "closed").rmdir()


def test_the_shortest_run_is_seen() -> None:
    """A tick is 10 ms, and in less a disk can be filled."""
    with subprocess.Popen(
        [sys.executable, "-S", "-c", "for line in iter(input, ''): print(flush=True)"],
        stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True,
    ) as one:  # fmt: skip
        assert one.stdin is not None
        assert one.stdout is not None
        one.stdin.write("begin\n")
        one.stdin.flush()
        one.stdout.readline()
        clock = measure.Clock(one.pid)
        clock.moved()
        for _ in range(5):
            before = measure.activity([one.pid])
            one.stdin.write("more\n")
            one.stdin.flush()
            one.stdout.readline()
            assert clock.moved()
            assert measure.activity([one.pid]) != before
        clock.close()
        one.kill()
