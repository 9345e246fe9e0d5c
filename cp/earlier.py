"""What earlier runs of the system have left on the disk, on its way to the machine that keeps records.

It is stored under its own run and numbers, in their order. Where a file is spoilt, a record of that run says how many
are lost with it. That has the number of the last one of them: it is stored once, whoever is killed meanwhile. A file
that cannot be read now, for another reason, waits for another time, and so does what comes after it, until the file is
set aside (:mod:`retinue.cp.spill`). What was set aside, in this run as well, is stored when it can be read; what was
seen there and is missing in two looks running is lost: in one it may be somewhere else, to be repaired. Nobody counts
it when the control program that saw it was killed.
"""

import os
import time
from collections.abc import Callable, Mapping, Sequence
from typing import TYPE_CHECKING, Any, Final

import attrs
import msgpack

from retinue.cp.checking import OURS
from retinue.cp.losses import gap
from retinue.cp.spill import SetAside, Spill, SpillFile
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
        # What was set aside, as far as it was seen, by run, machine and first number; which of it the last look has
        # missed; and what of it was removed.
        self._aside: dict[tuple[str, str, int], SpillFile] = {}
        self._missing: set[tuple[str, str, int]] = set()
        self._removed: list[tuple[str, str, SpillFile]] = []

    @property
    def aside(self) -> list[str]:
        """Machines of which something was set aside, in any run, as far as it was seen."""
        return [*dict.fromkeys(machine for _, machine, _ in self._aside)]

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
        self._look(runs)
        if not await self._pour_removed(path, form):
            return False
        poured = [await self._pour(run, path, form) for run in runs]
        return all(poured) and not self._missing

    def _look(self, runs: Sequence[Spill]) -> None:
        """Note what was set aside is there, and what is not there any more."""
        there: dict[tuple[str, str, int], SpillFile] = {}
        unlisted = set()
        for run in runs:
            if run.is_aside:
                there |= {(run.run, name, file.first): file for name in run.machines for file in run.files(name)}
                unlisted |= {run.run} if run.unlisted else set()
        self._missing -= there.keys()
        missing = {key for key in self._aside.keys() - there.keys() if key[0] not in unlisted}
        for key in sorted(missing & self._missing):
            self._removed.append((*key[:2], self._aside.pop(key)))
        self._missing = (self._missing | missing) & self._aside.keys()
        # One that is back before its gap could be stored is not lost.
        self._removed = [each for each in self._removed if (*each[:2], each[2].first) not in there]
        self._note(there)

    def _note(self, there: Mapping[tuple[str, str, int], SpillFile]) -> None:
        """These are set aside. What was told in one is known of who had written it, and not of who finds it."""
        for key, file in there.items():
            seen = self._aside.get(key, file)
            self._aside[key] = attrs.evolve(file, told=max(file.told, seen.told))

    async def _pour_removed(self, path: Path, form: Form) -> bool:
        while self._removed:
            run, machine, file = self._removed[0]
            lost = _with_told(file, file.most())
            try:
                await path.call(["store", {"run": run, **form([self._gap(machine, file, lost)])}])
            except Rejected:
                return False
            self._removed.pop(0)
            text = f"{lost} lines of {machine} are lost that were set aside: somebody has removed {file.name}"
            self._syslog.write(WARNING, text, fields={"of": machine, "run": run})
        return True

    async def _pour(self, run: Spill, path: Path, form: Form) -> bool:
        came: dict[str, int] = {}
        before = [(machine, file) for machine in run.machines for file in run.files(machine)]
        try:
            return await self._pour_run(run, path, form, came)
        finally:
            if run.is_aside:
                self._came(run, before, came)

    def _came(self, run: Spill, before: Sequence[tuple[str, SpillFile]], came: dict[str, int]) -> None:
        for machine, file in before:
            if file not in run.files(machine):
                self._aside.pop((run.run, machine, file.first), None)
        for machine, count in came.items():
            text = f"{count} lines of {machine} that were set aside are stored now, in the place that was theirs, "
            text += "as far as so old ones are kept"
            self._syslog.write(INFO, text, fields={"of": machine, "run": run.run})

    async def _pour_run(self, run: Spill, path: Path, form: Form, came: dict[str, int]) -> bool:
        after = 0
        aside = False
        while True:
            batch = [*run.before_unread(self._first_of(run.packed(after)))]
            end = batch[-1].last if batch else run.first_unread - 1
            lost = [each for each in run.broken if each[1].last <= end]
            gaps = [(machine, file, self._lost(run, machine, file, count)) for machine, file, count in lost]
            if not batch and not lost:
                if not self.set_aside(run, after):
                    break
                aside = True
                continue
            chunks = sorted([*batch, *(self._gap(*each) for each in gaps)], key=lambda chunk: chunk.first)
            try:
                await path.call(["store", {"run": run.run, **form(chunks)}])
            except Rejected:
                return False  # it said why
            for each in lost:
                run.broken.remove(each)
            for machine, file, count in gaps:
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
            if run.is_aside and run.run == self._syslog.run and run.run not in self._told:
                # Who has set it aside was killed, and perhaps before it could say so.
                self._say_aside(run.run, run.passed)
            self._tell(run, why)
        return why is None and not aside

    def set_aside(self, run: Spill, after: int) -> bool:
        """Let what cannot be read for too long hold up nothing else, and say so; whether there was such a thing."""
        found = run.set_aside(after)
        self._say_aside(run.run, found)
        return bool(found)

    def _say_aside(self, run: str, found: Sequence[SetAside]) -> None:
        for each in found:
            self._told.add(run)
            self._note({(run, each.machine, file.first): file for file in each.files})
            where = f"{each.path}" + (f" and {len(each.files) - 1} more" if len(each.files) > 1 else "")
            text = (
                f"{each.records} lines of {each.machine} are set aside, and stored when user {os.geteuid()} can read "
                f"{where}: {each.why.strerror}"
            )
            fields = {"of": each.machine, "run": run, "waiting": each.records, "file": str(each.path)}
            self._syslog.write(WARNING, text, fields=fields)
            if run == self._syslog.run:
                text = f"-- {each.records} lines from before are missing until they can be read on the disk --"
                self._syslog.write(WARNING, text, machine=each.machine, fields={"waiting": each.records})

    def _lost(self, run: Spill, machine: str, file: SpillFile, lost: int) -> int:
        """How many are lost with a spoilt file."""
        return _with_told(self._aside.get((run.run, machine, file.first), file), lost) if run.is_aside else lost

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


def _with_told(file: SpillFile, lost: int) -> int:
    """With what was told in a file; if some of it is stored, so may that be."""
    return lost + file.told if lost == file.records and not file.stored else lost
