"""What earlier runs of the system have left on the disk, on its way to the machine that keeps records.

It is stored under its own run and numbers, in their order. Where a file is spoilt, a record of that run says how many
are lost with it. That has the number of the last one of them: it is stored once, whoever is killed meanwhile. A file
that cannot be read now, for another reason, waits for another time, and so does what comes after it.
"""

import time
from collections.abc import Callable, Sequence
from typing import TYPE_CHECKING, Any, Final

import msgpack

from retinue.cp.checking import OURS
from retinue.cp.losses import gap
from retinue.cp.spill import Spill, SpillFile
from retinue.cp.tape import ENDLESS, Packed
from retinue.pipes import Path, Rejected

if TYPE_CHECKING:
    from retinue.cp.syslog import Syslog

Form = Callable[[Sequence[Packed]], dict[str, Any]]

WARNING: Final = 4


class Earlier:
    """The runs before this one. ``first_of`` takes as many chunks as make one message."""

    def __init__(self, syslog: "Syslog", first_of: Callable[[Any], list[Packed]]) -> None:
        self._syslog = syslog
        self._first_of = first_of
        self._told = False

    async def pour(self, path: Path, form: Form) -> bool:
        """Hand over what can be read and is taken; whether that is all there is."""
        spill = self._syslog.journal.room.spill
        if spill is None:
            return True
        try:
            runs = spill.earlier()
        except OSError as exc:
            self._tell(exc)
            return False
        poured = [await self._pour(run, path, form) for run in runs]
        return all(poured)

    async def _pour(self, run: Spill, path: Path, form: Form) -> bool:
        after = 0
        while True:
            batch = [*run.before_unread(self._first_of(run.packed(after)))]
            unread = min((file.first for _, file, _ in run.unread), default=ENDLESS)
            end = batch[-1].last if batch else unread - 1
            lost = [each for each in run.broken if each[1].last <= end]
            if not batch and not lost:
                break
            chunks = sorted([*batch, *(self._gap(*each) for each in lost)], key=lambda chunk: chunk.first)
            try:
                await path.call(["store", {"run": run.run, **form(chunks)}])
            except Rejected:
                return False  # it said why
            for machine, file, count in lost:
                run.broken.remove((machine, file, count))
                run.remove(machine, file)
                text = f"{count} lines of {machine} are lost that an earlier run had left on the disk: they were spoilt"
                self._syslog.write(WARNING, text, fields={"of": machine, "run": run.run})
            if batch:
                after = batch[-1].last
                run.stored(after)
        run.close()
        if why := run.unread[0][-1] if run.unread else run.unlisted:
            self._tell(why)
        return why is None

    def _gap(self, machine: str, file: SpillFile, lost: int) -> Packed:
        """A record that says so, in the place of the last one that is lost."""
        text, fields = gap(machine, "spill", lost, self._syslog.policies.of(machine))
        return Packed(machine, 0, file.last, 1, msgpack.packb([[time.time(), WARNING, OURS, text, fields]]))

    def _tell(self, why: OSError) -> None:
        if not self._told:
            self._told = True
            text = f"what an earlier run has left on the disk cannot be read now, and is read later: {why}"
            self._syslog.write(WARNING, text)
