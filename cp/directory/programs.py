"""Where the programs of a topology are, found without importing or running any of them.

A program is looked for beside the topology file first and then where Python finds installed modules, as Python does
for a script and its folder. If it lies beside the topology file, its machine may read all code in that folder; so a
folder that holds more than a system's own files is refused.
"""

import importlib
import os
import pathlib
import pkgutil
import pwd
import sys
from collections.abc import Collection
from importlib.machinery import ModuleSpec, PathFinder, SourceFileLoader

from attrs import frozen

from retinue.cp.directory.bindings import Bindings, bindings
from retinue.cp.directory.model import Directory, Kind, MachineEntry
from retinue.cp.directory.table import did_you_mean, nearest, quoted

#: What the saved system has imported, and what that imports in turn. A program of the same name, or a package with
#: programs in it, would never be reached.
ALREADY_IMPORTED = frozenset(
    {
        *("attr", "attrs", "cattrs", "idna", "msgpack", "outcome", "retinue", "sniffio", "sortedcontainers", "trio"),
        "typing_extensions",
    }
)

#: Folders that hold more than one system's files, whatever is in them.
_BROAD = (
    *("/", "/bin", "/boot", "/dev", "/dev/shm", "/etc", "/home", "/lib", "/lib64", "/media", "/mnt", "/opt", "/proc"),
    *("/root", "/run", "/sbin", "/srv", "/sys", "/tmp", "/usr", "/usr/bin", "/usr/lib", "/usr/local", "/usr/share"),
    *("/usr/src", "/var", "/var/lib", "/var/log", "/var/run", "/var/tmp"),
)
# Accounts below this are the system's own (login.defs, UID_MIN); their "homes" are folders such as /usr/games.
_FIRST_USER = 1000


@frozen
class Found:
    """A module that exists. ``source`` is its file, or None if it is not plain source (an extension, a zip).

    ``beside`` tells whether it lies in the topology file's folder.
    """

    source: pathlib.Path | None
    beside: bool


@frozen
class Problem:
    """What is wrong with a program, and what would cure it, in words; the caller knows where it was named."""

    message: str
    hint: str = ""


def find(module: str, folder: pathlib.Path) -> Found | Problem:
    """Find a module by its dotted name, in ``folder`` (absolute) and then on ``sys.path``. Nothing is imported.

    ``folder`` comes first, but as everywhere in Python a module or a package with an ``__init__.py`` anywhere is
    preferred to a folder without one.
    """
    # A long-lived process may have looked here before the file was written.
    importlib.invalidate_caches()
    # Relative entries mean the folder one happens to stand in, and a machine stands in another.
    places = [str(folder), *(place for place in sys.path if os.path.isabs(place))]
    parts = module.split(".")
    for depth in range(1, len(parts)):
        parent = _spec(parts[:depth], places, folder)
        if isinstance(parent, Problem):
            return parent
        if parent.submodule_search_locations is None:
            name = ".".join(parts[:depth])
            message = f"no module {quoted(module)}: {quoted(name)} is a module, not a package"
            return Problem(message, f"did you mean {quoted(name)}?")
        places = list(parent.submodule_search_locations)
    spec = _spec(parts, places, folder)
    if isinstance(spec, Problem):
        return spec
    if spec.origin is None or spec.loader is None:
        inside = [f"{module}.{name}" for name in _modules(list(spec.submodule_search_locations or ()))]
        message = f"{quoted(module)} is a folder without an __init__.py, so there is no code in it"
        return Problem(message, did_you_mean(module, inside))
    origin = pathlib.Path(spec.origin)
    # A package's own file is one folder deeper than its name says.
    depth = len(parts) if spec.submodule_search_locations is not None else len(parts) - 1
    beside = len(origin.parents) > depth and origin.parents[depth] == folder
    return Found(origin if isinstance(spec.loader, SourceFileLoader) else None, beside)


def _spec(parts: list[str], places: list[str], folder: pathlib.Path) -> ModuleSpec | Problem:
    # The last part of the name is all that a path finder looks at. Given the whole name it would want the parents
    # to be imported.
    return PathFinder.find_spec(parts[-1], places) or _missing(parts, places, folder)


def check(kind: Kind, program: str, folder: pathlib.Path, preload: Collection[str] = ()) -> Problem | None:
    """What would keep this Python program from starting, as far as that can be told without running it.

    That of an ``exec`` machine is looked for by :func:`retinue.cp.directory.commands.find`.
    """
    module, _, attribute = program.partition(":")
    found = find(module, folder)
    if isinstance(found, Problem):
        return found
    top = module.partition(".")[0]
    taken = sys.stdlib_module_names | ALREADY_IMPORTED | {name.partition(".")[0] for name in preload}
    if found.beside and top in taken:
        owner = "of the standard library" if top in sys.stdlib_module_names else "that every machine has already"
        return Problem(
            f"{quoted(module)} beside the topology has the name of a module {owner}", "give the program another name"
        )
    if found.source is None:
        return None
    try:
        bound = bindings(found.source.read_bytes(), str(found.source))
    except OSError as error:
        return Problem(f"cannot read the program {found.source}: {error.strerror}")
    except SyntaxError as error:
        return Problem(f"the program is not valid Python: {found.source}:{error.lineno or 1}: {error.msg}")
    return _check_main(module, bound) if kind == "program" else _check_attribute(module, attribute, bound)


def check_preload(module: str, folder: pathlib.Path) -> Problem | None:
    """What would keep this module from being imported before any machine is made, or ought to."""
    if module in sys.builtin_module_names:
        return None
    found = find(module, folder)
    if isinstance(found, Problem):
        return found
    if found.beside:
        # It would run outside every machine, with the rights of whoever starts the system.
        return Problem(f"{quoted(module)} lies beside the topology", "only installed modules can be preloaded")
    return None


def code_folders(directory: Directory, machine: MachineEntry | None = None) -> tuple[str, ...]:
    """The folders to put in front of ``sys.path`` for the programs of a directory, or for that of one machine.

    This is the topology file's folder if a program (or the one machine's) lies in it, and otherwise nothing. A
    machine may read all code in these folders; that of a native program may read its program and nothing else.
    """
    machines = directory.machines if machine is None else (machine,)
    beside = any(one.kind != "exec" and lies_beside(one.module, directory.folder) for one in machines)
    return (str(directory.folder),) if beside else ()


def lies_beside(module: str, folder: pathlib.Path) -> bool:
    """Whether a module is found in ``folder`` (absolute), so that its machine has to read it there."""
    found = find(module, folder)
    return isinstance(found, Found) and found.beside


def broad(folder: pathlib.Path) -> str | None:
    """Why a machine must not be given the whole of ``folder`` (absolute, links resolved) to read, or None."""
    homes = {pathlib.Path(os.path.realpath(home)) for home in _homes()}
    if folder in homes:
        return "a home directory"
    shared = {*_BROAD, *filter(None, map(os.environ.get, ("TMPDIR", "XDG_RUNTIME_DIR")))}
    if str(folder) in {os.path.realpath(path) for path in shared}:
        return "a folder that many programs share"
    if any(home.is_relative_to(folder) for home in homes):
        return "a folder with home directories in it"
    return None


def _check_main(module: str, bound: Bindings) -> Problem | None:
    if "main" in bound.plain:
        return Problem(
            f"main in the module {quoted(module)} is not asynchronous", "write async def main(vm) instead of def main"
        )
    if "main" in bound.names or not bound.certain:
        return None
    return Problem(f"the module {quoted(module)} has no main", "a program defines async def main(vm)")


def _check_attribute(module: str, attribute: str, bound: Bindings) -> Problem | None:
    if attribute in bound.names or not bound.certain:
        return None
    near = nearest(attribute, bound.names)
    return Problem(
        f"the module {quoted(module)} has no {quoted(attribute)}", f"did you mean {quoted(near)}?" if near else ""
    )


def _missing(parts: list[str], places: list[str], folder: pathlib.Path) -> Problem:
    name, last = ".".join(parts), parts[-1]
    if len(parts) == 1:
        looked = f"looked for {last}.py and {last}/__init__.py in {folder}, then among the installed modules"
        near = nearest(last, [*_modules([str(folder)]), "retinue"])
    else:
        parent = ".".join(parts[:-1])
        looked = f"looked for {last}.py and {last}/__init__.py in the package {quoted(parent)} ({places[0]})"
        near = nearest(last, _modules(places))
        near = near and f"{parent}.{near}"
    return Problem(f"no module {quoted(name)}: {looked}", f"did you mean {quoted(near)}?" if near else "")


def _modules(places: Collection[str]) -> list[str]:
    """The names of the modules and packages in these folders."""
    return [info.name for info in pkgutil.iter_modules(list(places))]


def _homes() -> list[str]:
    homes = [account.pw_dir for account in pwd.getpwall() if account.pw_uid >= _FIRST_USER]
    homes += [account.pw_dir for account in pwd.getpwall() if account.pw_uid in (0, os.getuid())]
    homes += [home] if (home := os.environ.get("HOME")) else []
    # A home that was never made, or is the root (as some system accounts have it), says nothing about a folder.
    return [home for home in homes if home != "/" and os.path.isdir(home)]
