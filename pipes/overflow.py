"""What happens to a message for which there is no room: who waits, in which order, and who is dropped."""

from typing import Literal

import outcome
import trio

# block: wait. drop-oldest: wait, and when as many wait as the limit says the oldest of them is dropped. drop-newest: it
# is dropped itself. sever: the path is severed. Calls are never dropped, they wait.
Overflow = Literal["block", "drop-oldest", "drop-newest", "sever"]


class Waiters:
    """Tasks that wait for room on a path, first come first served, those with priority before the others.

    ``promised`` counts the places that were given to tasks which have not run since.
    """

    __slots__ = ("_fast", "_slow", "droppable", "promised")

    def __init__(self) -> None:
        self._fast: dict[trio.lowlevel.Task, bool] = {}  # and whether it may be dropped
        self._slow: dict[trio.lowlevel.Task, bool] = {}
        self.droppable = 0
        self.promised = 0

    @property
    def idle(self) -> bool:
        """Whether nobody waits and nothing is promised."""
        return not self._fast and not self._slow and not self.promised

    @property
    def waiting(self) -> int:
        """How many tasks wait."""
        return len(self._fast) + len(self._slow)

    async def wait(self, priority: bool, may_drop: bool) -> bool:
        """Until this task is given a place, True (which is then promised), or is dropped, False."""
        lane = self._fast if priority else self._slow
        task = trio.lowlevel.current_task()
        lane[task] = may_drop
        self.droppable += may_drop

        def abort(_: object) -> trio.lowlevel.Abort:
            self.droppable -= lane.pop(task)
            return trio.lowlevel.Abort.SUCCEEDED

        placed: bool = await trio.lowlevel.wait_task_rescheduled(abort)
        return placed

    def wake(self) -> bool:
        """Promise a place to the next one. False when nobody waits."""
        lane = self._fast or self._slow
        if not lane:
            return False
        task = next(iter(lane))
        self.droppable -= lane.pop(task)
        self.promised += 1
        trio.lowlevel.reschedule(task, outcome.Value(True))
        return True

    def wake_all(self) -> None:
        """Have everybody look again."""
        while self.wake():
            pass

    def drop_oldest(self) -> None:
        """Send away the one that has waited longest of those that may be dropped, ordinary ones first."""
        for lane in (self._slow, self._fast):
            for task, may_drop in lane.items():
                if may_drop:
                    del lane[task]
                    self.droppable -= 1
                    trio.lowlevel.reschedule(task, outcome.Value(False))
                    return
