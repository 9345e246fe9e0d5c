"""One campaign: faults in an order that a seed decides, a recovery after each, and a report."""

import random
import statistics
import time
from collections import Counter
from collections.abc import Callable, Collection
from typing import Any, Final

import attrs
import trio

from retinue.cp.campaign import census
from retinue.cp.campaign.faults import FAULTS
from retinue.cp.campaign.load import Counts, Load
from retinue.cp.campaign.world import NotRecovered, World

# Seconds that what a system has of the host may take to be what it was: a path that nobody asks for lingers for 60.
SETTLING: Final = 90.0
# Seconds between two counts meanwhile.
COUNT_EVERY: Final = 1.0
# Counts in a row that must be the same before the campaign begins.
STEADY: Final = 4
# Seconds of load before anything is counted: paths are made by the first requests.
WARM_UP: Final = 2.0
# Seconds that somebody may be missing to whom a fault can be done.
NOBODY: Final = 0.01
# Of the recoveries that took longest so many are told.
SLOWEST: Final = 5


@attrs.define
class Report:
    """What came of a campaign."""

    seed: int
    faults: Counter[str] = attrs.field(factory=Counter)
    recoveries: list[tuple[float, str]] = attrs.field(factory=list)
    not_recovered: list[str] = attrs.field(factory=list)
    left_over: dict[str, int] = attrs.field(factory=dict)
    unseen: int = 0
    load: Counts | None = None
    excused: int = 0
    """Requests that may have no answer: those that were under way when the machine with the network was hurt."""
    redelivered: int = 0
    dropped: int = 0
    seconds: float = 0.0

    @property
    def passed(self) -> bool:
        """Whether the system stood it."""
        return not self.not_recovered and not self.left_over and not self.unanswered

    @property
    def unanswered(self) -> int:
        """Requests without an answer, but for those whose connection was a socket of a machine that was hurt."""
        return 0 if self.load is None else max(0, self.load.unanswered - self.excused)

    def as_dict(self) -> dict[str, Any]:
        """For JSON. Times in seconds."""
        times = sorted(seconds for seconds, _ in self.recoveries)
        slowest = sorted(self.recoveries, reverse=True)[:SLOWEST]
        return {
            "passed": self.passed,
            "seed": self.seed,
            "seconds": round(self.seconds, 1),
            "faults": {"count": self.faults.total(), "by_kind": dict(self.faults)},
            "recovery": {
                "p50": round(statistics.median(times), 4) if times else None,
                "p95": round(times[int(len(times) * 0.95)], 4) if times else None,
                "longest": round(times[-1], 4) if times else None,
                "slowest": [[round(seconds, 3), text] for seconds, text in slowest],
            },
            "not_recovered": self.not_recovered,
            "messages": {"redelivered": self.redelivered, "dropped": self.dropped},
            "requests": None if self.load is None else attrs.asdict(self.load) | {"excused": self.excused},
            "left_over": self.left_over,
            "unseen_processes": self.unseen,
        }


@attrs.frozen
class Campaign:
    """``kinds`` are names of faults; it ends after ``faults`` of them or after ``seconds``, whichever is first.

    ``folders`` are the system's; ``tell`` is given the report now and then, for who waits.
    """

    world: World
    seed: int
    seconds: float
    faults: int | None
    kinds: Collection[str]
    load: Load | None
    network: frozenset[str]
    """The machines whose sockets the clients' connections are."""
    count: Callable[[World], census.Census]
    tell: Callable[[Report], None]

    async def run(self) -> Report:
        """Hurt the system; what came of it. The first time it does not recover is the end."""
        report = Report(self.seed)
        world = self.world
        listed = await world.machines()
        world.declared = frozenset(each.name for each in listed.values() if each.state == "READY")
        await self._warm_up()
        before = await self._steady()
        begun = time.monotonic()
        async with trio.open_nursery() as nursery:
            if self.load is not None:
                nursery.start_soon(self.load.run)
            try:
                await self._hurt(report)
            except NotRecovered as exc:
                report.not_recovered.append(str(exc))
            if self.load is not None:
                self.load.finish()
                report.load = self.load.counts
        report.seconds = time.monotonic() - begun
        if not report.not_recovered:
            await self._count_messages(report)
            await self._count_left_over(report, before)
        return report

    async def _warm_up(self) -> None:
        """Bring the system where every later count finds it: no machine and no control program is its first."""
        for kind in ("kill-both", "kill-cp", "cut"):
            inject, _ = FAULTS[kind]
            done = await inject(self.world, random.Random(self.seed))
            await self.world.settle(done.gone if done is not None else frozenset())
        for machine in (await self.world.machines()).values():
            if machine.name in self.world.declared:
                await self.world.ask("restart", machine=machine.name)
        if self.load is not None:
            async with trio.open_nursery() as nursery:
                nursery.start_soon(self.load.run)
                await trio.sleep(WARM_UP)
                self.load.finish()
            self.load.begin_anew()
        with trio.move_on_after(SETTLING):
            await self.world.wait_spare()

    async def _steady(self) -> census.Census:
        """What there is when nothing is under way: the same for a while."""
        counts = [self.count(self.world)]
        while counts[-STEADY:] != [counts[-1]] * STEADY:
            await trio.sleep(COUNT_EVERY / 4)
            counts.append(self.count(self.world))
        return counts[-1]

    async def _hurt(self, report: Report) -> None:
        rng = random.Random(self.seed)
        kinds = [kind for kind in FAULTS if kind in self.kinds]
        weights = [FAULTS[kind][1] for kind in kinds]
        end = trio.current_time() + self.seconds
        while trio.current_time() < end and (self.faults is None or report.faults.total() < self.faults):
            (kind,) = rng.choices(kinds, weights)
            done = await FAULTS[kind][0](self.world, rng)
            if done is None:
                await trio.sleep(NOBODY)
                continue
            report.faults[kind] += 1
            if self.load is not None and any(name in self.network for name in done.text.replace(":", " ").split()):
                report.excused += self.load.clients
            try:
                report.recoveries.append((await self.world.settle(done.gone), done.text))
            except NotRecovered as exc:
                raise NotRecovered(
                    exc.seconds, f"{exc.found}, after: {done.text} (fault {report.faults.total()})"
                ) from exc
            self.tell(report)

    async def _count_messages(self, report: Report) -> None:
        for edge in (await self.world.ask("edges"))["edges"]:
            for meter in edge["meters"].values():
                if meter is not None:
                    report.redelivered += meter["redelivered"]
                    report.dropped += meter["dropped"]

    async def _count_left_over(self, report: Report, before: census.Census) -> None:
        deadline = trio.current_time() + SETTLING
        while True:
            now = self.count(self.world)
            report.left_over, report.unseen = now.more_than(before), now.unseen
            if not report.left_over or trio.current_time() > deadline:
                return
            await trio.sleep(COUNT_EVERY)
