"""What machines take between two looks of the pager: by so much it aims below the limit."""

from collections import deque
from typing import Final

from retinue.cp.pager.policy import HIGH

__all__ = ["MOST_AHEAD", "Growth"]

SECONDS: Final = 10.0
"""For which a growth is remembered."""

USUAL: Final = 0.95
"""The part of the looks at which all machines together shall be within the limit, and SLACK."""

SLACK: Final = 0.02
"""The part of the limit that they may have beyond it."""

MEANWHILE: Final = 1.6
"""Times that growth is kept free: what is seen too late is there until it is out, and machines grow meanwhile."""

MOST_AHEAD: Final = 0.4
"""The part of the limit that is kept free, at most, for what machines take until pages are put out."""


class Growth:
    """Of one system."""

    def __init__(self) -> None:
        self._seen: deque[tuple[float, int]] = deque()

    def note(self, now: float, grown: int) -> None:
        """All machines together have grown by so many bytes since pages were taken the last time, or have not."""
        self._seen.append((now, max(grown, 0)))
        while self._seen[0][0] < now - SECONDS:
            self._seen.popleft()

    def aim(self, limit: int) -> int:
        """The bytes from a part of which on (HIGH) pages are taken, so that those grown meanwhile fit the limit."""
        if len(self._seen) < 2:  # once is not what they usually do
            return limit
        grown = sorted(each for _, each in self._seen)
        usual = grown[int((len(grown) - 1) * USUAL)]
        aim = int((limit * (1 + SLACK) - usual * MEANWHILE) / HIGH)
        return max(min(aim, limit), int(limit * (1 - MOST_AHEAD)))
