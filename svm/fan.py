"""A fan: one path to each of the machines behind an edge, and for each message the path with the least to do."""

from types import TracebackType
from typing import TYPE_CHECKING, Any, Final

import attrs
import trio

from retinue.pipes import Path, PathError, Rejected, Reply, tracing
from retinue.svm.edge import Edge
from retinue.svm.errors import ConnectRefused

if TYPE_CHECKING:
    from retinue.svm.machine import Machine

# Seconds until a machine that has refused a path is asked again: from, and up to.
SOONEST: Final = 0.1
LATEST: Final = 5.0

# One of the machines by its number, or None where there is only one, which has no number.
Instance = int | None


@attrs.define(eq=False)
class _Rib:
    """The path to one of the machines, made again whenever it has ended. ``refusal`` says why there is none."""

    instance: Instance
    scope: trio.CancelScope = attrs.field(factory=trio.CancelScope)
    path: Path | None = None
    refusal: ConnectRefused | None = None
    busy: int = 0  # messages of the fan that are waited for
    used: int = 0  # when it was chosen last
    leaving: bool = False  # its machine is none of those behind the edge any more


class Fan:
    """Spreads messages over the machines behind an edge; made by :meth:`~retinue.svm.machine.Machine.fan`.

    Each message goes to the machine that has fewest of this fan to answer; one whose process is being replaced or
    restarted comes last. Its own unanswered messages wait for its successor, as on any path.
    """

    def __init__(self, vm: "Machine[Any]", edge: Edge) -> None:
        self._vm = vm
        self._edge = edge
        self._ribs: dict[Instance, _Rib] = {}
        self._manager = trio.open_nursery()
        self._nursery: trio.Nursery | None = None
        self._changed = trio.lowlevel.ParkingLot()
        self._count = 0

    async def __aenter__(self) -> "Fan":
        self._nursery = await self._manager.__aenter__()
        with tracing(None):  # its paths are there for others, too
            self._nursery.start_soon(self._follow, self._nursery)
        return self

    async def __aexit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        assert self._nursery is not None
        self._nursery.cancel_scope.cancel()
        try:
            await self._manager.__aexit__(kind, error, trace)
        except BaseExceptionGroup as group:
            # Its own tasks raise nothing: what is in the group came out of the block, and leaves it as it was.
            if len(group.exceptions) == 1:
                raise group.exceptions[0] from None
            raise

    # -- verbs --------------------------------------------------------------------------------------------------------

    @property
    def paths(self) -> tuple[Path, ...]:
        """The paths there are at the moment."""
        return tuple(rib.path for rib in self._ribs.values() if rib.path is not None and rib.path.severed is None)

    async def call(self, body: Any = None, *, descriptors: tuple[int, ...] = (), priority: bool = False) -> Any:
        """:meth:`Path.call` on one of the paths. Waits while there is none.

        :exc:`ConnectRefused` when none of the machines gives a path.
        """
        async with _Turn(self) as path:
            return await path.call(body, descriptors=descriptors, priority=priority)

    async def call_reply(self, body: Any = None, *, descriptors: tuple[int, ...] = (), priority: bool = False) -> Reply:
        """:meth:`Path.call_reply` likewise."""
        async with _Turn(self) as path:
            return await path.call_reply(body, descriptors=descriptors, priority=priority)

    async def send(self, body: Any = None, *, descriptors: tuple[int, ...] = (), priority: bool = False) -> None:
        """:meth:`Path.send` likewise."""
        async with _Turn(self) as path:
            await path.send(body, descriptors=descriptors, priority=priority)

    async def choose(self) -> _Rib:
        """The machine that has least to do. ConnectRefused when there will be none."""
        while True:
            ribs = [rib for rib in self._ribs.values() if rib.path is not None and rib.path.severed is None]
            if ribs:
                best = min(ribs, key=_burden)
                self._count += 1
                best.used = self._count
                return best
            refusals = [rib.refusal for rib in self._ribs.values()]
            if refusals and None not in refusals:
                first = refusals[0]
                assert first is not None
                raise ConnectRefused(first.edge, first.code, first.text)
            await self._changed.park()

    # -- its machines -------------------------------------------------------------------------------------------------

    async def _follow(self, nursery: trio.Nursery) -> None:
        """Have a rib for each machine behind the edge, also when their number changes."""
        while True:
            wanted: tuple[Instance, ...] = (None,)
            if self._edge.instances > 1:
                wanted = tuple(range(1, self._edge.instances + 1))
            for instance, rib in list(self._ribs.items()):
                if instance not in wanted:
                    del self._ribs[instance]
                    rib.leaving = True
                    self.settle(rib)
            for instance in wanted:
                if instance not in self._ribs:
                    rib = self._ribs[instance] = _Rib(instance)
                    nursery.start_soon(self._keep, rib)
            self._changed.unpark_all()
            await self._edge.resized.park()

    def settle(self, rib: _Rib) -> None:
        """End a rib that leaves, when nothing is waited for on it."""
        if rib.leaving and not rib.busy:
            rib.scope.cancel()

    async def _keep(self, rib: _Rib) -> None:
        pause = SOONEST
        with rib.scope:
            try:
                while True:
                    try:
                        rib.path = await self._vm.connect_instance(self._edge.name, rib.instance)
                    except (ConnectRefused, Rejected) as exc:
                        rib.refusal = ConnectRefused(self._edge.name, exc.code, exc.text)
                        self._changed.unpark_all()
                        await trio.sleep(pause)
                        pause = min(2 * pause, LATEST)
                        continue
                    rib.refusal, pause = None, SOONEST
                    self._changed.unpark_all()
                    await rib.path.wait_severed()
            except PathError:
                pass  # the control path has ended, and so will this machine
            finally:
                if rib.path is not None:
                    rib.path.sever()


def _burden(rib: _Rib) -> tuple[bool, int, int]:
    assert rib.path is not None
    return not rib.path.joined, rib.busy, rib.used


class _Turn:
    """One message on the path that was chosen for it."""

    def __init__(self, fan: Fan) -> None:
        self._fan = fan
        self._rib: _Rib | None = None

    async def __aenter__(self) -> Path:
        rib = self._rib = await self._fan.choose()
        rib.busy += 1
        assert rib.path is not None
        return rib.path

    async def __aexit__(self, *_: object) -> None:
        assert self._rib is not None
        self._rib.busy -= 1
        self._fan.settle(self._rib)
