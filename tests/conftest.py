"""Fixtures for every test, and the order in which files are run."""

import compileall
import pathlib
from collections.abc import Iterator
from typing import Any

import pytest
from tests.leaks import assert_none_left, descriptors
from tests.order import place_of, worker_of
from tests.systems import Bench, open_bench

ROOT = pathlib.Path(__file__).resolve().parents[1]


def pytest_configure(config: pytest.Config) -> None:
    """Compile the house once, however the environment is set: each of its thousand processes would do it again."""
    config.option.loadscopereorder = False  # with xdist the order is ours, and not that of the number of tests
    if not hasattr(config, "workerinput"):
        for layer in ("pipes", "svm", "cp", "services"):
            compileall.compile_dir(ROOT / layer, quiet=2)  # it goes without where it may not write


@pytest.hookimpl(optionalhook=True)
def pytest_xdist_make_scheduler(config: pytest.Config, log: Any) -> Any:
    """As ``--dist=loadfile``, but some files are one."""
    if config.getoption("dist") != "loadfile":
        return None
    from xdist.scheduler import LoadFileScheduling  # type: ignore[import-untyped]  # it ships no types

    scheduler = LoadFileScheduling(config, log)
    scheduler._split_scope = worker_of
    return scheduler


def pytest_collection_modifyitems(items: list[pytest.Item]) -> None:
    """Files that take long come first, so that no worker is left with one of them at the end."""
    items.sort(key=lambda item: place_of(item.path))


@pytest.fixture
def bench(tmp_path: pathlib.Path) -> Iterator[Bench]:
    """Folders and a name for one real system, which is gone after the test."""
    with open_bench(tmp_path) as made:
        yield made


@pytest.fixture
def no_descriptor_leaks() -> Iterator[None]:
    """The test leaves no descriptor open. A module asks for it for all of its tests, by ``usefixtures``."""
    before = descriptors()
    yield
    assert_none_left(before)
