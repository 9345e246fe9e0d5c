"""A machine's log descriptor, as far as it was read."""

import attrs

from retinue.cp import intake


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
    _trusted: bool = True

    def trust(self, few: bool) -> None:
        """Receive more at once as long as packets become few records each. One may become thousands."""
        self._trusted = self._trusted and few
        self.slots = min(self.slots * 2, intake.SLOTS) if self._trusted else 1
