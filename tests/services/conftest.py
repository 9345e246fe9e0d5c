"""Fixtures for tests of the services: a store of records, as SYSLOG has it on its disk."""

import pathlib
from collections.abc import Iterator

import pytest

from retinue.services.syslog import Store
from retinue.services.syslog.retention import Retention


@pytest.fixture
def path(tmp_path: pathlib.Path) -> str:
    """Where the store is, or will be."""
    return str(tmp_path / "records.sqlite3")


@pytest.fixture
def store(path: str) -> Iterator[Store]:
    """An empty one that keeps whatever it is given."""
    made = Store(path, Retention(1_000_000))
    yield made
    made.close()
