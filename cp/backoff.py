"""How long to wait before a dead machine is started again."""

import random

from retinue.cp.directory import Pause


class Backoff:
    """The pauses of one machine, in seconds, as its :class:`~retinue.cp.directory.Pause` says.

    ``pause`` may be the longest of them alone. ``deaths`` is how many there were since the last healthy time, which a
    control program tells its successor.
    """

    def __init__(self, pause: Pause | float, rng: random.Random | None = None, *, deaths: int = 0) -> None:
        self._pause = pause if isinstance(pause, Pause) else Pause(longest=pause)
        self._random = rng or random.Random(random.getrandbits(64))
        self.deaths = deaths

    def change(self, pause: Pause) -> None:
        """Go on with other figures."""
        self._pause = pause

    def pause(self, ready_for: float) -> float:
        """The pause after a death. ``ready_for`` is for how many seconds the machine had been ready."""
        if ready_for >= self._pause.reset:
            self.deaths = 0
        self.deaths += 1
        if self.deaths == 1:
            # Most deaths are single ones.
            return 0.0
        return self._longest() * self._random.uniform(1.0 - self._pause.jitter, 1.0)

    def _longest(self) -> float:
        """The pause after this death if chance takes nothing away."""
        first, factor, longest = self._pause.first, self._pause.factor, self._pause.longest
        try:
            return min(first * factor ** (self.deaths - 2), longest)
        except OverflowError:
            return longest
