"""What the CP asks of a host, whichever it is."""

import os
from collections.abc import Mapping, Sequence
from typing import Any, Protocol

import attrs
import trio

from retinue.cp.host.errors import PagingRefused

__all__ = [
    "Birth",
    "Born",
    "Exit",
    "Host",
    "HostEvent",
    "Kept",
    "Limit",
    "LimitFailed",
    "PagingRefused",
    "Resident",
    "Restored",
    "SavedSystemDied",
    "SealLayer",
    "SpareFailed",
    "SpareReady",
    "Storage",
    "Terminate",
]


@attrs.frozen
class Birth:
    """Everything the host must know to make a machine (its configuration and secrets go over its control path)."""

    machine: str
    generation: int
    network: bool
    """True: it keeps the host's network."""
    storage: int
    """Bytes of private writable memory it may ever have (RLIMIT_DATA)."""
    disks: tuple[str, ...]
    """Absolute folders it may read and write."""
    code: tuple[str, ...]
    """Absolute folders with its program, first on its sys.path, read-only; of these only modules and packages."""
    kind: str = "program"
    """``program``, ``asgi``, ``wsgi`` or ``exec``: only the last may make processes."""
    uid: int = -1
    """The user and group it has for itself, where the host gives each machine one; -1 where it does not."""
    links: tuple[str, ...] = ()
    """Absolute folders it may read."""
    temporary: tuple[tuple[str, int], ...] = ()
    """Absolute folders that are empty at its start, and the bytes each may hold."""
    executable: str = ""
    """Absolute path of the program of an ``exec`` machine."""
    file_size: int = 0
    """Bytes one file of it may have; 0 for as many as its storage."""
    share: int = 100
    """Its share of the processors, relative to other machines."""
    cpu: float = 0.0
    """Processors it may use at most; 0 for all."""
    largest_share: int = 0
    """The largest share of any machine of its system; 0 for its own."""
    segments: int = 0
    """Bytes of addresses that it may have for its segments, above what its storage allows."""
    groups: tuple[str, ...] = ()
    """Files of its control groups, given by the host: whoever writes ``0`` into them is in."""


@attrs.frozen
class Born:
    """A machine has a process."""

    pid: int
    """As the host sees it; 0 if it had already ended when the host looked."""
    seal: tuple[str, ...]
    """The layers it has, or it will refuse to start."""


@attrs.frozen
class Exit:
    """A machine's process has ended."""

    machine: str
    generation: int
    pid: int
    status: int
    """Wait status, for os.waitstatus_to_exitcode and its friends."""
    user_s: float
    system_s: float
    peak_kib: int
    """Largest resident size; at the least that of the saved system it was forked from."""
    ended: str | None
    """What stopped its boot before the program began, if something did."""
    out_of_storage: bool = False
    """The host has killed it because it had used up its storage."""
    peak_storage: int = 0
    """Bytes of real storage it has had at most, of every kind; 0 where the host does not count them."""


@attrs.frozen
class SealLayer:
    """One layer of the seal, as found when a saved system was made."""

    system: str
    """``"sealed"`` or ``"network"``: the kind of machines it is about."""
    layer: str
    present: bool
    why: str
    """Why it is absent; its version or nothing when it is present."""


@attrs.frozen
class Limit:
    """How one kind of limit is kept on this host."""

    limit: str
    """``storage``, ``share``, ``cpu``, ``tasks``, ``disk`` or ``temporary disk``."""
    mechanism: str
    """In a few words; ``"none"`` where nothing does it."""
    enforced: bool
    """True: the kernel keeps it at every moment. False: it is looked at now and then, or not at all."""
    why: str = ""
    """Why it is not enforced, or what it depends on."""
    cure: str = ""
    """What would help."""


@attrs.frozen
class Storage:
    """What a machine has of storage, all its processes together, in bytes; pages of files (its code) are not in it.

    Pages that several machines share, such as those of the saved system, count in proportion: the sum over all machines
    is what they have together.
    """

    resident: int
    """In real storage: private pages, and its part of shared ones."""
    private: int
    """In real storage and nobody else's."""
    paged: int
    """Paged out."""
    reads: int
    """Pages that were read back, over the life of its processes (major faults)."""

    @property
    def instantiated(self) -> int:
        """All that it has ever touched and not given back."""
        return self.resident + self.paged


@attrs.frozen
class Terminate:
    """Somebody sent the nucleus SIGTERM or SIGINT: stop in order. A second signal ends everything at once."""


@attrs.frozen
class SavedSystemDied:
    """A saved system is gone and its machines with it. The nucleus ends the system soon, whatever the CP does."""

    system: str
    text: str


@attrs.frozen
class LimitFailed:
    """A limit that this host can enforce could not be set for one machine, which runs without it."""

    machine: str
    generation: int
    limit: str
    why: str


@attrs.frozen
class SpareReady:
    """The spare that was asked for has loaded: from here on it takes over at once."""


@attrs.frozen
class SpareFailed:
    """There is no spare: it could not be started, could not load, or died while it waited."""

    text: str


HostEvent = Terminate | SavedSystemDied | LimitFailed | SpareReady | SpareFailed


@attrs.frozen
class Resident:
    """A machine that an earlier control program has had made, and that lives."""

    pid: int
    seal: tuple[str, ...]


@attrs.frozen
class Kept:
    """What an earlier control program has kept under a key."""

    note: dict[str, Any]
    descriptors: tuple[int, ...] = ()
    """They belong to whoever takes them; they are closed by nobody else."""

    def close(self) -> None:
        """Close the descriptors."""
        for descriptor in self.descriptors:
            os.close(descriptor)


@attrs.frozen
class Restored:
    """What a control program finds when it begins."""

    first: bool = True
    """The system starts: there is nothing else in here."""
    died: str = ""
    """How the one before it ended, in a sentence; empty if that handed over on purpose."""
    residents: dict[tuple[str, int], Resident] = attrs.field(factory=dict)
    """By machine and generation. Whoever was asked for and is not here, nor in an exit, was never born."""
    kept: dict[str, Kept] = attrs.field(factory=dict)
    """By key, in the order in which the keys were first kept."""


class Host(Protocol):
    """Makes processes for machines, signals them, and tells when they end."""

    @property
    def exits(self) -> trio.MemoryReceiveChannel[Exit]:
        """Every end of every machine that was born, exactly once; and once more for each control program until one
        has it :meth:`buried`. Those of the last one are in here before anything else happens."""

    @property
    def events(self) -> trio.MemoryReceiveChannel[HostEvent]:
        """What happens to the host itself."""

    async def spawn(self, birth: Birth, descriptors: Sequence[int]) -> Born:
        """Make a process for a machine.

        :param descriptors: its control and its log socket; borrowed, the machine gets duplicates.
        :raises SpawnFailed: it could not be made.
        :raises HostLost: the host is gone.

        When this is cancelled and the machine is born nevertheless, it is killed, and reported in :attr:`exits`.
        """

    def signal(self, machine: str, generation: int, number: int) -> None:
        """Send a signal to a machine's process. No error if it has ended.

        A sealed machine is process 1 of its own namespace, so of the signals it has no handler for only SIGKILL and
        SIGSTOP reach it (pid_namespaces(7)).
        """

    @property
    def restored(self) -> Restored:
        """What the control program before this one has left."""

    def keep(self, key: str, note: Mapping[str, Any], descriptors: Sequence[int] = ()) -> None:
        """Have the host hold a note and up to four descriptors (borrowed) for the next control program.

        They replace what was kept under the key, in its place. What was kept before this process died counts, and
        nothing else: so first keep, then do. Nobody is waited for.

        :raises LinkLimit: the note is larger than NOTE_MAX (64 KiB) as JSON, or there are more descriptors.
        :raises OSError: this process has no descriptor left for the duplicates.
        """

    def drop(self, key: str) -> None:
        """Hold nothing any more under a key. No error if there was nothing."""

    def buried(self, machine: str, generation: int) -> None:
        """The exit of this generation was taken note of: it is not told to the next control program."""

    def spare(self) -> None:
        """Start a process that loads the present code and takes over when this one dies; SpareReady or SpareFailed.

        Asked again it replaces the one there is. Who asks says that it has come up in order: three control programs
        in a row that die before they do end the system.
        """

    def hand_over(self) -> None:
        """Leave on purpose: the last word. This process is killed, and the spare (or a new process) goes on."""

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
        """Give a machine that lives other limits; None leaves one as it is, a ``cpu`` of 0 is all processors.

        :param largest_share: the largest share of any machine of the system; 0 for its own.
        :returns: nothing, or why it cannot be done in place (it may be half done). A limit that this host does not keep
            at all (:meth:`limits_report`) is set in place.
        """

    def pid(self, machine: str, generation: int) -> int:
        """The process of a machine that lives; 0 if it does not."""

    def cpu_time(self, machine: str, generation: int) -> float | None:
        """Seconds of processor that the process of a machine has used, all threads; None if it does not live."""

    def end(self, how: str, text: str, exit_code: int) -> None:
        """End the whole system: every machine is killed, and the nucleus exits with ``exit_code``.

        ``how`` (a word) and ``text`` (a sentence) are kept in the state folder's ``end.json``.
        """

    def seal_report(self) -> list[SealLayer]:
        """What the seal of this host's machines is made of, and what could not be had, and why."""

    def usage(self, machine: str, generation: int) -> int:
        """Bytes of storage that the host has charged to a machine, swapped ones too; 0 where it does not count."""

    def limits_report(self) -> list[Limit]:
        """How the limits of machines are kept on this host, and why not better."""

    def measure(self, machines: Sequence[tuple[str, int]]) -> dict[tuple[str, int], Storage]:
        """What machines (by name and generation) have of storage; those that do not live are left out.

        It reads some files for each machine, and may be called in a worker thread.
        """

    def working_set(self, machine: str, generation: int) -> int | None:
        """Bytes that a machine has used since this was last asked; None where the host cannot say, and the first time.

        It walks through all its pages, and may be called in a worker thread.
        """

    def page_out(self, machine: str, generation: int, most: int | None = None) -> int:
        """Take pages of a machine out of real storage: at most so many bytes, or all. Returns how many it were.

        It waits for the paging device, and may be called in a worker thread.

        :raises PagingRefused: there is nowhere to put them, or no right to do it.
        """

    def own_ranges(self, machine: str, generation: int, most: int | None = None) -> list[tuple[int, int]]:
        """Where a machine has at most so many bytes in real storage that it could page out itself; none: it cannot.

        Each is the first address and the one behind the last. It may be called in a worker thread.
        """

    def paging_report(self) -> Limit:
        """By what means this host pages machines out, and why not by a better one."""

    def open_volume(self, path: str, size: int) -> str:
        """Have a file of so many bytes be the paging volume until the system ends; it may be it already.

        Its folder exists. Returns nothing, or why this host has no such volume. It makes and writes the file, and may
        be called in a worker thread.
        """

    def pressure(self) -> float | None:
        """The part of the last ten seconds in which some task waited for storage (PSI), 0 to 1; None if unreadable."""
