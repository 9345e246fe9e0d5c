"""How long to wait before a dead machine is started again."""

import random
from typing import Final

# The first restart comes at once: most deaths are single ones. Then the pause doubles, so that a machine that cannot
# live costs little, up to the bound that the topology sets.
FIRST: Final = 0.1
# A machine that was ready for this long starts with a clean slate.
HEALTHY: Final = 60.0


class Backoff:
    """The pauses of one machine, in seconds, with jitter so that machines that died together do not start together.

    ``longest`` is the longest of them, in seconds; with 0 there are none.
    """

    def __init__(self, longest: float, rng: random.Random | None = None) -> None:
        self._longest = longest
        self._random = rng or random.Random()
        self._deaths = 0

    def pause(self, ready_for: float) -> float:
        """The pause after a death. ``ready_for`` is for how many seconds the machine had been ready."""
        if ready_for >= HEALTHY:
            self._deaths = 0
        self._deaths += 1
        if self._deaths == 1:
            return 0.0
        longest = min(FIRST * 2.0 ** min(self._deaths - 2, 32), self._longest)
        return longest * self._random.uniform(0.5, 1.0)
