"""Reading a topology file: all of its mistakes at once, or a directory."""

import os
import pathlib
import re
import tomllib
from collections.abc import Mapping
from typing import Any

from retinue.cp.directory import disks, lives, logs, rules, secrets
from retinue.cp.directory.entries import read_machines, read_system
from retinue.cp.directory.errors import DirectoryError, DirectoryErrors
from retinue.cp.directory.groups import check_groups, read_groups
from retinue.cp.directory.model import Directory
from retinue.cp.directory.positions import DEPTH_LIMIT, scan
from retinue.cp.directory.residence import check_residence
from retinue.cp.directory.table import Mistakes, Table, did_you_mean

#: Bytes. A topology is read whole, and one of this size would have some ten thousand machines.
FILE_LIMIT = 1024**2


def load(
    path: str | os.PathLike[str],
    *,
    text: str | None = None,
    settings: Mapping[str, Mapping[str, Any]] | None = None,
) -> Directory:
    """Read and completely validate a topology file.

    Programs are looked for and their source is read, but nothing is imported or run. With ``text``, what the file had
    in it when it was read before, no file is looked at. ``settings`` take the place of what it says: by machine, then
    by key. Raises DirectoryErrors with every mistake in the file, also if there is just one or the file cannot be read
    at all.
    """
    file = os.fspath(path)
    known = text is not None
    if text is None:
        text = _read(file)
    try:
        document = tomllib.loads(text)
        positions = scan(text)
    except tomllib.TOMLDecodeError as error:
        raise DirectoryErrors([_syntax_error(file, text, error)]) from None
    except ValueError:
        # The one error that tomllib leaves to Python, which refuses integers of thousands of digits.
        raise _unreadable(file, "there is a number with too many digits in it") from None
    except RecursionError:
        raise _unreadable(file, f"its tables and arrays are nested more than {DEPTH_LIMIT} deep") from None
    for name, values in (settings or {}).items():
        for key, value in values.items():
            _put(document["machines"][name], key.split("."), value)
    # The folder is the one the file is named in, even if the file there is a link to another place.
    whole = pathlib.Path(os.path.realpath(os.path.dirname(file) or "."), os.path.basename(file))
    mistakes = Mistakes(file, positions)
    root = Table(mistakes, (), document, ("system", "machines", "groups"))
    system = read_system(root)
    machines = read_machines(root, system)
    groups = read_groups(root)
    rules.check_targets(mistakes, machines)
    rules.check_syslog(mistakes, system, machines)
    rules.check_restarts(mistakes, machines)
    lives.check_lives(mistakes, system, machines)
    logs.check_logs(mistakes, system, machines)
    check_residence(mistakes, system, machines)
    check_groups(mistakes, groups, machines)
    rules.check_network(mistakes, machines)
    rules.check_commands(mistakes, machines)
    disks.check_links(mistakes, machines)
    rules.check_order(mistakes, system, machines)
    if not known:
        rules.check_programs(mistakes, system, machines, whole.parent)
        secrets.check_files(mistakes, machines, whole.parent)
    if mistakes.found:
        raise DirectoryErrors(mistakes.found)
    return Directory(whole, system, tuple(machines), positions, groups, text)


def _put(table: dict[str, Any], keys: list[str], value: Any) -> None:
    """Let a table say something else: ``log.policy`` is a key of the table ``log``."""
    key, *rest = keys
    if rest:
        inner = table.get(key)
        # Its keys stay in the document that was read.
        table[key] = dict(inner) if isinstance(inner, dict) else {}
        _put(table[key], rest, value)
    else:
        table[key] = value


def _read(file: str) -> str:
    try:
        if os.path.isdir(file):
            names = _topologies(file)
            hint = f"name a file in it, such as {names[0]}" if names else ""
            raise _unreadable(file, "it is a folder, not a topology file", hint)
        if os.path.exists(file) and not os.path.isfile(file):
            raise _unreadable(file, "it is not a regular file")
        with open(file, "rb") as stream:
            data = stream.read(FILE_LIMIT + 1)
    except FileNotFoundError:
        folder, name = os.path.split(file)
        if folder and not os.path.isdir(folder):
            raise _unreadable(file, "there is no such file", f"there is no folder {folder}") from None
        hint = did_you_mean(name, _topologies(folder or "."))
        raise _unreadable(file, "there is no such file", hint) from None
    except OSError as error:
        raise _unreadable(file, f"it cannot be read: {error.strerror}") from None
    except ValueError:
        raise _unreadable(file, "that is not the name of a file") from None
    if len(data) > FILE_LIMIT:
        raise _unreadable(file, f"it is larger than {FILE_LIMIT} bytes")
    try:
        text = data.decode()
    except UnicodeDecodeError as error:
        line = data.count(b"\n", 0, error.start) + 1
        raise _unreadable(file, "this line is not UTF-8", "save the file as UTF-8", line) from None
    if text.startswith("\ufeff"):
        raise _unreadable(file, "it begins with a byte order mark", "save it as UTF-8 without one", 1)
    return text


def _unreadable(file: str, message: str, hint: str = "", line: int | None = None) -> DirectoryErrors:
    return DirectoryErrors([DirectoryError(file, line, "", message, hint)])


def _topologies(folder: str) -> list[str]:
    """The names in a folder that look like those of topology files."""
    try:
        return sorted(name for name in os.listdir(folder) if name.endswith(".toml"))
    except OSError:
        return []


def _syntax_error(file: str, text: str, error: tomllib.TOMLDecodeError) -> DirectoryError:
    message = str(error)
    place = re.fullmatch(r"(.*) \(at (?:line (\d+), column (\d+)|end of document)\)", message, re.DOTALL)
    line, column = 1, 1
    if place:
        message = place[1]
        if place[2]:
            line, column = int(place[2]), int(place[3])
        else:
            line, column = text.count("\n") + 1, len(text) - text.rfind("\n")
    hint = ""
    if message == "Cannot overwrite a value":
        message, hint = "this key has a value already", "every key is given once"
    elif twice := re.fullmatch(r"Cannot declare (\(.*\)) twice", message):
        keys = re.findall(r"'([^']*)'", twice[1])
        message, hint = f"the table [{'.'.join(keys)}] is there already", "every table is given once"
    else:
        if message == r"Illegal character '\n'":
            hint = "a string ends on the line it begins on"
        message = f"not valid TOML: {message[:1].lower()}{message[1:]}"
    return DirectoryError(file, line, "", message, hint, column=column)
