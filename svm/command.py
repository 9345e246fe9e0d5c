"""The command of a native program: what its words, its sockets and its environment become inside the machine."""

import os
import re
from collections.abc import Mapping
from typing import Any, Final

import attrs

from retinue.svm.errors import ProgramError

# Where a program that is named without a folder is looked for, in this order; also its PATH.
FOLDERS: Final = ("/usr/local/bin", "/usr/bin", "/bin")

# sun_path of unix(7) has 108 bytes, one of them for the NUL at the end.
SOCKET_PATH_MAX: Final = 107

# The folder for sockets where a machine has a root of its own: then it is in memory, and nobody else's.
PRIVATE_RUN: Final = "/run"

_PLACEHOLDER: Final = re.compile(r"\{\{|\}\}|\{(disks|links|sockets|secrets)\.([a-z][a-z0-9_]*)\}", re.ASCII)


@attrs.frozen(kw_only=True)
class Command:
    """What an ``exec`` machine runs, and what its program finds.

    ``words`` are those of the topology, ``executable`` is the file. ``sockets`` are ``listen`` or ``connect`` by name,
    in the folder ``run``. ``disks`` are folders by name, the links among them; ``secrets`` the values by name.
    ``inherited`` are the edges that the program gets as descriptors; those in ``lazy`` are connected when it uses them.
    """

    machine: str
    words: tuple[str, ...]
    executable: str
    run: str = PRIVATE_RUN
    sockets: dict[str, str] = attrs.field(factory=dict)
    disks: dict[str, str] = attrs.field(factory=dict)
    secrets: dict[str, bytes] = attrs.field(factory=dict, repr=False)
    inherited: tuple[str, ...] = ()
    lazy: frozenset[str] = frozenset()

    @property
    def name(self) -> str:
        """The program as records name it."""
        return os.path.basename(self.words[0])

    @property
    def listening(self) -> str | None:
        """The name of the socket at which the program takes connections."""
        return next((name for name, side in self.sockets.items() if side == "listen"), None)

    @property
    def connecting(self) -> tuple[str, ...]:
        """The sockets, and edges, to which the program connects."""
        return tuple(name for name, side in self.sockets.items() if side == "connect")

    def socket(self, name: str) -> str:
        """The path of one of the sockets."""
        return f"{self.run}/{name}.sock"

    @property
    def told(self) -> tuple[str, ...]:
        """The secrets that the words name, which need a path."""
        found = {match[2] for word in self.words for match in _PLACEHOLDER.finditer(word) if match[1] == "secrets"}
        return tuple(sorted(found))

    def arguments(self, secrets: Mapping[str, str]) -> list[str]:
        """The words, with paths for the placeholders. ``secrets`` are the paths of those that :attr:`told` names."""
        paths = {
            "disks": self.disks,
            "links": self.disks,
            "sockets": {name: self.socket(name) for name in self.sockets},
            "secrets": secrets,
        }

        def path(match: re.Match[str]) -> str:
            table, name = match[1], match[2]
            if table is None:
                return match[0][0]
            if name not in paths[table]:
                raise ProgramError(f"exec has {match[0]} in it, and {self.machine} has no {table}.{name}")
            return paths[table][name]

        return [self.words[0], *(_PLACEHOLDER.sub(path, word) for word in self.words[1:])]

    def environment(self, descriptors: Mapping[str, int]) -> dict[str, str]:
        """All that the program has of an environment. ``descriptors`` are the numbers by variable."""
        home = next((disk for disk in self.disks.values() if os.access(disk, os.W_OK)), "/")
        found = {"PATH": ":".join(FOLDERS), "LANG": os.environ.get("LANG", "C.UTF-8"), "HOME": home}
        if "TZ" in os.environ:
            found["TZ"] = os.environ["TZ"]
        found["RETINUE_MACHINE"] = self.machine
        found |= {f"RETINUE_DISK_{name.upper()}": folder for name, folder in self.disks.items()}
        return found | {name: str(number) for name, number in descriptors.items()}


def read_command(arguments: Mapping[str, Any]) -> Command:
    """The command in the arguments of ``load``. Raises :exc:`~retinue.svm.errors.ProgramError` if it cannot be run."""
    words = tuple(arguments["command"])
    sockets = dict(arguments.get("sockets") or {})
    edges: Mapping[str, Mapping[str, Any]] = arguments["edges"]
    command = Command(
        machine=arguments["name"],
        words=words,
        executable=arguments.get("executable") or find(words[0]),
        run=arguments.get("run") or PRIVATE_RUN,
        sockets=sockets,
        disks=dict(arguments["disks"]),
        secrets=dict(arguments.get("secrets") or {}),
        # A star service answers calls; nothing of it can be had as bytes.
        inherited=tuple(
            name for name in edges if name not in sockets and not edges[name].get("to", "").startswith("*")
        ),
        lazy=frozenset(name for name, about in edges.items() if about.get("lazy")),
    )
    for name in sockets:
        path = command.socket(name)
        if len(os.fsencode(path)) > SOCKET_PATH_MAX:
            raise ProgramError(
                f"the path of sockets.{name} has {len(os.fsencode(path))} bytes, the kernel takes {SOCKET_PATH_MAX}: "
                f"{path}; give the socket a shorter name, or start the system with a shorter runtime folder"
            )
    # A placeholder that stands for nothing is told now.
    command.arguments(dict.fromkeys(command.secrets, ""))
    return command


def find(program: str) -> str:
    """The file of a program: an absolute path, or a name in one of FOLDERS. Raises ProgramError."""
    if "/" in program:
        if os.path.isabs(program):
            return program
        raise ProgramError(f"the program {program} has no absolute path")
    for folder in FOLDERS:
        path = f"{folder}/{program}"
        if os.access(path, os.X_OK):
            return path
    raise ProgramError(f"there is no program {program} in {', '.join(FOLDERS)}")
