"""Fixtures for tests of what runs in a machine."""

import pathlib
from collections.abc import Iterator

import pytest
from tests.svm.log_reader import Reader
from tests.svm.succession import Program

from retinue.pipes import socket_pair
from retinue.svm.log import LogWriter


@pytest.fixture
def program(tmp_path: pathlib.Path, monkeypatch: pytest.MonkeyPatch) -> Program:
    """Makes modules that a machine of this test can load."""
    monkeypatch.syspath_prepend(str(tmp_path))
    return Program(tmp_path)


@pytest.fixture
def ends() -> Iterator[tuple[LogWriter, Reader]]:
    """Both ends of a log descriptor: the machine's and the control program's."""
    ours, theirs = socket_pair()
    with ours, theirs:
        yield LogWriter(theirs), Reader(ours)


@pytest.fixture
def writer(ends: tuple[LogWriter, Reader]) -> LogWriter:
    """The machine's end."""
    return ends[0]


@pytest.fixture
def reader(ends: tuple[LogWriter, Reader]) -> Reader:
    """The control program's end of the same."""
    return ends[1]
