"""What earlier runs of the system have left on the disk, on its way to the machine that keeps records.

It is stored under its own run and numbers, in their order. Where a file is spoilt, a record of that run says how many
are lost with it. That has the number of the last one of them: it is stored once, whoever is killed meanwhile. A file
that cannot be read now, for another reason, waits for another time, and so does what comes after it, until the file is
set aside (:mod:`retinue.cp.spill`). What was set aside, in this run as well, is stored when it can be read.
"""

import os
import time
from collections.abc import Callable, Sequence
from typing import TYPE_CHECKING, Any, Final

import msgpack

from retinue.cp.checking import OURS
from retinue.cp.losses import gap
from retinue.cp.spill import Spill, SpillFile
from retinue.cp.tape import Packed
from retinue.pipes import Path, Rejected

if TYPE_CHECKING:
    from retinue.cp.syslog import Syslog

Form = Callable[[Sequence[Packed]], dict[str, Any]]

WARNING: Final = 4
INFO: Final = 6


class Earlier:
    """The runs before this one. ``first_of`` takes as many chunks as make one message."""

    def __init__(self, syslog: "Syslog", first_of: Callable[[Any], list[Packed]]) -> None:
        self._syslog = syslog
        self._first_of = first_of
        self._told: set[str] = set()  # of what it was said that it cannot be read

    async def pour(self, path: Path, form: Form) -> bool:
        """Hand over what can be read and is taken; whether that is all there is."""
        spill = self._syslog.journal.room.spill
        if spill is None:
            return True
        try:
            runs = spill.earlier()
        except OSError as exc:
            self._tell(None, exc)
            return False
        poured = [await self._pour(run, path, form) for run in runs]
        return all(poured)

    async def _pour(self, run: Spill, path: Path, form: Form) -> bool:
        came: dict[str, int] = {}
        try:
            return await self._pour_run(run, path, form, came)
        finally:
            for machine, count in came.items() if run.is_aside else ():
                text = f"{count} lines of {machine} that were set aside are stored now, in the place that was theirs"
                self._syslog.write(INFO, text, fields={"of": machine, "run": run.run})

    async def _pour_run(self, run: Spill, path: Path, form: Form, came: dict[str, int]) -> bool:
        after = 0
        aside = False
        while True:
            batch = [*run.before_unread(self._first_of(run.packed(after)))]
            end = batch[-1].last if batch else run.first_unread - 1
            lost = [each for each in run.broken if each[1].last <= end]
            if not batch and not lost:
                if not self.set_aside(run, after):
                    break
                aside = True
                continue
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
            for chunk in batch:
                came[chunk.machine] = came.get(chunk.machine, 0) + chunk.records
        run.close()
        if why := run.trouble:
            self._tell(run, why)
        return why is None and not aside

    def set_aside(self, run: Spill, after: int) -> bool:
        """Let what cannot be read for too long hold up nothing else, and say so; whether there was such a thing."""
        found = run.set_aside(after)
        for each in found:
            self._told.add(run.run)
            where = f"{each.path}" + (f" and {each.files - 1} more" if each.files > 1 else "")
            text = (
                f"{each.records} lines of {each.machine} are set aside, and stored when user {os.geteuid()} can read "
                f"{where}: {each.why.strerror}"
            )
            fields = {"of": each.machine, "run": run.run, "waiting": each.records, "file": str(each.path)}
            self._syslog.write(WARNING, text, fields=fields)
            if run.run == self._syslog.run:
                text = f"-- {each.records} lines from before are missing until they can be read on the disk --"
                self._syslog.write(WARNING, text, machine=each.machine, fields={"waiting": each.records})
        return bool(found)

    def _gap(self, machine: str, file: SpillFile, lost: int) -> Packed:
        """A record that says so, in the place of the last one that is lost."""
        text, fields = gap(machine, "spill", lost, self._syslog.policies.of(machine))
        return Packed(machine, 0, file.last, 1, msgpack.packb([[time.time(), WARNING, OURS, text, fields]]))

    def _tell(self, run: Spill | None, why: OSError) -> None:
        """Say so once; of what was set aside once for each run, by whom it was set aside or who finds it."""
        about = run.run if run is not None and run.is_aside else ""
        if about not in self._told:
            self._told.add(about)
            what = "what was set aside" if about else "what an earlier run has left"
            self._syslog.write(WARNING, f"{what} on the disk cannot be read now, and is read later: {why}")
