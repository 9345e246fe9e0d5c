"""An edge as this machine uses or serves it: what it may, what passed along it, what was dropped, who broke rules."""

import logging
from collections.abc import Callable
from typing import Any, Final

import attrs
import trio

from retinue.pipes import Meter, Overflow, Path

# Seconds between two records about messages that are dropped, and about paths on which the protocol was broken.
DROPS_PAUSE: Final = 1.0
VIOLATIONS_PAUSE: Final = 1.0

_log = logging.getLogger("retinue.svm")


class Tally:
    """Records of what may happen often: the first time at once, what follows with its number, one each pause.

    ``record(count)`` makes one.
    """

    def __init__(self, record: Callable[[int], None]) -> None:
        self._record = record
        self._count = 0  # not recorded yet
        self._recording = False

    def happen(self, nursery: trio.Nursery, pause: float) -> None:
        """It has happened once more."""
        self._count += 1
        if not self._recording:
            self._recording = True
            self._tell()
            nursery.start_soon(self._tell_more, pause)

    async def _tell_more(self, pause: float) -> None:
        try:
            while True:
                await trio.sleep(pause)
                if not self._count:
                    return
                self._tell()
        finally:
            self._recording = False
            if self._count:
                self._tell()  # the machine ends

    def _tell(self) -> None:
        count, self._count = self._count, 0
        self._record(count)


@attrs.define(eq=False)
class Edge:
    """``name`` is the local name of an edge of this machine, or ``WEB.app`` for the edge of another that leads here.

    ``limit`` is how many messages may be outstanding per direction, ``overflow`` what becomes of one more of ours.
    ``to`` is who is at the other end of its paths; only records tell it. ``instances`` is how many machines are there.
    """

    name: str
    limit: int
    overflow: Overflow = "block"
    to: str = ""
    instances: int = 1
    resized: trio.lowlevel.ParkingLot = attrs.field(factory=trio.lowlevel.ParkingLot, init=False)
    _paths: set[Path] = attrs.field(factory=set, init=False)
    _ended: Meter = attrs.field(factory=Meter, init=False)
    _drops: Tally = attrs.field(init=False)
    _violations: Tally = attrs.field(init=False)
    _latest: tuple[str, str, str] = attrs.field(default=("", "", ""), init=False)  # path, peer and rule of a violation

    def __attrs_post_init__(self) -> None:
        self._drops = Tally(self._record_drops)
        self._violations = Tally(self._record_violations)

    @property
    def paths(self) -> tuple[Path, ...]:
        """Its paths that run."""
        return tuple(self._paths)

    def resize(self, instances: int) -> None:
        """There is another number of machines behind it."""
        self.instances = instances
        self.resized.unpark_all()

    def meter(self) -> Meter:
        """The sum of its paths in this process, those that have ended among them."""
        total = Meter()
        total.add(self._ended)
        for path in self._paths:
            total.add(path.meter)
        return total

    async def run(
        self, path: Path, nursery: trio.Nursery, *, task_status: trio.TaskStatus[Any] = trio.TASK_STATUS_IGNORED
    ) -> None:
        """Run a path along this edge to its end, and keep its meter; a record tells if its peer broke the protocol."""
        self._paths.add(path)
        try:
            await path.run(task_status=task_status)
        finally:
            self._paths.discard(path)
            self._ended.add(path.meter)
            if (rule := path.broken_rule) is not None:
                self._latest = path.name, path.peer or self.to or "its peer", rule
                self._violations.happen(nursery, VIOLATIONS_PAUSE)

    def drop(self, nursery: trio.Nursery) -> None:
        """A message was dropped. The first one is recorded at once, those after it with their number once a second."""
        self._drops.happen(nursery, DROPS_PAUSE)

    def _record_drops(self, count: int) -> None:
        messages = "a message was" if count == 1 else f"{count} messages were"
        about = {"edge": self.name, "count": count, "policy": self.overflow}
        _log.warning("edge %s: %s dropped (overflow = %s)", self.name, messages, self.overflow, extra=about)

    def _record_violations(self, count: int) -> None:
        path, peer, rule = self._latest
        about = {"edge": self.name, "count": count, "peer": peer, "rule": rule}
        paths = f"the path {path} was" if count == 1 else f"{count} paths like {path} were"
        latest = "" if count == 1 else ", lately"
        _log.warning("%s severed: %s broke the protocol%s: %s", paths, peer, latest, rule, extra=about)
