"""Real systems, one for each rung, started together when the first test asks for one and shared by all."""

import contextlib
from collections.abc import Callable, Iterator

import pytest
from tests.escapes.prison import Prison, open_outside, open_prison
from tests.escapes.rungs import RUNGS
from tests.escapes.unsealed import Unsealed

PrisonOf = Callable[[str], Prison]


class Prisons:
    """The systems of a run."""

    def __init__(self, stack: contextlib.ExitStack, folders: pytest.TempPathFactory) -> None:
        self._stack = stack
        self._folders = folders
        self._running: dict[str, Prison] = {}
        self._failed: dict[str, BaseException] = {}

    def begin(self, rung: str) -> None:
        """Start one; it comes up while others are started."""
        try:
            self._running[rung] = self._stack.enter_context(open_prison(RUNGS[rung], self._folders.mktemp(rung)))
        except Exception as error:
            self._failed[rung] = error

    def find(self, rung: str) -> Prison:
        """One that is up."""
        if rung in self._running and not self._running[rung].lives:
            self._running.pop(rung).close()  # a test before this one has ended it
        if rung not in self._running and rung not in self._failed:
            self.begin(rung)
        if rung not in self._failed:
            try:
                self._running[rung].attend()
                return self._running[rung]
            except Exception as error:
                self._failed[rung] = error
        pytest.fail(f"the system could not be started: {self._failed[rung]}", pytrace=False)


@pytest.fixture(scope="session")
def prison_of(request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory) -> Iterator[PrisonOf]:
    """``prison_of(rung)``."""
    with contextlib.ExitStack() as stack:
        prisons = Prisons(stack, tmp_path_factory)
        wanted = {
            item.callspec.params.get("rung")
            for item in request.session.items
            if isinstance(item, pytest.Function) and hasattr(item, "callspec") and "prison_of" in item.fixturenames
        }
        for rung in RUNGS:
            if rung in wanted:
                prisons.begin(rung)
        yield prisons.find


@pytest.fixture(scope="session")
def unsealed(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Unsealed]:
    """A process without a seal."""
    with open_outside() as outside:
        made = Unsealed(tmp_path_factory.mktemp("unsealed"), outside)
        yield made
        made.close()
