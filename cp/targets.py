"""The machines that a path may lead to: one behind a name, or several instances, of which the least busy is chosen."""

import math
from collections import defaultdict
from collections.abc import Callable, Iterable, Sequence
from itertools import count
from typing import Final, Protocol

import trio

from retinue.cp.circuit import Circuit
from retinue.pipes import Rejected

HOPE: Final = 5.0
"""Seconds for which an instance that is about to be READY is waited for before one more is started."""


class Target(Protocol):
    """What the switchboard needs of a machine."""

    @property
    def name(self) -> str: ...

    @property
    def base(self) -> str:
        """The name that it shares with other instances; its own, or none, if it is no instance."""

    @property
    def generation(self) -> int:
        """Of the process that new paths lead to."""

    @property
    def rests(self) -> bool:
        """It has no process, and whoever waits for it starts one."""

    async def wait_ready(self, *, wait: bool) -> None:
        """Until it is READY, which may mean that it is started.

        Rejected ``broken`` when it will not be, or without ``wait``, in which case nothing is started, ``not-ready``.
        """

    async def offer(self, circuit: Circuit, descriptor: int) -> None:
        """Hand it an end of the path; returns when it has accepted. Rejected as it says; PathError when it died."""


class Targets:
    """All machines by the name that edges give them. ``paths`` tells how many paths lead to one."""

    def __init__(self, targets: Iterable[Target], paths: Callable[[str], int]) -> None:
        self._paths = paths
        self._named: dict[str, Target] = {}
        self._behind: defaultdict[str, dict[str, Target]] = defaultdict(dict)
        self._turns = count(1)
        self._turn: dict[str, int] = {}  # when it was last chosen
        self._added = trio.lowlevel.ParkingLot()
        for target in targets:
            self.add(target)

    def add(self, target: Target) -> None:
        """Paths may lead to it from here on."""
        self.remove(target.name)
        self._named[target.name] = target
        self._behind[target.base or target.name][target.name] = target
        self._added.unpark_all()

    def remove(self, name: str) -> None:
        """No new path leads to the machine of that name."""
        target = self._named.pop(name, None)
        self._turn.pop(name, None)
        if target is not None:
            del self._behind[target.base or target.name][name]

    def count(self, to: str) -> int:
        """How many machines are behind a name."""
        return len(self._of(to))

    def _of(self, to: str) -> Sequence[Target]:
        if found := self._behind.get(to):
            return list(found.values())
        return [self._named[to]] if to in self._named else []

    async def choose(self, to: str, *, wait: bool, instance: int | None = None) -> Target:
        """One that is READY now: of several the one with the fewest paths. If none is, one of those at rest is started.

        While one is about to be READY no other is started, unless that takes long; and if it will not be, the next one
        is. ``instance`` asks for that one and no other. Rejected ``unknown-instance``, ``not-ready`` or ``broken``.
        """
        tried: set[str] = set()
        hoped: list[Target] | None = None
        while True:
            targets = self._of(to)
            if not targets:
                raise Rejected("broken", f"there is no machine {to}")
            if instance is not None:
                targets = [each for each in targets if _number(each) == instance]
                if not targets:
                    raise Rejected("unknown-instance", f"{to} has no instance {instance}")
            if len(targets) == 1:
                # No other task has its turn if it is ready: what is offered is offered to what was found ready.
                await targets[0].wait_ready(wait=wait)
                return targets[0]
            ready, refusals = await _ready_among(targets)
            if ready:
                chosen = min(ready, key=self._burden)
                self._turn[chosen.name] = next(self._turns)
                return chosen
            # Of several reasons that of one which may still become READY.
            refusal = min(refusals.values(), key=lambda each: each.code == "broken")
            if refusal.code == "broken" or not wait:
                raise refusal
            awake = [each for each in targets if not each.rests]
            resting = sorted((each for each in targets if each.rests and each.name not in tried), key=self._burden)
            hopeful = [each for each in awake if refusals[each.name].code != "broken"]
            woken = resting[:1] if not hopeful or hopeful == hoped else []
            if not awake and not woken:
                raise refusal
            others = any(each not in woken for each in resting)
            with trio.move_on_after(HOPE if others else math.inf) as scope:
                try:
                    await self._wait_for_one(awake + woken)
                except Rejected:
                    if not others:
                        raise
                    tried.update(each.name for each in woken)
            hoped = hopeful if scope.cancelled_caught else None

    def _burden(self, target: Target) -> tuple[int, int]:
        return self._paths(target.name), self._turn.get(target.name, 0)

    async def successor(self, name: str, to: str) -> Target:
        """Who takes the place of a process of the machine ``name``: its next one, or else another instance.

        Rejected as by :meth:`choose`.
        """
        own = self._named.get(name)
        if own is not None:
            try:
                await own.wait_ready(wait=True)
                return own
            except Rejected as exc:
                if exc.code != "broken" or self.count(to) < 2:
                    raise
        return await self.choose(to, wait=True)

    async def _wait_for_one(self, targets: Sequence[Target]) -> None:
        """Until one of them is READY or there are more to choose from; Rejected when no one will be."""
        refusals: dict[str, Rejected] = {}
        async with trio.open_nursery() as nursery:

            async def wait(target: Target) -> None:
                try:
                    await target.wait_ready(wait=True)
                except Rejected as exc:
                    refusals[target.name] = exc
                    if len(refusals) < len(targets):
                        return
                nursery.cancel_scope.cancel()

            async def wait_for_more() -> None:
                await self._added.park()
                nursery.cancel_scope.cancel()

            nursery.start_soon(wait_for_more)
            for target in targets:
                nursery.start_soon(wait, target)
        if len(refusals) == len(targets):
            raise refusals[targets[0].name]


async def _ready_among(targets: Sequence[Target]) -> tuple[list[Target], dict[str, Rejected]]:
    """Those that are READY, and why the others are not, by name."""
    ready: list[Target] = []
    refusals: dict[str, Rejected] = {}
    for target in targets:
        try:
            await target.wait_ready(wait=False)
            ready.append(target)
        except Rejected as exc:
            refusals[target.name] = exc
    return ready, refusals


def _number(target: Target) -> int:
    """Which of the instances it is, from 1; a machine that is alone is the first."""
    return 1 if target.base in ("", target.name) else int(target.name.rpartition("@")[2])
