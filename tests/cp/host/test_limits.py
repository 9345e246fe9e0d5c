"""Limits of addresses that are changed while a machine runs; the machine is played by a child that sleeps."""

import resource
import subprocess
import sys
from collections.abc import Iterator

import pytest

from retinue.cp.host import libc
from retinue.cp.host.limits import Change, change

CAP_SYS_RESOURCE = 24
MIB = 1 << 20
STORAGE, SPACE, ROOM = 256 * MIB, 1024 * MIB, 64 * MIB


@pytest.fixture
def child() -> Iterator[int]:
    """With storage, addresses, and room for segments above them."""

    def limit() -> None:
        resource.setrlimit(resource.RLIMIT_DATA, (STORAGE, STORAGE))
        resource.setrlimit(resource.RLIMIT_AS, (SPACE, SPACE + ROOM))

    with subprocess.Popen([sys.executable, "-c", "input()"], stdin=subprocess.PIPE, preexec_fn=limit) as process:
        yield process.pid
        process.kill()


def test_room_for_segments_stays_when_there_is_to_be_less_storage(child: int) -> None:
    assert change(child, None, None, Change(storage=128 * MIB)) == ""
    assert resource.prlimit(child, resource.RLIMIT_DATA) == (128 * MIB, 128 * MIB)
    assert resource.prlimit(child, resource.RLIMIT_AS) == (SPACE - 128 * MIB, SPACE - 128 * MIB + ROOM)


def test_room_for_segments_stays_when_there_is_to_be_more_storage(child: int) -> None:
    why = change(child, None, None, Change(storage=512 * MIB))
    if not libc.permitted_capabilities() >> CAP_SYS_RESOURCE & 1:
        assert "CAP_SYS_RESOURCE" in why
        assert resource.prlimit(child, resource.RLIMIT_AS) == (SPACE, SPACE + ROOM)
        return
    assert why == ""
    assert resource.prlimit(child, resource.RLIMIT_AS) == (SPACE + 256 * MIB, SPACE + 256 * MIB + ROOM)
