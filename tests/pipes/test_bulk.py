"""Large frames in sealed memfds."""

import fcntl
import os
from collections.abc import Iterator

import pytest

from retinue.pipes import ProtocolViolation, bulk

SIZE = 100_000


@pytest.fixture
def memfd() -> Iterator[int]:
    descriptor = os.memfd_create("test", os.MFD_CLOEXEC | os.MFD_ALLOW_SEALING)
    os.truncate(descriptor, SIZE)
    yield descriptor
    os.close(descriptor)


def seal(descriptor: int, seals: int = fcntl.F_SEAL_SHRINK | fcntl.F_SEAL_GROW | fcntl.F_SEAL_WRITE) -> None:
    fcntl.fcntl(descriptor, fcntl.F_ADD_SEALS, seals)


def test_stored_bytes_are_fetched() -> None:
    """What is stored can be read any number of times, and changed by nobody."""
    data = os.urandom(SIZE)
    descriptor = bulk.store(data)
    try:
        assert bulk.fetch(descriptor, SIZE) == bulk.fetch(descriptor, SIZE) == data
        assert not os.get_inheritable(descriptor)
        with pytest.raises(PermissionError):
            os.pwrite(descriptor, b"x", 0)
        with pytest.raises(PermissionError):
            os.truncate(descriptor, 0)
    finally:
        os.close(descriptor)


@pytest.mark.parametrize("missing", [fcntl.F_SEAL_SHRINK, fcntl.F_SEAL_GROW, fcntl.F_SEAL_WRITE])
def test_memfd_without_one_of_the_seals_is_a_violation(memfd: int, missing: int) -> None:
    """Its sender could change it between the check and the use."""
    seal(memfd, (fcntl.F_SEAL_SHRINK | fcntl.F_SEAL_GROW | fcntl.F_SEAL_WRITE) & ~missing)
    with pytest.raises(ProtocolViolation, match="not sealed"):
        bulk.fetch(memfd, SIZE)


@pytest.mark.parametrize("size", [SIZE - 1, SIZE + 1])
def test_other_size_than_announced_is_a_violation(memfd: int, size: int) -> None:
    """The announced size is what is allocated."""
    seal(memfd)
    with pytest.raises(ProtocolViolation, match="another size"):
        bulk.fetch(memfd, size)


@pytest.mark.parametrize("path", ["/dev/null", "/dev/zero", "/"])
def test_other_file_is_a_violation(path: str) -> None:
    """A descriptor of anything else is never read."""
    descriptor = os.open(path, os.O_RDONLY)
    try:
        with pytest.raises(ProtocolViolation, match="not a memfd"):
            bulk.fetch(descriptor, SIZE)
    finally:
        os.close(descriptor)


def test_pipe_is_a_violation() -> None:
    """A read of it could wait for ever."""
    reader, writer = os.pipe()
    try:
        with pytest.raises(ProtocolViolation, match="not a memfd"):
            bulk.fetch(reader, SIZE)
    finally:
        os.close(reader)
        os.close(writer)


@pytest.mark.parametrize("flags", [os.O_WRONLY, os.O_PATH])
def test_memfd_that_cannot_be_read_is_a_violation(memfd: int, flags: int) -> None:
    """Sealed, of the right size, and opened for something else."""
    descriptor = os.open(f"/proc/self/fd/{memfd}", flags)
    seal(memfd)
    try:
        with pytest.raises(ProtocolViolation):
            bulk.fetch(descriptor, SIZE)
    finally:
        os.close(descriptor)


def test_position_of_the_descriptor_does_not_matter(memfd: int) -> None:
    """A sender that has moved it gets the same bytes read."""
    os.pwrite(memfd, b"begin", 0)
    os.lseek(memfd, 50, os.SEEK_SET)
    seal(memfd)
    assert bulk.fetch(memfd, SIZE)[:5] == b"begin"
