"""Records that wait on the disk while the control program has no descriptor left: real ones, and none are lost."""

import errno
import gc
import os
import pathlib
import resource
from collections.abc import Iterator
from contextlib import contextmanager

import pytest
from tests.cp.log_store import K, Store, kept, losses, policies, said, settle
from tests.leaks import assert_none_left, descriptors

from retinue.cp.directory.model import LogPolicy
from retinue.cp.leeway import Leeway
from retinue.cp.spill import Spill
from retinue.cp.syslog import Syslog
from retinue.cp.tape import records_of

BOUND = policies(LogPolicy(buffer=64 * K))


@contextmanager
def none_left() -> Iterator[None]:
    """No number is free below the limit, and those that become free are."""
    soft, hard = resource.getrlimit(resource.RLIMIT_NOFILE)
    taken = []
    gc.collect()  # what others have left in cycles would free numbers later
    limit = max(map(int, os.listdir("/proc/self/fd"))) + 1
    try:
        while (number := os.open("/", os.O_PATH)) < limit:
            taken.append(number)
        os.close(number)
        resource.setrlimit(resource.RLIMIT_NOFILE, (limit, hard))
        with pytest.raises(OSError, match="Too many open files"):
            os.open("/", os.O_PATH)
        yield
    finally:
        resource.setrlimit(resource.RLIMIT_NOFILE, (soft, hard))
        for each in taken:
            os.close(each)


def write(log: Syslog, first: int, end: int) -> None:
    for number in range(first, end):
        log.write(5, f"{number} " + "x" * 500, machine="M")


def numbers(texts: list[str]) -> list[int]:
    return [int(text.split()[0]) for text in texts]


def test_records_go_to_the_disk_without_a_descriptor(tmp_path: pathlib.Path) -> None:
    """Its folders are made, files are written and read; and nobody else has got a descriptor by that."""
    log = Syslog(policies=BOUND, spill=tmp_path)
    log.journal.keep()
    with none_left():
        write(log, 0, 1000)
        found = records_of(log.journal.packed(after=0))
        with pytest.raises(OSError, match="Too many open files"):
            os.open("/", os.O_PATH)
    assert log.journal.losses == []
    assert numbers([each["message"] for each in found]) == [*range(1000)]
    assert len([*(tmp_path / log.run / "M").iterdir()]) > 2
    assert log.journal.room.spill is not None
    assert log.journal.room.spill.unread == []


def test_what_an_earlier_run_has_left_is_found_without_a_descriptor(tmp_path: pathlib.Path) -> None:
    log = Syslog(policies=BOUND, spill=tmp_path)
    log.journal.keep()
    with none_left():
        write(log, 0, 300)
        assert log.finish() == ""
    spill = Spill(tmp_path, "next")
    with none_left():
        (earlier,) = spill.earlier()
        assert numbers([each["message"] for each in records_of(earlier.packed(0))]) == [*range(300)]
        assert (earlier.unread, earlier.unlisted) == ([], None)
        earlier.stored(300)
        earlier.close()
    assert [*tmp_path.iterdir()] == []


async def test_one_that_somebody_takes_meanwhile_is_a_loss_that_is_counted(
    tmp_path: pathlib.Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Not even the one that was kept is there. It is kept again as soon as there is one, and what comes then waits."""
    with none_left():
        log = Syslog(policies=BOUND, spill=tmp_path)
        log.journal.keep()
        write(log, 0, 500)
        ((machine, cause, lost),) = log.journal.losses
        assert (machine, cause) == ("M", "spill")
        assert 0 < lost < 500
    write(log, 500, 700)  # the first file that is written takes one again
    with none_left():
        write(log, 700, 1000)
    assert log.journal.losses == [("M", "spill", lost)]
    store = Store()
    store.let(True)
    async with kept(log, store, monkeypatch):
        await settle(log, store)
    assert numbers(said(store.of("M"))) == [*range(lost, 1000)]
    assert losses(store.records) == {"spill": lost}


def test_leeway_is_held_and_let_go_of() -> None:
    """One descriptor; what fails for another reason is not done again; without leeway it fails as ever."""
    before = descriptors()
    leeway = Leeway()
    assert len(descriptors() - before) == 1
    done = []

    def fail() -> None:
        done.append(1)
        raise PermissionError(errno.EACCES, "no")

    with pytest.raises(PermissionError):
        leeway.do(fail)
    assert len(done) == 1
    with none_left():
        held = leeway.do(lambda: os.open("/", os.O_PATH))
        with pytest.raises(OSError, match="Too many open files"):
            leeway.do(lambda: os.open("/", os.O_PATH))
        os.close(held)
        assert leeway.do(pathlib.Path("/proc/self/comm").read_bytes)
        with pytest.raises(OSError, match="Too many open files"):
            os.open("/", os.O_PATH)
    del leeway
    assert_none_left(before)
