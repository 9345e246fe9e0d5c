"""Fixtures for tests of what runs in a machine."""

import pathlib

import pytest
from tests.svm.succession import Program


@pytest.fixture
def program(tmp_path: pathlib.Path, monkeypatch: pytest.MonkeyPatch) -> Program:
    """Makes modules that a machine of this test can load."""
    monkeypatch.syspath_prepend(str(tmp_path))
    return Program(tmp_path)
