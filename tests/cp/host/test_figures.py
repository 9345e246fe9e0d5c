"""What machines have of storage, looked at from outside; and pages that go out and come back."""

import os
import pathlib
import subprocess
import sys
import time
from collections.abc import Iterator
from contextlib import contextmanager

import pytest
from tests.volumes import MIB, open_volume, root_only

from retinue.cp.host.errors import PagingRefused
from retinue.cp.host.figures import Figures, look
from retinue.cp.host.interface import Storage
from retinue.cp.host.kernel_files import sizes
from retinue.cp.host.paging import ITSELF, NONE, Paging, pressure, swap_free
from retinue.cp.host.ranges import ranges

KEY = ("SHOP", 1)

# Takes memory, and says what it finds there whenever it is asked.
TAKE = """
import mmap, os, sys
kept = []
def shared(size):
    descriptor = os.memfd_create("one")
    os.ftruncate(descriptor, size)
    return mmap.mmap(descriptor, size)
def fill(memory):
    for at in range(0, len(memory), 4096):
        memory[at:at + 8] = at.to_bytes(8, "big")
    return memory
def whole(memory):
    return all(memory[at:at + 8] == at.to_bytes(8, "big") for at in range(0, len(memory), 4096))
for line in sys.stdin:
    print(eval(line), flush=True)
"""


class Process:
    """A process that evaluates what it is told to."""

    def __init__(self, popen: "subprocess.Popen[str]") -> None:
        self.pid = popen.pid
        self._popen = popen

    def do(self, code: str) -> str:
        """The value of an expression in there, as text."""
        assert self._popen.stdin is not None
        assert self._popen.stdout is not None
        self._popen.stdin.write(f"{code}\n")
        self._popen.stdin.flush()
        return self._popen.stdout.readline().strip()


@contextmanager
def running(code: str = "None") -> Iterator[Process]:
    """One that has evaluated ``code``."""
    with subprocess.Popen(
        [sys.executable, "-S", "-c", TAKE], stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True
    ) as popen:
        try:
            process = Process(popen)
            process.do(code)
            yield process
        finally:
            popen.kill()


def of(process: Process) -> tuple[Figures, Paging]:
    """What a host has for a system of this one process."""
    figures = Figures(lambda key: process.pid if key == KEY else 0)
    return figures, Paging(lambda key: process.pid if key == KEY else 0, lambda _: None, None, figures)


@pytest.mark.parametrize(
    ("code", "takes"),
    [
        ("kept.append(fill(bytearray(16 << 20)))", 16),
        ("kept.append(fill(mmap.mmap(-1, 16 << 20)))", 16),
        ("kept.append(fill(shared(16 << 20)))", 16),
        ("kept.append(mmap.mmap(-1, 64 << 20))", 0),
        ("kept.append(mmap.mmap(os.open(sys.executable, os.O_RDONLY), 0, prot=mmap.PROT_READ)[:])", None),
    ],
)
def test_storage_is_memory_and_no_file(code: str, takes: int | None) -> None:
    """Anonymous and shared memory that was touched counts; what is only reserved, or a file, does not."""
    with running() as process:
        before = look(process.pid)
        process.do(f"{code} and 0")
        after = look(process.pid)
    assert before is not None
    assert after is not None
    if takes is None:  # it has a copy of the file, and the file itself in its addresses for a moment
        takes = os.stat(sys.executable).st_size // MIB
    for was, now in ((before.resident, after.resident), (before.private, after.private)):
        assert abs(now - was - takes * MIB) < MIB
    assert after.paged == 0
    assert after.instantiated == after.resident


def test_a_process_that_is_gone_has_nothing() -> None:
    """Neither is it in a pass."""
    with running() as process:
        figures, _ = of(process)
        assert KEY in figures.measure([KEY, ("OTHER", 1)])
    assert look(process.pid) is None
    assert figures.measure([KEY]) == {}


def test_a_pass_sees_who_has_changed() -> None:
    """At the next pass, also when there is no time for anybody who has not."""
    with running() as process:
        figures, _ = of(process)
        before = figures.measure([KEY])[KEY].resident
        assert abs(figures.measure([KEY])[KEY].resident - before) < MIB
        process.do("kept.append(fill(bytearray(8 << 20)))")
        assert 7 * MIB < figures.measure([KEY])[KEY].resident - before < 9 * MIB


def test_the_processes_of_a_native_program_count_together() -> None:
    """A child has what its parent has not."""
    code = "import sys, time; kept = bytearray(b'x') * (24 << 20); print(flush=True); time.sleep(60)"
    with running("exec('import subprocess')") as process:
        figures, _ = of(process)
        alone = figures.measure([KEY])[KEY].resident
        process.do(f"kept.append(subprocess.Popen([sys.executable, '-S', '-c', {code!r}], stdout=-1))")
        process.do("kept[0].stdout.readline()")
        assert figures.measure([KEY])[KEY].resident - alone > 24 * MIB
        process.do("kept[0].kill() or kept[0].wait()")
        assert figures.measure([KEY])[KEY].resident - alone < 8 * MIB


def test_the_working_set_is_what_was_used_since() -> None:
    """The first time nobody knows."""
    with running("kept.append(fill(mmap.mmap(-1, 16 << 20)))") as process:
        figures, _ = of(process)
        assert figures.working_set(KEY) is None
        rest = figures.working_set(KEY)
        assert rest is not None
        assert rest < 2 * MIB
        process.do("whole(kept[0])")
        used = figures.working_set(KEY)
        assert used is not None
        assert 16 * MIB <= used < 24 * MIB
        assert figures.working_set(("OTHER", 1)) is None


def test_pressure_is_a_part_of_time() -> None:
    """Where the kernel says it at all."""
    found = pressure()
    assert found is None or 0 <= found <= 1


@pytest.mark.skipif(swap_free() > 0, reason="this host has swap")
def test_without_swap_nothing_is_paged_out() -> None:
    """And it is said why, and what would help."""
    with running() as process:
        _, paging = of(process)
        with pytest.raises(PagingRefused, match="there is no swap"):
            paging.page_out(KEY, None)
        assert paging.own_ranges(KEY, None) == []
        report = paging.report()
    assert (report.mechanism, report.enforced, report.why) == (NONE, False, "there is no swap")
    assert "paging = " in report.cure


@root_only
def test_pages_go_out_and_come_back(tmp_path: pathlib.Path) -> None:
    """As many as asked for, then all; everything in them is as it was."""
    code = "kept.extend([fill(mmap.mmap(-1, 16 << 20)), fill(shared(8 << 20))])"
    with open_volume(tmp_path, 128 * MIB), running(code) as process:
        figures, paging = of(process)
        before = figures.measure([KEY])[KEY]
        assert paging.report().enforced
        taken = paging.page_out(KEY, 4 * MIB)
        assert 4 * MIB <= taken < 5 * MIB
        assert figures.measure([KEY])[KEY].resident == before.resident - taken
        assert paging.page_out(KEY, 4 * MIB) >= 4 * MIB
        paging.page_out(KEY, None)
        after = figures.measure([KEY])[KEY]
        assert after.resident < 300 * 1024
        assert after.paged >= 24 * MIB
        assert process.do("[whole(each) for each in kept]") == "[True, True]"
        assert figures.measure([KEY])[KEY].resident >= 24 * MIB
        assert ranges(process.pid)


@root_only
def test_a_machine_is_told_where_its_pages_are(tmp_path: pathlib.Path) -> None:
    """And can page itself out then: where nobody may do it from outside."""
    code = f"sys.path.extend({sys.path!r}) or kept.append(fill(mmap.mmap(-1, 16 << 20)))"
    with open_volume(tmp_path, 128 * MIB), running(code) as process:
        figures, paging = of(process)
        process.do("exec('from retinue.svm import paging')")
        where = [list(each) for each in paging.own_ranges(KEY, None)]
        before = figures.measure([KEY])[KEY].resident
        assert int(process.do(f"paging.page_out({where!r})")) > 0
        assert figures.measure([KEY])[KEY].resident < before - 16 * MIB
        assert process.do("whole(kept[0])") == "True"
        part = paging.own_ranges(KEY, MIB)
        assert sum(last - first for first, last in part) == MIB
        assert paging.own_ranges(KEY, MIB) != part


def test_a_pass_over_many_is_bounded() -> None:
    """Whoever has not changed is looked at as time allows."""
    with running("kept.append(fill(bytearray(1 << 20)))") as process:
        keys = [("M", number) for number in range(500)]
        figures = Figures(lambda _: process.pid)
        assert len(figures.measure(keys)) == 500
        begun = time.thread_time()
        figures.measure(keys)
        assert time.thread_time() - begun < 1


def test_many_that_are_new_are_guessed_until_there_is_time(monkeypatch: pytest.MonkeyPatch) -> None:
    """From those that are known, and whole where nobody is; who was paged out is looked at in any case."""
    looked: list[int] = []

    def counted(pid: int) -> Storage | None:
        looked.append(pid)
        return look(pid)

    monkeypatch.setattr("retinue.cp.host.figures.look", counted)
    monkeypatch.setattr("retinue.cp.host.figures.BUDGET", 0.0)
    monkeypatch.setattr("retinue.cp.host.figures.FIRST", 0)
    with running() as one, running("kept.append(fill(bytearray(16 << 20)))") as two:
        one.do("0")
        two.do("0")
        pids = {KEY: one.pid, ("OTHER", 1): two.pid}
        figures = Figures(pids.__getitem__)
        status = sizes(f"/proc/{two.pid}/status")
        assert figures.measure(pids)["OTHER", 1].private == status[b"RssAnon"] + status[b"RssShmem"]
        assert looked == []
        monkeypatch.setattr("retinue.cp.host.figures.FIRST", 1)
        found = figures.measure(pids)
        assert looked == [one.pid]
        exact = look(two.pid)
        assert exact is not None
        assert abs(found["OTHER", 1].resident - exact.resident) < 2 * MIB
        looked.clear()
        figures.measure(pids)
        assert looked == [two.pid]
        looked.clear()
        monkeypatch.setattr("retinue.cp.host.figures.FIRST", 0)
        figures.changed([two.pid])
        figures.measure(pids)
        assert looked == [two.pid]


def test_means_have_names() -> None:
    """What the doctor says is one of them."""
    with running() as process:
        _, paging = of(process)
        report = paging.report()
    assert report.limit == "paging"
    assert report.enforced == (report.mechanism not in (NONE, ITSELF))
