"""A trio run on a virtual clock that goes on only while somebody waits for something in it.

For tests that are not asynchronous themselves: a Hypothesis state machine does one thing after the other, and between
them no time passes and no task runs.
"""

import os
import queue
import threading
from collections.abc import Awaitable, Callable
from contextlib import AbstractAsyncContextManager
from typing import Any, Generic, TypeVar

import outcome
import trio
import trio.testing
from hypothesis import HealthCheck, Phase, settings
from hypothesis.stateful import RuleBasedStateMachine, run_state_machine_as_test

T = TypeVar("T")

# Seconds of real time that one thing may take.
LIMIT = 20
# Orders that a state machine is tried in.
EXAMPLES = int(os.environ.get("RETINUE_PAGER_EXAMPLES", "8"))


class Driven(Generic[T]):
    """Holds an asynchronous context manager open in a thread of its own, and runs there what is done with it."""

    def __init__(self, opened: Callable[[], AbstractAsyncContextManager[T]]) -> None:
        self._wanted: queue.SimpleQueue[Callable[[T], Awaitable[Any]] | None] = queue.SimpleQueue()
        self._answers: queue.SimpleQueue[outcome.Outcome[Any]] = queue.SimpleQueue()
        self._thread = threading.Thread(target=self._run, args=(opened,), name="driven", daemon=True)
        self._thread.start()
        self._answers.get(timeout=LIMIT).unwrap()

    def _run(self, opened: Callable[[], AbstractAsyncContextManager[T]]) -> None:
        clock = trio.testing.MockClock(autojump_threshold=0)
        self._answers.put(outcome.capture(lambda: trio.run(self._main, opened, clock=clock)))

    async def _main(self, opened: Callable[[], AbstractAsyncContextManager[T]]) -> None:
        async with opened() as held:
            self._answers.put(outcome.Value(None))
            # The whole run stands still meanwhile: that is what it is for.
            while (wanted := self._wanted.get()) is not None:
                self._answers.put(await outcome.acapture(wanted, held))

    def do(self, wanted: Callable[[T], Awaitable[Any]]) -> Any:
        """Run something to its end, and return what it does."""
        self._wanted.put(wanted)
        return self._answers.get(timeout=LIMIT).unwrap()

    def close(self) -> None:
        """End the run."""
        self._wanted.put(None)
        self._answers.get(timeout=LIMIT).unwrap()
        self._thread.join()


def run_in_any_order(machine: type[RuleBasedStateMachine]) -> None:
    """Try what a state machine does in some orders, none of which is made shorter when it fails."""
    run_state_machine_as_test(
        machine,
        settings=settings(
            max_examples=EXAMPLES,
            phases=[Phase.explicit, Phase.reuse, Phase.generate],
            stateful_step_count=15,
            deadline=None,
            suppress_health_check=list(HealthCheck),
        ),
    )
