"""The directory: what a topology file declares, as frozen values that have passed every rule.

The z/VM word for the file that lists all virtual machines of a system, with what each may use, is the user directory.
"""

import pathlib
from typing import Any, Literal

from attrs import field, frozen

from retinue.cp.directory.positions import Positions

Kind = Literal["program", "asgi"]
Restart = Literal["always", "on-failure", "never"]
OnRestart = Literal["keep", "reconnect", "restart"]
Overflow = Literal["block", "drop-oldest", "drop-newest", "sever"]

#: The services that the control program itself answers for. A machine reaches them by an edge, like any other.
STAR_SERVICES = ("*CP", "*LOG")

#: A name longer than this is no VM user id, and would not fit the columns of a listing.
NAME_LIMIT = 8

#: Local names (of edges and disks) appear in every record about them; a disk's name is also a folder's.
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
class MachineEntry:
    """One machine as the topology file declares it.

    ``program`` is a dotted module name, or ``module:attribute`` for the kind ``asgi``. ``storage`` is in bytes.
    ``pause`` is the longest pause before a restart, in seconds; 0 means none at all.
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
    disks: tuple[str, ...] = ()
    config: dict[str, Any] = field(factory=dict, hash=False)

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
    a tap does not show.
    """

    name: str
    syslog: str | None = None
    preload: tuple[str, ...] = ()
    secret: tuple[str, ...] = ()


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
