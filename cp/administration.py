"""What an operator may change while the system runs: one machine, or all that a topology file declares otherwise."""

import contextlib
import os
import pathlib
from collections.abc import Collection, Iterator, Mapping
from typing import TYPE_CHECKING, Any, Final

import attrs
import trio

from retinue.cp import directory, replacement
from retinue.cp.changes import Change, changes, with_settings
from retinue.cp.declaration import Declaration, Origin, assembled, mixed
from retinue.cp.directory import Directory, DirectoryErrors, MachineEntry
from retinue.cp.directory.secrets import read_values
from retinue.cp.host.interface import SpareFailed, SpareReady
from retinue.cp.life import Life
from retinue.cp.states import FINAL
from retinue.cp.syslog import ERROR, NOTICE
from retinue.pipes import PathError, Rejected

if TYPE_CHECKING:
    from retinue.cp.system import ControlProgram

# Seconds the newly installed code may take to load.
LOAD_TIME: Final = 30.0
# Keys of a machine that the host must be told of.
_BY_HOST: Final = ("storage", "share", "cpu")
# Why a machine is told as failed that has its new definition; other reasons are the codes of refusals.
_WAITS: Final = "waits"


class Administration:
    """Changes to one running system, one after the other."""

    def __init__(self, cp: "ControlProgram", declared: Declaration) -> None:
        self._cp = cp
        self._changing = trio.Lock()
        self._spare: SpareReady | SpareFailed | None = None
        self._spare_told = trio.Event()
        self.settings = {machine: dict(keys) for machine, keys in declared.settings.items()}
        """What ``set`` has changed, by machine and key, as a topology file would say it."""
        self.held = dict(declared.held)
        """Machines that are not what the file says."""
        self.applying = declared.applying
        self._failed: dict[str, str] = {}  # what has not become what it should be just now, and the reason

    # -- one machine ---------------------------------------------------------------------------------------------------

    def _check_running(self) -> None:
        if self._cp.stopping:
            raise Rejected("stopping", "the system is stopping")

    def _named(self, name: str) -> list[Life]:
        """The machine of that name, or all its instances."""
        found = [life for life in self._cp.lives.values() if name in (life.name, life.base)]
        if not found:
            raise Rejected("unknown-machine", f"there is no machine {name[:64]!r}", list(self._cp.lives))
        return found

    async def start(self, name: str) -> None:
        """Start a machine that does not run; returns when it is ready. Rejected ``not-ready`` when it will not be."""
        self._check_running()
        for life in self._named(name):
            self._cp.pager.admission.forgive(life.name)
            if life.current is None and (why := self._cp.pager.why_held(life)):
                raise Rejected("no-room", f"{life.name} is not started: {why}")
        for life in self._named(name):
            self._cp.supervision.renew(life)
            life.ask_to_start()
        for life in self._named(name):
            if not await life.wait_usable():
                raise Rejected("not-ready", f"{life.name} is {life.state.value}: {life.cause}")

    async def stop(self, name: str) -> None:
        """Stop a machine in order, until it is started again; returns when it has ended."""
        for life in self._named(name):
            life.held = True
            life.ask_to_stop()
        for life in self._named(name):
            await life.wait_for(lambda state: state in FINAL)

    async def restart(self, name: str) -> None:
        """Stop and start it, without a message lost; returns when it is ready.

        Of several instances one after the other: a refusal tells of those that have been restarted.
        """
        async with self._changing:
            self._check_running()
            restarted: list[str] = []
            with _telling("restarted", restarted):
                for life in self._named(name):
                    self._renew(life)
                    await replacement.restart(life, self._cp.pager)
                    restarted.append(life.name)

    async def replace(self, name: str) -> dict[str, Any]:
        """Put a successor with the present code in its place. Rejected ``not-replaced`` when it does not work.

        Of several instances one after the other: a refusal tells of those that have been replaced.
        """
        async with self._changing:
            self._check_running()
            replaced: dict[str, Any] = {}
            with _telling("replaced", replaced):
                for life in self._named(name):
                    before = life.generation
                    overlap = await self._replace(life, life.entry)
                    replaced[life.name] = {"from": before, "to": life.generation, "overlap": overlap}
            return {"replaced": replaced}

    async def _replace(self, life: Life, entry: MachineEntry) -> bool:
        overlap = entry.replace == "overlap" and self._cp.pager.has_room(life)
        if entry.replace == "overlap" and not overlap and life.current is not None:
            text = f"there is no room for two of {life.name}: its successor starts when it has ended"
            self._cp.syslog.write(NOTICE, text)
        self._renew(life)
        await replacement.replace(life, entry, self._cp.pager, overlap=overlap)
        return overlap

    def _renew(self, life: Life) -> None:
        """An operator wants it to run: what it has done before does not count any more."""
        self._cp.supervision.renew(life)
        self._cp.pager.admission.forgive(life.name)

    # -- settings ------------------------------------------------------------------------------------------------------

    async def set(self, name: str, settings: Mapping[str, Any]) -> dict[str, Any]:
        """Change settings of a machine, as a topology file would say them, until a file is applied or the system ends.

        Rejected ``bad-settings`` when they are no settings, ``impossible`` when they need another process.
        """
        async with self._changing:
            lives = self._named(name)
            base = lives[0].base
            wanted = with_settings(self.settings.get(base, {}), settings)
            after = self._load(self._cp.topology.path, {**self.settings, base: wanted}, text=self._cp.topology.text)
            held = self.held | {
                life.name: attrs.evolve(origin, settings={**origin.settings, base: wanted})
                for life in lives
                if (origin := self.held.get(life.name)) is not None
            }
            after = self._load_held(after, held)
            found = self._changes(after)
            if unfit := [change for change in found if change.kind != "set"]:
                why = "; ".join(unfit[0].why)
                cure = f"change the topology file and say: retinue apply {self._cp.topology.path.name}"
                raise Rejected("impossible", f"{why} cannot be set while {base} runs ({cure})")
            before, kept = self._cp.topology, (dict(self.settings), self.held)
            self.settings[base], self.held = wanted, held
            self._declare(after, *kept)
            entries = after.entries
            done = [await self._change(change, entries) for change in found]
            if done and not any(self._is_so(change) for change in found):
                self.settings, self.held = kept
                self._declare(before, *kept)
            return {"changed": done}

    async def _set(self, life: Life, entry: MachineEntry, *, reload: bool) -> bool:
        """Take over what needs no other process; False: that cannot be, and nothing is changed.

        The limits come first: they can be put back, and what a program has done with a config may not.
        """
        if not self._limit(life, life.entry, entry):
            return False
        taken = False
        try:
            taken = not reload or await self._reload(life, entry)
        finally:
            if not taken:
                self._limit(life, entry, life.entry)
        if taken:
            life.set(entry)
        return taken

    def _limit(self, life: Life, before: MachineEntry, after: MachineEntry) -> bool:
        """Tell the host what is different for it; False: it cannot, and nothing is changed."""
        told = {key: getattr(after, key) for key in _BY_HOST if getattr(after, key) != getattr(before, key)}
        largest = max(each.share for each in self._cp.topology.machines)
        why = (
            self._cp.host.set_limits(life.name, life.generation, **told, largest_share=largest)
            if told and life.pid
            else ""
        )
        if why:
            text = f"{', '.join(told)} of {life.name} cannot be changed in place: {why}"
            self._cp.syslog.write(NOTICE, text, fields={"of": life.name})
        return not why

    # -- everything ----------------------------------------------------------------------------------------------------

    def plan(self, path: str) -> tuple[Change, ...]:
        """What :meth:`apply` would change. Rejected ``bad-topology`` with every mistake in the file."""
        return self._changes(self._load(pathlib.Path(path), {}))

    def _changes(self, after: Directory) -> tuple[Change, ...]:
        hide = self._cp.secrets.hide
        found = changes(self._cp.topology, after)
        return tuple(attrs.evolve(change, why=tuple(map(hide, change.why))) for change in found)

    def _load(
        self, path: pathlib.Path, settings: Mapping[str, Mapping[str, Any]], text: str | None = None
    ) -> Directory:
        try:
            return directory.load(path, settings=settings, text=text)
        except DirectoryErrors as exc:
            raise Rejected("bad-topology", str(exc), [str(error) for error in exc.errors]) from None

    async def apply(self, path: str, variables: Mapping[str, bytes]) -> dict[str, Any]:
        """Make the running system what a topology file declares; machines that it declares as before are not touched.

        Rejected ``impossible`` when a change needs the system to be started anew: then nothing is changed. A change
        that fails is undone, and told as ``failed``; those that do not depend on it go on. What there was no room for
        in real storage is tried once more when the machines have been removed that are to be.
        """
        async with self._changing:
            self._check_running()
            after = self._load(pathlib.Path(path), {})
            found = self._changes(after)
            if impossible := [change for change in found if change.kind == "impossible"]:
                texts = ["; ".join(change.why) for change in impossible]
                raise Rejected("impossible", f"{texts[0]}: take the system down and start it with the new file", texts)
            try:
                values = read_values(after, variables, str(after.path))
            except DirectoryErrors as exc:
                raise Rejected("bad-topology", str(exc), [str(error) for error in exc.errors]) from None
            present, kept = self._cp.topology, (self.settings, self.held)
            origin = Origin(str(present.path), present.text, self.settings)
            entries = present.entries
            held = {each.machine: self.held.get(each.machine, origin) for each in found if each.machine in entries}
            # Those that are not changed yet may need what they had.
            old = self._cp.secrets.values
            both = {name: {**old.get(name, {}), **values.get(name, {})} for name in old.keys() | values.keys()}
            self.settings, self.held, self.applying = {}, held, True
            self._cp.secrets.declare(both)
            self._declare(mixed(after, {name: entries[name] for name in held}), *kept)
            return await self._carry_on(after, found)

    async def finish(self) -> None:
        """Go on with what an earlier control program was about to :meth:`apply`."""
        async with self._changing:
            file = self._cp.topology.path.name
            self._cp.syslog.write(NOTICE, f"{file} was being applied, and still is")
            try:
                after = self._load(self._cp.topology.path, self.settings, text=self._cp.topology.text)
                done = (await self._carry_on(after, self._changes(after)))["changed"]
            except (Rejected, OSError) as exc:
                self._cp.syslog.write(ERROR, f"{file} cannot be applied: {exc}")
                return
            for each in done:
                if each["failed"]:
                    self._cp.syslog.write(ERROR, f"{each['machine']} cannot be changed: {each['failed']}")

    async def _carry_on(self, after: Directory, found: tuple[Change, ...]) -> dict[str, Any]:
        """Change one machine after the other; whatever has been changed is so for the next control program, too."""
        entries, wanted = self._cp.topology.entries, after.entries
        self._failed = {}

        async def make(change: Change) -> dict[str, Any]:
            about = await self._change(change, wanted)
            if change.machine in self.held and self._is_so(change):
                self.held = {name: origin for name, origin in self.held.items() if name != change.machine}
                self._cp.declare(mixed(after, {name: entries[name] for name in self.held}))
            return about

        try:
            done = [await make(change) for change in found]
            if any(each["how"] == "remove" for each in done) and {"no-room", _WAITS} & set(self._failed.values()):
                with contextlib.suppress(OSError):
                    await self._cp.pager.look()
                again = {name for name, why in self._failed.items() if why in ("no-room", _WAITS, "in-use")}
                done = [
                    await make(change) if change.machine in again else about
                    for change, about in zip(found, done, strict=True)
                ]
        finally:
            self.applying = False
            self._cp.declare(mixed(after, {name: entries[name] for name in self.held}))
        self._tell_instances()
        return {"changed": done}

    def _tell_instances(self) -> None:
        """Whoever spreads calls over the machines behind an edge learns how many there are."""
        for life in self._cp.lives.values():
            if life.current is not None and life.ready:
                self._cp.nursery.start_soon(life.current.tell_instances, self._cp.outfit.instances)

    def _declare(self, topology: Directory, settings: dict[str, dict[str, Any]], held: dict[str, Origin]) -> None:
        """From now on this is what the system should be. Rejected when it cannot be, and is with these as it was."""
        try:
            self._cp.declare(topology)
        except OSError as exc:
            self.settings, self.held, self.applying = settings, held, False
            raise Rejected("failed", f"the disk {exc.filename} cannot be made: {exc.strerror}") from None

    def _load_held(self, topology: Directory, held: Mapping[str, Origin]) -> Directory:
        try:
            return assembled(topology, held)
        except DirectoryErrors as exc:
            raise Rejected("bad-topology", str(exc), [str(error) for error in exc.errors]) from None

    async def _change(self, change: Change, entries: Mapping[str, MachineEntry]) -> dict[str, Any]:
        about: dict[str, Any] = {**change.as_dict(), "failed": None, "how": None}
        self._failed.pop(change.machine, None)
        try:
            about["how"] = await self._carry_out(change, entries)
        except Rejected as exc:
            about["failed"] = exc.text
            self._failed[change.machine] = _WAITS if isinstance(exc, replacement.Waits) else exc.code
        except PathError as exc:
            about["failed"] = self._failed[change.machine] = str(exc)
        except OSError as exc:
            about["failed"] = self._failed[change.machine] = f"{exc.filename}: {exc.strerror}"
        return about

    def _is_so(self, change: Change) -> bool:
        """Whether a machine is what it should be after a change, but for a process if it waits for room."""
        return self._failed.get(change.machine, _WAITS) == _WAITS

    async def _carry_out(self, change: Change, entries: Mapping[str, MachineEntry]) -> str:
        """What was done in the end: not everything that should change in place can."""
        how = change.kind
        if change.kind == "system" or not change.machine:
            return how
        if change.kind == "add":
            life = self._cp.lives.get(change.machine) or self._cp.live(entries[change.machine])
            if life.entry.start != "on-demand":
                await replacement.come_up(life, None, self._cp.pager)
            return how
        for life in self._named(change.machine):
            if change.kind == "remove":
                if users := [name for name in self._failed if self._needs(name, life)]:
                    raise Rejected("in-use", f"{', '.join(users)} could not be changed, and needs it")
                life.ask_to_stop()
                await life.wait_gone()
                self._cp.remove(life)
                continue
            entry = entries[life.name]
            if change.kind == "replace" or not await self._set(life, entry, reload=change.kind == "reload"):
                await self._replace(life, entry)
                how = "replace"
        return how

    def _needs(self, name: str, life: Life) -> bool:
        """Whether a machine that has kept its definition refers to another one."""
        user = self._cp.lives.get(name)
        if user is None or user is life:
            return False
        return life.base in {edge.to for edge in user.entry.uses} | {link.machine for link in user.entry.links}

    async def _reload(self, life: Life, entry: MachineEntry) -> bool:
        """Whether a machine that runs has taken its new config. Rejected when it is wrong."""
        if not life.ready or life.current is None:
            return False
        try:
            await life.current.ask("reload", {"config": entry.config})
        except Rejected as exc:
            if exc.code == "bad-config" and type(exc.detail) is list:
                misfits = [str(self._cp.misfit(entry, mistake)) for mistake in exc.detail]
                raise Rejected("bad-config", "\n".join(misfits)) from None
            return False
        except PathError:
            return False
        return True

    # -- the control program itself ------------------------------------------------------------------------------------

    def spare(self, event: SpareReady | SpareFailed) -> None:
        """The host tells of the control program that is to go on."""
        self._spare = event
        self._spare_told.set()

    async def upgrade(self) -> None:
        """Hand over to a control program with the code that is installed now; no machine notices.

        Rejected ``not-upgraded`` when it cannot be loaded: then this one stays.
        """
        async with self._changing:
            self._spare_told = trio.Event()
            self._cp.host.spare()
            with trio.move_on_after(LOAD_TIME) as limit:
                await self._spare_told.wait()
            if limit.cancelled_caught:
                raise Rejected("not-upgraded", f"the new code did not load within {LOAD_TIME:.0f} s")
            if isinstance(self._spare, SpareFailed):
                raise Rejected("not-upgraded", f"the new code cannot be loaded: {self._spare.text}")
            await self._cp.certificates.settle()
            self._cp.syslog.write(NOTICE, f"control program {os.getpid()} hands over to newly installed code")
            self._cp.switchboard.leave()
            self._cp.host.hand_over()


@contextlib.contextmanager
def _telling(what: str, done: Collection[str]) -> Iterator[None]:
    """A refusal tells what has been done before it."""
    try:
        yield
    except Rejected as exc:
        if not done:
            raise
        raise Rejected(exc.code, f"{exc.text} ({what} before it: {', '.join(done)})", {what: done}) from None
