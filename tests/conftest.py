"""Fixtures for every test."""

import pathlib
from collections.abc import Iterator

import pytest
from tests.systems import Bench, open_bench


@pytest.fixture
def bench(tmp_path: pathlib.Path) -> Iterator[Bench]:
    """Folders and a name for one real system, which is gone after the test."""
    with open_bench(tmp_path) as made:
        yield made
