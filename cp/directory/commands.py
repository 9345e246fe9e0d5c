"""The command of an ``exec`` machine: its words, its sockets, and the file that is run.

A word after the first may hold placeholders, ``{disks.data}``, ``{links.data}``, ``{sockets.web}`` and
``{secrets.key}``: each stands for a path, as the program sees it. ``{{`` and ``}}`` are braces. They are checked here;
the machine puts the paths in.
"""

import os
import pathlib
import re
from collections.abc import Iterator
from typing import Final, cast, get_args

from retinue.cp.directory.model import Directory, MachineEntry, Side, SocketEntry
from retinue.cp.directory.names import check_local_name, read_word
from retinue.cp.directory.positions import KeyPath
from retinue.cp.directory.programs import Problem
from retinue.cp.directory.table import Mistakes, Table, did_you_mean, listed, nearest, quoted, shown

#: Where a program that is named without a folder is looked for, in this order. ``PATH`` is not asked: what a system
#: runs must not depend on who starts it.
FOLDERS: Final = ("/usr/local/bin", "/usr/bin", "/bin")

_COMMAND_EXPECTED: Final = 'a program and its arguments such as ["redis-server", "--port", "0"]'
_PLACEHOLDER: Final = re.compile(
    r"\{\{|\}\}|\{(disks|links|sockets|secrets)\.([a-z][a-z0-9_]*)\}|\{[^{}]*\}|[{}]", re.ASCII
)


def read_command(table: Table) -> tuple[str, ...]:
    """The words of ``exec``; none if anything is wrong with them."""
    words = table.words("exec", _COMMAND_EXPECTED)
    value = table.values["exec"]
    if not isinstance(value, list) or len(words) < len(value):
        return ()
    if not words or not words[0][1]:
        table.wrong("exec", "exec names no program", f"expected {_COMMAND_EXPECTED}")
        return ()
    for index, word in words:
        if "\0" in word:
            message = f"exec has {shown(word)} in it, and no program can be given a NUL character"
            table.mistakes.add((*table.path, "exec", index), table.path, message)
            return ()
    return tuple(word for _, word in words)


def read_sockets(table: Table) -> tuple[SocketEntry, ...]:
    """The entries of the table ``sockets``, but for those that are wrong."""
    expected = 'a table of sockets, as in sockets.web = "listen"'
    sockets = table.table("sockets", None, expected)
    if sockets is None:
        return ()
    found = []
    for name in sockets.values:
        check_local_name(sockets, name, "a socket")
        if side := read_word(sockets, name, get_args(Side)):
            found.append(SocketEntry(name, cast(Side, side)))
    return tuple(found)


def check_sockets(mistakes: Mistakes, machine: MachineEntry) -> None:
    """A socket that connects belongs to an edge; one that listens does not, and is the only one."""
    path: KeyPath = ("machines", machine.name, "sockets")
    edges = [edge.name for edge in machine.uses]
    listening = [socket.name for socket in machine.sockets if socket.side == "listen"]
    for socket in machine.sockets:
        place = (*path, socket.name)
        if socket.side == "connect" and socket.name not in edges:
            message = f"{socket.name}: a socket to connect to is one of the machine's edges, and there is no such edge"
            hint = did_you_mean(socket.name, edges) or f'declare it: uses.{socket.name} = "MACHINE"'
            mistakes.add(place, path, message, hint)
        elif socket.side == "listen" and socket.name in edges:
            where = mistakes.place("machines", machine.name, "uses", socket.name)
            message = f"{socket.name}: a socket to listen at has the name of an edge ({where})"
            mistakes.add(place, path, message, 'give it another name, or write "connect"')
    for name in listening[1:]:
        message = f"{name}: {listening[0]} listens already, and a machine has one socket for all who connect to it"
        mistakes.add((*path, name), path, message, "remove one of the two")


def check_command(mistakes: Mistakes, machine: MachineEntry) -> None:
    """Every placeholder in the words of the command stands for something that the machine has."""
    names: dict[str, list[str]] = {
        "disks": [disk.name for disk in machine.disks],
        "links": [link.name for link in machine.links],
        "sockets": [socket.name for socket in machine.sockets],
        "secrets": [secret.name for secret in machine.secrets],
    }
    for index, word in enumerate(machine.command):
        for whole, table, name in _placeholders(word) if index else ():
            place: KeyPath = ("machines", machine.name, "exec", index)
            if not table:
                tables = listed([f"{{{table}.NAME}}" for table in names])
                message = f"exec has {shown(word)} in it, and {quoted(whole)} is no placeholder"
                mistakes.add(place, place[:2], message, f"there are {tables}; {{{{ and }}}} are braces")
            elif name not in names[table]:
                message = f"exec has {quoted(whole)} in it, and the machine has no {table}.{name}"
                mistakes.add(place, place[:2], message, did_you_mean(name, names[table]))


def executable(directory: Directory, machine: MachineEntry) -> str:
    """The absolute path of the program of an ``exec`` machine, symbolic links in it kept.

    What a program is called tells some of them what to do. FileNotFoundError when it is not there any more.
    """
    found = find(machine.command[0], directory.folder)
    if isinstance(found, Problem):
        raise FileNotFoundError(found.message)
    return found


def find(program: str, folder: pathlib.Path) -> str | Problem:
    """Find a program by its name, by an absolute path, or by ``./`` and a path below ``folder`` (absolute)."""
    if program.startswith("{"):
        return Problem("exec names its program with a placeholder", "write the program's name or path")
    if "/" not in program:
        return _look_up(program, folder)
    path = pathlib.PurePath(program)
    if ".." in path.parts:
        return Problem(f"the program {quoted(program)} has .. in its path", "write its absolute path")
    if not path.is_absolute() and not program.startswith("./"):
        return Problem(f"{quoted(program)} is no path of a program", f"did you mean {quoted('./' + program)}?")
    whole = str(folder / path)
    problem = _problem(whole)
    if problem and not os.path.lexists(whole) and (near := nearest(path.name, _programs(os.path.dirname(whole)))):
        return Problem(problem.message, f"did you mean {quoted(program.removesuffix(path.name) + near)}?")
    return problem or whole


def _look_up(program: str, folder: pathlib.Path) -> str | Problem:
    for place in FOLDERS:
        if os.path.lexists(whole := os.path.join(place, program)):
            return _problem(whole) or whole
    if (folder / program).is_file():
        hint = f"did you mean {quoted('./' + program)}?"
    else:
        near = nearest(program, (name for place in FOLDERS for name in _programs(place)))
        hint = f"did you mean {quoted(near)}?" if near else "install it, or write its absolute path"
    return Problem(f"there is no program {quoted(program)} in {listed(FOLDERS)}", hint)


def _problem(path: str) -> Problem | None:
    """Why this file cannot be run."""
    try:
        if os.path.isdir(path):
            return Problem(f"the program {path} is a folder")
        if os.path.lexists(path) and not os.path.isfile(path):
            return Problem(f"the program {path} is no file")
        if not os.path.lexists(path):
            return Problem(f"there is no program {path}")
        if not os.access(path, os.X_OK):
            return Problem(f"the program {path} may not be executed", f"chmod +x {path}")
    except OSError as error:
        return Problem(f"the program {path} cannot be looked at: {error.strerror}")
    return None


def _programs(folder: str) -> Iterator[str]:
    try:
        yield from os.listdir(folder)
    except OSError:
        return


def _placeholders(word: str) -> Iterator[tuple[str, str, str]]:
    """The placeholders in a word, as (all of it, table, name); table and name are empty for a brace alone."""
    for match in _PLACEHOLDER.finditer(word):
        if match[0] not in ("{{", "}}"):
            yield match[0], match[1] or "", match[2] or ""
