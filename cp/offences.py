"""Records of what machines do that they must not, so few that nobody can fill the log with them.

The first offence of a kind is recorded at once. What follows within a second becomes one record with the number.
"""

from typing import Any, Final

import attrs
import trio

from retinue.cp.syslog import ERROR, Syslog
from retinue.pipes import Path

# Seconds between two records about offences of one kind.
PAUSE: Final = 1.0


@attrs.define
class _Kind:
    """One kind of offence of one machine, while a record of it is not older than PAUSE."""

    count: int = 0  # not recorded yet
    text: str = ""
    fields: dict[str, Any] = attrs.field(factory=dict)


class Offences:
    """What the machines of one system were caught at."""

    def __init__(self, syslog: Syslog, nursery: trio.Nursery) -> None:
        self._syslog = syslog
        self._nursery = nursery
        self._kinds: dict[tuple[str, str], _Kind] = {}

    def tell(self, machine: str, kind: str, text: str, **fields: Any) -> None:
        """A machine has done it (again). ``kind`` must be one of few, whatever the machine does."""
        known = self._kinds.get((machine, kind))
        if known is None:
            known = self._kinds[machine, kind] = _Kind()
            self._nursery.start_soon(self._tell_more, machine, kind, known)
            self._record(machine, text, 1, fields)
            return
        known.count += 1
        known.text, known.fields = text, fields

    def tell_violation(self, machine: str, path: Path) -> None:
        """Tell of a path that has ended, if it has because the machine at its other end broke the protocol."""
        if (rule := path.broken_rule) is not None:
            self.tell_rule(machine, path.name, rule)

    def tell_rule(self, machine: str, path: str, rule: str) -> None:
        """Tell of a path of this name that was severed because the machine broke a rule."""
        text = f"the path {path} was severed: {machine} broke the protocol: {rule}"
        self.tell(machine, path, text, rule=rule)

    async def _tell_more(self, machine: str, kind: str, known: _Kind) -> None:
        try:
            while True:
                await trio.sleep(PAUSE)
                if not known.count:
                    return
                self._tell_count(machine, known)
        finally:
            del self._kinds[machine, kind]
            if known.count:
                self._tell_count(machine, known)  # the system ends

    def _tell_count(self, machine: str, known: _Kind) -> None:
        count, known.count = known.count, 0
        again = f" ({count} times within {PAUSE:.0f} s; this is the last)" if count > 1 else ""
        self._record(machine, known.text + again, count, known.fields)

    def _record(self, machine: str, text: str, count: int, fields: dict[str, Any]) -> None:
        self._syslog.write(ERROR, text, fields={"of": machine, "count": count} | fields)
