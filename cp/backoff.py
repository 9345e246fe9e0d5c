"""How long to wait before a dead machine is started again."""

import random
from typing import Final

# The first restart comes at once: most deaths are single ones. Then the pause doubles, so that a machine that cannot
# live costs little, up to a bound an operator is willing to wait for.
FIRST: Final = 0.1
LONGEST: Final = 10.0
# A machine that was ready for this long starts with a clean slate.
HEALTHY: Final = 60.0


class Backoff:
    """The pauses of one machine, in seconds, with jitter so that machines that died together do not start together."""

    def __init__(self, rng: random.Random | None = None) -> None:
        self._random = rng or random.Random()
        self._deaths = 0

    def pause(self, ready_for: float) -> float:
        """The pause after a death. ``ready_for`` is for how many seconds the machine had been ready."""
        if ready_for >= HEALTHY:
            self._deaths = 0
        self._deaths += 1
        if self._deaths == 1:
            return 0.0
        longest = min(FIRST * 2.0 ** min(self._deaths - 2, 32), LONGEST)
        return longest * self._random.uniform(0.5, 1.0)
