"""A machine's log descriptor, as far as it was read."""

import attrs

from retinue.cp import intake
from retinue.cp.log_policy import Allowance


@attrs.define(eq=False)
class Source:
    """How far one machine's descriptor was read: the last number seen, and a console line without its end."""

    index: int
    machine: str
    generation: int
    number: int = 0
    line: str = ""
    reading: bool = False
    slots: int = 1
    """Packets that are received at once."""
    place: int = 0  # bytes of the line << 1 | in which of its two places
    saved: str = ""  # the line that is there
    over: int = 0
    """How many records more, or fewer, are lost by its rate than the journal says; part of the next commit."""
    allowance: Allowance | None = None
    """What it may still write, if there is a rate."""
    held: bool = False
    """It is not read, because it has to wait: whoever writes into it waits, too."""
    free: bool = False
    """It has to wait no more: its process has ended, or is about to."""
    came: int = 0
    """Packets that were read since its descriptor was left alone for a while, or records if these are more."""
    pause: float = 0.0
    """Seconds for which it is left alone after it was read empty; 0 before that was found out."""
    floods: bool = False
    """It writes a lot, and is read in turns with others that do (:mod:`retinue.cp.turns`)."""
    _trusted: bool = True

    def trust(self, few: bool) -> None:
        """Receive more at once as long as packets become few records each. One may become thousands."""
        self._trusted = self._trusted and few
        self.slots = min(self.slots * 2, intake.SLOTS) if self._trusted else 1
