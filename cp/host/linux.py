"""The host as the CP sees it, on Linux: the trio face of the link to the nucleus."""

import math
import os
import signal
import socket
import time
from collections.abc import AsyncIterator, Mapping, Sequence
from contextlib import asynccontextmanager, suppress
from typing import Any, NoReturn

import attrs
import trio

from retinue.cp.host import limits
from retinue.cp.host.cgroups import Group, Groups
from retinue.cp.host.errors import HostLost, LinkError, SavedSystemFailed, SpawnFailed
from retinue.cp.host.figures import Figures
from retinue.cp.host.interface import (
    Birth,
    Born,
    Exit,
    HostEvent,
    Limit,
    LimitFailed,
    Resident,
    Restored,
    SavedSystemDied,
    SealLayer,
    SpareFailed,
    SpareReady,
    Storage,
    Terminate,
)
from retinue.cp.host.link import CROWDED_SECONDS, NOTE_MAX, Link, close_all, descriptor_list, field, packed
from retinue.cp.host.nucleus import SPAWNS_AT_ONCE
from retinue.cp.host.paging import Paging, pressure
from retinue.cp.host.takeover import wait_restored

__all__ = ["LinuxHost", "open_host"]

# Seconds a control program waits for machines that the one before it has asked for and that are not born yet.
BIRTH_SECONDS = 2.0

# Seconds after which a group whose last process was not seen to end is looked at again: the dying are not listed.
GROUP_AGAIN = 0.05

# Seconds a machine that was just born may take until it is in its groups, before it is moved there.
GROUP_ENTERS = 0.002


@attrs.define
class _Spawn:
    """One that has no answer yet."""

    group: Group | None
    answered: trio.Event = attrs.field(factory=trio.Event)
    born: Born | None = None
    error: SpawnFailed | None = None
    abandoned: bool = False


class LinuxHost:
    """Implements :class:`retinue.cp.host.interface.Host`. Made by :func:`open_host`."""

    def __init__(self, link: Link, restored: Restored, groups: Groups | None = None) -> None:
        self._link = link
        self._restored = restored
        self._groups = groups
        self._group_of = {} if groups is None or restored.first else groups.adopt()
        self._pids = {key: resident.pid for key, resident in restored.residents.items() if resident.pid > 0}
        # Those whose machine has ended, but not yet every process of it. As many as there were machines, at most.
        self._remains, self._remains_out = trio.open_memory_channel[Group](math.inf)
        self._shares, self._why_shares = limits.shares(groups)
        self._figures = Figures(self._pid_of)
        self._paging = Paging(self._pid_of, self._group_of.get, groups, self._figures)
        self._spawns: dict[tuple[str, int], _Spawn] = {}
        # Given back by the answer, not by who waits for it: the nucleus counts answers, too.
        self._places = trio.Semaphore(SPAWNS_AT_ONCE, max_value=SPAWNS_AT_ONCE)
        self._posted = trio.Event()
        self._layers: list[SealLayer] = []
        self._started = trio.Event()
        self._broken: SavedSystemFailed | None = None
        self._lost = False
        self._over = False
        # Asked for by the one before, and not born yet.
        unborn = [key for key, resident in restored.residents.items() if resident.pid < 0]
        self._unborn = {key: _Spawn(self._group_of.get(key)) for key in unborn}
        self._spawns |= self._unborn
        for _ in unborn:
            self._places.acquire_nowait()
        # Without limit, for the reader must not wait: the answer to a spawn may be behind an exit whose taker waits for
        # that answer. They never hold more exits than there were machines, nor more events than signals.
        self._exits, self._exits_out = trio.open_memory_channel[Exit](math.inf)
        self._events, self._events_out = trio.open_memory_channel[HostEvent](math.inf)

    @property
    def restored(self) -> Restored:
        """See Host.restored."""
        return self._restored

    @property
    def exits(self) -> trio.MemoryReceiveChannel[Exit]:
        """See Host.exits."""
        return self._exits_out

    @property
    def events(self) -> trio.MemoryReceiveChannel[HostEvent]:
        """See Host.events."""
        return self._events_out

    async def spawn(self, birth: Birth, descriptors: Sequence[int]) -> Born:
        """See Host.spawn."""
        await self._places.acquire()
        spawn = _Spawn(self._make_group(birth))
        if spawn.group is not None:
            birth = attrs.evolve(birth, groups=spawn.group.doors)
        try:
            self._post({"verb": "spawn", "birth": attrs.asdict(birth)}, descriptor_list(descriptors))
        except BaseException:
            self._places.release()
            self._leave_group((birth.machine, birth.generation))
            raise
        self._spawns[birth.machine, birth.generation] = spawn
        try:
            await spawn.answered.wait()
            if spawn.born is not None:
                await self._place(birth, spawn.born.pid, spawn.group)
        except BaseException:
            spawn.abandoned = True
            if spawn.born is not None:
                self.signal(birth.machine, birth.generation, signal.SIGKILL)
            raise
        if spawn.error is not None:
            raise spawn.error
        if spawn.born is None:
            raise HostLost
        return spawn.born

    def signal(self, machine: str, generation: int, number: int) -> None:
        """See Host.signal."""
        with suppress(HostLost):
            self._post({"verb": "signal", "machine": machine, "generation": generation, "number": int(number)})

    def keep(self, key: str, note: Mapping[str, Any], descriptors: Sequence[int] = ()) -> None:
        """See Host.keep."""
        packed({"key": key, "note": note}, NOTE_MAX)
        with suppress(HostLost):
            self._post({"verb": "keep", "key": key, "note": note}, descriptor_list(descriptors))

    def drop(self, key: str) -> None:
        """See Host.drop."""
        with suppress(HostLost):
            self._post({"verb": "drop", "key": key})

    def buried(self, machine: str, generation: int) -> None:
        """See Host.buried."""
        with suppress(HostLost):
            self._post({"verb": "buried", "machine": machine, "generation": generation})

    def spare(self) -> None:
        """See Host.spare."""
        with suppress(HostLost):
            self._post({"verb": "spare"})

    def hand_over(self) -> None:
        """See Host.hand_over."""
        with suppress(HostLost):
            self._post({"verb": "hand-over"})

    def set_limits(
        self,
        machine: str,
        generation: int,
        *,
        storage: int | None = None,
        share: int | None = None,
        cpu: float | None = None,
        largest_share: int = 0,
    ) -> str:
        """See Host.set_limits."""
        if not (pid := self.pid(machine, generation)):
            return "it does not run"
        changed = limits.Change(storage, share, cpu, largest_share)
        return limits.change(pid, self._group_of.get((machine, generation)), self._shares, changed)

    def pid(self, machine: str, generation: int) -> int:
        """See Host.pid."""
        return self._pids.get((machine, generation), 0)

    def _pid_of(self, key: tuple[str, int]) -> int:
        return self._pids.get(key, 0)

    def cpu_time(self, machine: str, generation: int) -> float | None:
        """See Host.cpu_time. Some 1 us, in nanoseconds."""
        pid = self.pid(machine, generation)
        try:
            # The processor-time clock of another process (clock_getcpuclockid(3)).
            return time.clock_gettime((~pid << 3) | 2) if pid else None
        except OSError:
            return None

    def measure(self, machines: Sequence[tuple[str, int]]) -> dict[tuple[str, int], Storage]:
        """See Host.measure."""
        return self._figures.measure(machines)

    def working_set(self, machine: str, generation: int) -> int | None:
        """See Host.working_set."""
        return self._figures.working_set((machine, generation))

    def page_out(self, machine: str, generation: int, most: int | None = None) -> int:
        """See Host.page_out."""
        return self._paging.page_out((machine, generation), most)

    def own_ranges(self, machine: str, generation: int, most: int | None = None) -> list[tuple[int, int]]:
        """See Host.own_ranges."""
        return self._paging.own_ranges((machine, generation), most)

    def paging_report(self) -> Limit:
        """See Host.paging_report."""
        return self._paging.report()

    def open_volume(self, path: str, size: int) -> str:
        """See Host.open_volume."""
        return self._paging.open_volume(path, size, adopt=not self._restored.first)

    def pressure(self) -> float | None:
        """See Host.pressure."""
        return pressure()

    def end(self, how: str, text: str, exit_code: int) -> None:
        """See Host.end."""
        self._over = True
        with suppress(HostLost):
            self._post({"verb": "end", "how": how, "text": text, "exit_code": exit_code})

    def close_volume(self) -> None:
        """The system ends: its paging volume goes with it, as soon as its machines have."""
        self._paging.close_volume()

    @property
    def over(self) -> bool:
        """The system ends. Else its machines live on when this process does not."""
        return self._over or self._lost or self._broken is not None

    def seal_report(self) -> list[SealLayer]:
        """See Host.seal_report."""
        return list(self._layers)

    def limits_report(self) -> list[Limit]:
        """See Host.limits_report."""
        return limits.report(self._groups, self._shares, self._why_shares, self._layers)

    # -- control groups ----------------------------------------------------------------------------------------------

    def _make_group(self, birth: Birth) -> Group | None:
        if self._groups is None:
            return None
        group = self._groups.make(
            birth.machine, birth.generation, storage=birth.storage, share=birth.share, cpu=birth.cpu
        )
        self._group_of[birth.machine, birth.generation] = group
        self._tell_failed(birth, group)
        return group

    def _tell_failed(self, birth: Birth, group: Group) -> None:
        for limit, why in group.failed if not self._lost else ():
            self._events.send_nowait(LimitFailed(birth.machine, birth.generation, limit, why))
        group.failed.clear()

    async def _place(self, birth: Birth, pid: int, group: Group | None) -> None:
        """See that a machine that was just born is in its group, and has its share."""
        if group is not None and pid and not group.holds(pid):
            if group.doors:
                await trio.sleep(GROUP_ENTERS)  # it does so by itself as its first act, and to move it takes far longer
            if not group.holds(pid):
                await trio.to_thread.run_sync(group.move, pid)
                self._tell_failed(birth, group)
        if self._shares is not None:
            self._shares.give(pid, birth.share, birth.largest_share or birth.share)

    def _leave_group(self, key: tuple[str, int]) -> Group | None:
        """The group of a machine that has ended; it is as good as removed."""
        group = self._group_of.pop(key, None)
        if group is not None and self._groups is not None and not self._groups.remove(group):
            self._remains.send_nowait(group)
        return group

    async def place_residents(self) -> None:
        """Task: the one before may have died when a machine was born and not yet in its group."""
        for key, pid in list(self._pids.items()):
            await trio.lowlevel.checkpoint()
            group = self._group_of.get(key)
            if group is not None and self._pids.get(key) == pid and not group.holds(pid):
                await trio.to_thread.run_sync(group.move, pid)

    async def give_shares(self) -> None:
        """Task: weights for machines that have no group."""
        if self._shares is not None:
            await self._shares.run()

    async def sweep(self) -> NoReturn:
        """Task: remove the groups of machines that were more than one process, when the last of them is gone."""
        async for group in self._remains_out:
            while self._groups is not None and not self._groups.remove(group):
                with trio.move_on_after(GROUP_AGAIN):
                    for pid in group.pids():
                        await _gone(pid)
        raise AssertionError("the channel is never closed")

    def usage(self, machine: str, generation: int) -> int:
        """See Host.usage."""
        group = self._group_of.get((machine, generation))
        return group.usage() if group is not None else 0

    # -- the link ----------------------------------------------------------------------------------------------------

    def _post(self, message: dict[str, Any], descriptors: Sequence[int] = ()) -> None:
        if self._lost:
            close_all(descriptors)
            raise HostLost
        try:
            self._link.post(message, descriptors)
        except ConnectionError:
            raise HostLost from None
        if self._link.waiting:
            self._posted.set()

    async def wait_started(self) -> None:
        """Until every saved system is ready. :raises SavedSystemFailed: :raises HostLost:"""
        await self._started.wait()
        if self._broken is not None:
            raise self._broken
        if self._lost:
            raise HostLost
        await self._wait_births()
        for key in self._group_of.keys() - self._restored.residents.keys() - self._spawns.keys():
            self._leave_group(key)  # of a machine that has ended, or was never born

    async def _wait_births(self) -> None:
        """Until what the one before has asked for is born, or is not."""
        with trio.move_on_after(BIRTH_SECONDS):
            for spawn in self._unborn.values():
                await spawn.answered.wait()
        for key, spawn in self._unborn.items():
            spawn.abandoned = not spawn.answered.is_set()
            if spawn.born is None:
                del self._restored.residents[key]
            else:
                self._restored.residents[key] = Resident(spawn.born.pid, spawn.born.seal)

    async def write(self) -> NoReturn:
        """Task: send what the socket did not take at once."""
        while True:
            await self._posted.wait()
            self._posted = trio.Event()
            with suppress(ConnectionError):
                while self._link.waiting:
                    if self._link.crowded:
                        await trio.sleep(CROWDED_SECONDS)
                    else:
                        await trio.lowlevel.wait_writable(self._link)
                    self._link.flush()

    async def read(self) -> None:
        """Task: hand out what the nucleus says; returns when it is gone."""
        try:
            while True:
                try:
                    received = self._link.receive()
                except BlockingIOError:
                    await trio.lowlevel.wait_readable(self._link)
                    continue
                if received is None:
                    return
                message, descriptors = received
                close_all(descriptors)
                self._said(message)
        except LinkError:
            return
        finally:
            self._lost = True
            self._started.set()
            for spawn in self._spawns.values():
                spawn.answered.set()
            self._exits.close()
            self._events.close()

    def _said(self, message: dict[str, Any]) -> None:
        event = field(message, "event", str)
        if event == "ready":
            self._layers = [SealLayer(*layer) for layer in field(message, "layers", list)]
            self._started.set()
        elif event == "terminate":
            self._events.send_nowait(Terminate())
        elif event == "spare":
            text = field(message, "text", str)
            self._events.send_nowait(SpareReady() if field(message, "ready", bool) else SpareFailed(text))
        elif event == "saved-died":
            died = SavedSystemDied(field(message, "system", str), field(message, "text", str))
            self._broken = SavedSystemFailed(died.system, died.text)
            self._started.set()
            self._events.send_nowait(died)
            # Neither they nor the nucleus know which of those unanswered it had got.
            for (machine, _), spawn in self._spawns.items():
                spawn.error = SpawnFailed(machine, "saved system", 0, died.text)
                spawn.answered.set()
        elif event == "exit":
            self._exits.send_nowait(self._exit(message))
        else:
            self._answered(event, message)

    def _exit(self, message: dict[str, Any]) -> Exit:
        exit = Exit(**{name: message[name] for name in _EXIT_FIELDS if name in message})
        key = exit.machine, exit.generation
        self._pids.pop(key, None)
        if (group := self._group_of.get(key)) is None:
            return exit
        used = group.used()
        self._leave_group(key)
        return attrs.evolve(exit, out_of_storage=used.out_of_storage, peak_storage=used.peak)

    def _answered(self, event: str, message: dict[str, Any]) -> None:
        key = machine, generation = field(message, "machine", str), field(message, "generation", int)
        spawn = self._spawns.pop(key)
        self._places.release()
        if event == "born":
            spawn.born = Born(field(message, "pid", int), tuple(field(message, "seal", list)))
            self._pids[key] = spawn.born.pid
            if spawn.abandoned:
                self.signal(machine, generation, signal.SIGKILL)
        else:
            step, errno, hint = field(message, "step", str), field(message, "errno", int), field(message, "hint", str)
            spawn.error = SpawnFailed(machine, step, errno, hint)
            self._leave_group(key)
        spawn.answered.set()


_EXIT_FIELDS = [attribute.name for attribute in attrs.fields(Exit)]


@asynccontextmanager
async def open_host(
    link: socket.socket | Link, groups: Groups | None = None, restored: Restored | None = None
) -> AsyncIterator[LinuxHost]:
    """Speak to the nucleus over ``link``, the descriptor the CP was started with.

    :param link: it, or what :func:`wait_restored` made of it, together with
    :param restored: what that returned.
    :param groups: the control groups of its machines, which go with the system; without any there are none.

    Entered when every saved system is ready, so that the seal report is complete.

    :raises SavedSystemFailed: one could not be made (a module of ``[system] preload``, or no way to seal machines).
    :raises HostLost: the nucleus is gone.
    """
    if isinstance(link, socket.socket):
        link, restored = wait_restored(link)
    host = LinuxHost(link, restored or Restored(), groups)
    try:
        async with trio.open_nursery() as nursery:
            nursery.start_soon(host.read)
            nursery.start_soon(host.write)
            nursery.start_soon(host.sweep)
            nursery.start_soon(host.give_shares)
            await host.wait_started()
            nursery.start_soon(host.place_residents)
            yield host
            nursery.cancel_scope.cancel()
    except BaseExceptionGroup as group:
        # The tasks raise nothing, so what is in here is what the caller's block raised, alone.
        if len(group.exceptions) == 1:
            raise group.exceptions[0] from None
        raise
    finally:
        if host.over:
            if groups is not None:
                groups.close()
            host.close_volume()


async def _gone(pid: int) -> None:
    """Until a process has ended."""
    try:
        pidfd = os.pidfd_open(pid)
    except OSError:
        return
    try:
        await trio.lowlevel.wait_readable(pidfd)
    finally:
        os.close(pidfd)
