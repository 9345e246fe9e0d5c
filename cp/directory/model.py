"""The directory: what a topology file declares, as frozen values that have passed every rule.

The z/VM word for the file that lists all virtual machines of a system, with what each may use, is the user directory.
"""

import pathlib
from typing import Any, Literal

from attrs import field, frozen

from retinue.cp.directory.positions import Positions

Kind = Literal["program", "asgi", "wsgi", "exec"]
Restart = Literal["always", "on-failure", "never"]
OnRestart = Literal["keep", "reconnect", "restart"]
Overflow = Literal["block", "drop-oldest", "drop-newest", "sever"]
SealLevel = Literal["full", "strong", "basic"]
Mode = Literal["ro", "rw"]
Side = Literal["listen", "connect"]

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

STORAGE_DEFAULT = 128 * 1024**2
#: An interpreter with trio and a small program needs some 20 MiB before it does any work.
STORAGE_MINIMUM = 32 * 1024**2
#: What an x86-64 process can address at all (47 bits); a larger figure is a slip of the pen.
STORAGE_MAXIMUM = 128 * 1024**4

#: A file system with less room than this cannot hold a folder and a few files.
DISK_MINIMUM = 64 * 1024

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
class MachineEntry:
    """One machine as the topology file declares it.

    ``program`` is a dotted module name, or ``module:attribute`` for the kinds ``asgi`` and ``wsgi``, or the first word
    of ``command`` for the kind ``exec``, whose other words are explained in :mod:`retinue.cp.directory.commands`.
    ``storage`` is in bytes. ``pause`` is the longest pause before a restart, in seconds; 0 means none at all.
    ``share`` is the machine's share of the processors relative to others, ``cpu`` how many of them it may use at most
    (0.3 is 30 percent of one; 0 means all). ``threads`` is how many requests a ``wsgi`` application handles at a time.
    ``config`` holds plain TOML values (str, int of 64 bits, float, bool, list, dict) and belongs to the program.
    """

    name: str
    kind: Kind
    program: str
    network: bool = False
    storage: int = STORAGE_DEFAULT
    restart: Restart = "always"
    pause: float = PAUSE_DEFAULT
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

    @property
    def module(self) -> str:
        """The module to import."""
        return self.program.partition(":")[0]

    @property
    def attribute(self) -> str:
        """The name to look up in the module."""
        return self.program.partition(":")[2] or "main"


@frozen
class System:
    """What the file says about the system as a whole.

    ``syslog`` is the name of the machine that keeps the records of ``*LOG``, if there is one. ``preload`` are modules
    that are imported once, before any machine starts, and shared by all machines. ``secret`` are the keys whose values
    a tap does not show. ``seal`` is the least that is accepted.
    """

    name: str
    syslog: str | None = None
    preload: tuple[str, ...] = ()
    secret: tuple[str, ...] = ()
    seal: SealLevel = "strong"


@frozen
class Directory:
    """One topology file, completely validated. ``path`` is absolute; ``machines`` are in the order of the file."""

    path: pathlib.Path
    system: System
    machines: tuple[MachineEntry, ...]
    positions: Positions = field(factory=Positions, repr=False, eq=False)

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

    def line(self, *keys: str | int) -> int:
        """The line of a key path such as ``("machines", "SHOP", "storage")``, counted from 1.

        A key that is not in the file has the line of its nearest parent that is.
        """
        return self.positions.line(*keys)
