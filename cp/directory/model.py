"""The directory: what a topology file declares, as frozen values that have passed every rule.

The z/VM word for the file that lists all virtual machines of a system, with what each may use, is the user directory.
"""

import pathlib
from typing import Any, Literal

from attrs import Factory, evolve, field, frozen

from retinue.cp.directory.positions import Positions

Kind = Literal["program", "asgi", "wsgi", "exec"]
Restart = Literal["always", "on-failure", "never"]
OnRestart = Literal["keep", "reconnect", "restart"]
Overflow = Literal["block", "drop-oldest", "drop-newest", "sever"]
SealLevel = Literal["full", "strong", "basic"]
Mode = Literal["ro", "rw"]
Side = Literal["listen", "connect"]
Start = Literal["up", "on-demand"]
Replace = Literal["overlap", "stop-first"]
Strategy = Literal["one_for_one", "one_for_all", "rest_for_one"]
LogWay = Literal["block", "drop", "spill"]

#: The services that the control program itself answers for. A machine reaches them by an edge, like any other.
STAR_SERVICES = ("*CP", "*LOG")

#: A name longer than this is no VM user id, and would not fit the columns of a listing.
NAME_LIMIT = 8

#: Local names (of edges, disks, sockets, secrets) appear in every record about them; a disk's name is also a folder's.
LOCAL_NAME_LIMIT = 32

#: Messages that may be outstanding on a path, per direction, unless the edge says otherwise.
LIMIT_DEFAULT = 64
#: Each outstanding message is remembered at both ends; a queue longer than this hides a server that is too slow.
LIMIT_MAXIMUM = 65_535

#: Seconds. The longest pause between two starts of a machine that keeps dying: what an operator is willing to wait.
PAUSE_DEFAULT = 10.0
#: One that waits longer than this has not been restarted but given up.
PAUSE_MAXIMUM = 3600.0
#: Seconds. The pause after the second death, which the next ones multiply: what costs little, whatever the start does.
PAUSE_FIRST = 0.1
PAUSE_FIRST_MINIMUM = 0.001
PAUSE_FACTOR = 2.0
#: With more the second pause is the longest already.
PAUSE_FACTOR_MAXIMUM = 100.0
#: The part of a pause that chance may take away: enough that machines which died together start one after another.
PAUSE_JITTER = 0.2
#: Seconds. A machine that was ready for this long starts with a clean slate.
PAUSE_RESET = 60.0

#: Restarts of a budget: each is remembered for as long as it counts.
BUDGET_MOST = 1000
#: Seconds. No window of a budget, idle time or healthy time is longer than a day, or shorter than the other.
DAY = 86_400.0
SECOND = 1.0

#: Machines behind one name: each is a process, and each user may hold a path to each.
INSTANCES_MAXIMUM = 64

#: Seconds without anything to do after which an on-demand machine is stopped.
IDLE_DEFAULT = 60.0
#: Seconds without progress after which a machine is hung; longer than any honest wait for the interpreter.
WATCHDOG_DEFAULT = 60.0
WATCHDOG_MAXIMUM = 3600.0
#: Seconds that a machine may take to finish what it has begun.
GRACE_DEFAULT = 10.0
GRACE_MAXIMUM = 3600.0

STORAGE_DEFAULT = 128 * 1024**2
#: An interpreter with trio and a small program needs some 20 MiB before it does any work.
STORAGE_MINIMUM = 32 * 1024**2
#: What an x86-64 process can address at all (47 bits); a larger figure is a slip of the pen.
STORAGE_MAXIMUM = 128 * 1024**4

#: A file system with less room than this cannot hold a folder and a few files.
DISK_MINIMUM = 64 * 1024

#: Who has less is ended first when all machines together need more real storage than there is.
PRIORITY_DEFAULT = 100
PRIORITY_MAXIMUM = 1000

#: A file in the state folder.
VOLUME_DEFAULT = "page.img"
PAGING_MINIMUM = 1024**2
#: 32 bits count the pages of a volume.
PAGING_MAXIMUM = 8 * 1024**4

#: Relative to others; what a machine has that says nothing.
SHARE_DEFAULT = 100
SHARE_MAXIMUM = 10_000
#: Requests at a time; each is a thread with a stack of a MiB.
THREADS_DEFAULT = 8
THREADS_MAXIMUM = 256
#: Percent of one processor: 64 whole ones, as many as anybody gives to one machine.
CPU_MAXIMUM = 6400
#: Bytes of one secret: it travels in a message of the control path.
SECRET_MAXIMUM = 64 * 1024
#: What is shorter can be guessed, and is found by chance in texts that are no secret.
SECRET_MINIMUM = 8
#: They travel in one message.
SECRETS_LIMIT = 64

#: Bytes of a machine's records that wait in memory to be stored.
LOG_BUFFER_DEFAULT = 1024**2
#: With less, a few long lines would be too many.
LOG_BUFFER_MINIMUM = 64 * 1024
#: Half of what the control program has for all machines together.
LOG_BUFFER_MAXIMUM = 32 * 1024**2
#: Bytes of them that wait on the disk.
LOG_SPILL_DEFAULT = 64 * 1024**2
#: Some files of what a buffer holds.
LOG_SPILL_MINIMUM = 1024**2
LOG_SPILL_MAXIMUM = 1024**4
#: More than the control program can read in a second, a minute or an hour.
LOG_RATE_MAXIMUM = 1_000_000_000


@frozen
class Edge:
    """The right of one machine to connect to one target.

    ``name`` is what the machine calls it and ``to`` is the name of a machine or of a star service. ``limit`` is the
    number of messages that may be outstanding per direction (1 to :data:`LIMIT_MAXIMUM`). A ``lazy`` edge makes no
    start order. ``on_restart`` is what becomes of its paths, or of its machine, when the target has died and is
    started again; ``overflow`` what becomes of a message that finds ``limit`` of them outstanding.
    """

    name: str
    to: str
    limit: int = LIMIT_DEFAULT
    lazy: bool = False
    on_restart: OnRestart = "keep"
    overflow: Overflow = "block"

    @property
    def star(self) -> bool:
        """Whether the target is a service of the control program and not a machine."""
        return self.to.startswith("*")


@frozen
class Disk:
    """A disk of a machine's own.

    ``size`` is in bytes, None for one without a bound. A ``temporary`` disk has a size and is empty at each start.
    ``linked_by`` names the machines that may link to it, each with the most that it may do.
    """

    name: str
    size: int | None = None
    temporary: bool = False
    linked_by: tuple[tuple[str, Mode], ...] = ()


@frozen
class LinkedDisk:
    """A disk of another ``machine`` that this one may read, or read and write. ``name`` is what it calls it."""

    name: str
    machine: str
    disk: str
    mode: Mode = "ro"


@frozen
class SocketEntry:
    """A UNIX socket in the root of an ``exec`` machine.

    ``listen``: the program listens there, and each path to the machine becomes a connection to it. ``connect``: each
    connection of the program becomes a path along the edge ``name``.
    """

    name: str
    side: Side


@frozen
class Secret:
    """A value that one machine is told: the contents of a ``file`` or of a ``variable`` of the starting environment."""

    name: str
    file: str | None = None
    variable: str | None = None


@frozen
class Budget:
    """At most this many restarts within so many seconds, whichever seconds one takes."""

    most: int
    within: float


#: What a group has that says nothing: the figures that users of OTP write most.
GROUP_BUDGET = Budget(3, 10.0)


@frozen
class Pause:
    """The pauses before the restarts of a machine that keeps dying, in seconds.

    The first restart comes at once, the second after ``first``, each further one after ``factor`` times as long, up to
    ``longest``; with a ``longest`` of 0 there are no pauses. Chance shortens each by the part ``jitter`` at most. A
    machine that was ready for ``reset`` begins anew.
    """

    first: float = PAUSE_FIRST
    factor: float = PAUSE_FACTOR
    longest: float = PAUSE_DEFAULT
    jitter: float = PAUSE_JITTER
    reset: float = PAUSE_RESET


@frozen
class LogRate:
    """So many records within so many seconds."""

    most: int
    within: float = 1.0


@frozen
class LogPolicy:
    """What becomes of a machine's records while they cannot be stored as fast as it writes them.

    ``buffer`` bounds those that wait in memory. More wait in the machine (``block``), are dropped (``drop``), or are
    on the disk, up to ``spill`` (``spill``). All in bytes. ``rate`` is how many it may write at all, None for any.
    """

    policy: LogWay = "spill"
    buffer: int = LOG_BUFFER_DEFAULT
    spill: int = LOG_SPILL_DEFAULT
    rate: LogRate | None = None


@frozen
class Group:
    """Machines that belong together when one of them fails.

    ``members`` are names of machines and of other groups, in the order that ``rest_for_one`` goes by. A group that
    would need more restarts than ``restarts`` fails as a whole.
    """

    name: str
    members: tuple[str, ...]
    strategy: Strategy = "one_for_one"
    restarts: Budget = GROUP_BUDGET


def _replacement(machine: "MachineEntry") -> Replace:
    """How a machine that does not say it is replaced: two cannot hold one network, or write to one disk unasked."""
    writes = any(not disk.temporary for disk in machine.disks) or any(link.mode == "rw" for link in machine.links)
    return "stop-first" if machine.network or writes else "overlap"


@frozen
class MachineEntry:
    """One machine as the topology file declares it.

    ``program`` is a dotted module name, or ``module:attribute`` for the kinds ``asgi`` and ``wsgi``, or the first word
    of ``command`` for the kind ``exec``, whose other words are explained in :mod:`retinue.cp.directory.commands`.
    ``storage`` is in bytes, and so is ``segments``, what its segments may have together (None: as much as ``storage``).
    ``share`` is the machine's share of the processors relative to others, ``cpu`` how many of them it may use at most
    (0.3 is 30 percent of one; 0 means all). ``threads`` is how many requests a ``wsgi`` application handles at a time.
    ``config`` holds plain TOML values (str, int of 64 bits, float, bool, list, dict) and belongs to the program.

    When an ``essential`` machine is broken, the system ends. One that does not ``start`` with the system starts when
    it is used, and stops when it had nothing to do for ``idle`` seconds. ``watchdog`` is how many seconds it may make
    no progress (0: as many as it likes), ``grace`` how many it has to finish what it has begun. ``restarts`` is the
    budget of its own restarts, None for no bound. ``replace`` says whether its successor starts beside it. ``log`` is
    what becomes of its records.

    ``reserve`` are the bytes that it loses last when pages are taken from machines, and of those with a low
    ``priority`` one is ended first when that is not enough. ``idle_page_out`` is how many seconds without running
    until it is paged out (0: never; None: as the system says).

    ``host_sockets`` are the addresses of UNIX sockets of the host that it may be connected to, as ``/dev/log``, or
    ``@name`` for an abstract one.

    One machine of several behind a name, as :meth:`Directory.expanded` makes them, has that name as ``base``.
    """

    name: str
    kind: Kind
    program: str
    network: bool = False
    storage: int = STORAGE_DEFAULT
    restart: Restart = "always"
    backoff: Pause = Pause()
    uses: tuple[Edge, ...] = ()
    disks: tuple[Disk, ...] = ()
    config: dict[str, Any] = field(factory=dict, hash=False)
    command: tuple[str, ...] = ()
    sockets: tuple[SocketEntry, ...] = ()
    threads: int = THREADS_DEFAULT
    links: tuple[LinkedDisk, ...] = ()
    share: int = SHARE_DEFAULT
    cpu: float = 0.0
    secrets: tuple[Secret, ...] = ()
    segments: int | None = None
    log: LogPolicy = LogPolicy()
    essential: bool = False
    instances: int = 1
    start: Start = "up"
    idle: float = IDLE_DEFAULT
    watchdog: float = WATCHDOG_DEFAULT
    grace: float = GRACE_DEFAULT
    restarts: Budget | None = None
    replace: Replace = Factory(_replacement, takes_self=True)
    base: str = ""
    reserve: int = 0
    priority: int = PRIORITY_DEFAULT
    idle_page_out: float | None = None
    host_sockets: tuple[str, ...] = ()

    @property
    def pause(self) -> float:
        """The longest pause before a restart, in seconds; 0 means none at all."""
        return self.backoff.longest

    @property
    def most_segments(self) -> int:
        """Bytes that its segments may have together; a native program cannot ask for any."""
        if self.kind == "exec":
            return 0
        return self.storage if self.segments is None else self.segments

    @property
    def declared(self) -> str:
        """The name under which the machine stands in the file."""
        return self.base or self.name

    @property
    def module(self) -> str:
        """The module to import."""
        return self.program.partition(":")[0]

    @property
    def attribute(self) -> str:
        """The name to look up in the module."""
        return self.program.partition(":")[2] or "main"


@frozen
class PagingVolume:
    """A file of so many bytes, to which pages of machines go; relative to the state folder, or absolute."""

    volume: str
    size: int


@frozen
class System:
    """What the file says about the system as a whole.

    ``syslog`` is the name of the machine that keeps the records of ``*LOG``, if there is one. ``preload`` are modules
    that are imported once, before any machine starts, and shared by all machines. ``secret`` are the keys whose values
    a tap does not show. ``seal`` is the least that is accepted. ``storage`` is the real storage in bytes that all
    machines together may keep, None for no bound. ``idle_page_out`` is that of machines that do not say it; None is
    never. ``log`` is what becomes of records, for machines that do not say it. ``paging`` is the paging volume.
    """

    name: str
    syslog: str | None = None
    preload: tuple[str, ...] = ()
    secret: tuple[str, ...] = ()
    seal: SealLevel = "strong"
    storage: int | None = None
    idle_page_out: float | None = None
    log: LogPolicy = LogPolicy()
    paging: PagingVolume | None = None


@frozen
class Directory:
    """One topology file, completely validated. ``path`` is absolute; ``machines`` are in the order of the file."""

    path: pathlib.Path
    system: System
    machines: tuple[MachineEntry, ...]
    positions: Positions = field(factory=Positions, repr=False, eq=False)
    groups: tuple[Group, ...] = ()
    text: str = field(default="", repr=False, eq=False)

    @property
    def folder(self) -> pathlib.Path:
        """The folder of the topology file, in which programs are looked for first."""
        return self.path.parent

    def machine(self, name: str) -> MachineEntry:
        """The machine of that name. Raises KeyError if there is none."""
        for machine in self.machines:
            if machine.name == name:
                return machine
        raise KeyError(name)

    def instances(self, name: str) -> tuple[str, ...]:
        """The names of the machines that an edge to ``name`` leads to. Raises KeyError if there is none."""
        found = [of for machine in self.machines if machine.declared == name for of in instance_names(machine)]
        if not found:
            raise KeyError(name)
        return tuple(found)

    def expanded(self) -> "Directory":
        """The same with an entry for each of the machines that share a name: ``SHOP@1``, ``SHOP@2``.

        Edges and groups go on naming ``SHOP``. An expanded directory is its own expansion.
        """
        entries = tuple(
            machine if name == machine.name else evolve(machine, name=name, base=machine.name)
            for machine in self.machines
            for name in instance_names(machine)
        )
        return evolve(self, machines=entries)

    @property
    def entries(self) -> dict[str, MachineEntry]:
        """The machines of :meth:`expanded` by name; made anew each time."""
        return {entry.name: entry for entry in self.expanded().machines}

    def line(self, *keys: str | int) -> int:
        """The line of a key path such as ``("machines", "SHOP", "storage")``, counted from 1.

        A key that is not in the file has the line of its nearest parent that is.
        """
        return self.positions.line(*keys)


def instance_names(machine: MachineEntry) -> tuple[str, ...]:
    """The names under which the machine runs: its own, or one for each of its instances."""
    if machine.base or machine.instances == 1:
        return (machine.name,)
    return tuple(f"{machine.name}@{number}" for number in range(1, machine.instances + 1))
