"""The heartbeat of a simulated machine: a task beside it, for a thread would not beat by the same clock."""

import msgpack
import trio

from retinue.cp.simulation.output import LogEnd
from retinue.pipes.beat import Beat, packet_of

__all__ = ["SimulatedHeart"]


class SimulatedHeart:
    """What the runtime of a machine is given instead of a thread (``retinue.svm.heartbeat.Heart``)."""

    def __init__(self, end: LogEnd) -> None:
        self.stopped = False
        """The whole process has been stopped, and this with it."""
        self.stuck = False
        """The loop of the machine does not answer."""
        self._end = end
        self._every = 0.0
        self._turns = 0
        self._answered = 0.0
        self._changed = trio.Event()
        self._closed = False

    def watch(self, every: float) -> int | None:
        """Beat every so many seconds; 0: not at all. There are no stacks to be had from elsewhere."""
        self._every = every
        self._answered = trio.current_time()
        self._wake()
        return None

    def resume(self) -> None:
        """The process goes on, and its loop answers."""
        self.stopped = self.stuck = False
        self._answered = trio.current_time()

    def close(self) -> None:
        """Beat no more."""
        self._closed = True
        self._wake()

    def _wake(self) -> None:
        self._changed.set()
        self._changed = trio.Event()

    async def beat(self) -> None:
        """Task: beat, until it is closed."""
        packer = msgpack.Packer()
        while not self._closed:
            with trio.move_on_after(self._every or float("inf")) as pause:
                await self._changed.wait()
            if not pause.cancelled_caught or self.stopped:
                continue
            now = trio.current_time()
            if not self.stuck:
                self._turns += 1
                self._answered = now
            self._end.beat(packet_of(Beat(self._turns, 0.0, now - self._answered), packer))
