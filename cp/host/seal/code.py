"""Which files of the host are code, so that a machine may read them. Standard library only.

The line is drawn around modules, not folders: an entry of sys.path may be somebody's home, and the folder of a topology
holds keys and data beside the programs.
"""

import errno
import importlib.machinery
import os
import site
import sys
import sysconfig
from collections.abc import Iterable, Iterator

__all__ = [
    "DISTRIBUTION",
    "NAME_SERVICE",
    "find_modules",
    "interpreter_paths",
    "library_paths",
    "outermost",
    "program_paths",
    "resolved",
]

_SUFFIXES = tuple(importlib.machinery.all_suffixes())

SHARED_LIBRARIES = (
    "/lib",
    "/lib64",
    "/usr/lib",
    "/usr/lib64",
    "/usr/local/lib",
    "/etc/ld.so.cache",
    "/nix/store",
    "/gnu/store",
)
"""Where the dynamic linker looks. Distributions keep no secrets there, every user may read them."""

TIME_ZONES = ("/etc/localtime", "/usr/share/zoneinfo")

NAME_SERVICE = (
    "/etc/hosts",
    "/etc/resolv.conf",
    "/etc/nsswitch.conf",
    "/etc/host.conf",
    "/etc/gai.conf",
    "/etc/services",
    "/etc/protocols",
)
"""What getaddrinfo(3) reads; only a machine with the host's network has a use for it."""

DISTRIBUTION = (
    "/usr",
    "/bin",
    "/sbin",
    "/lib",
    "/lib32",
    "/lib64",
    "/libx32",
    "/etc/alternatives",
    "/etc/ld.so.cache",
    "/nix/store",
    "/gnu/store",
)
"""Where a distribution keeps programs and what they are made of; only an ``exec`` machine may run any of it."""

LINKS_MAX = 40
"""Symbolic links on one way, as in the kernel (MAXSYMLINKS)."""


def interpreter_paths() -> list[str]:
    """The interpreter's own library, the shared libraries and the time zones: the same for every machine."""
    standard = {sysconfig.get_path(name) for name in ("stdlib", "platstdlib")}
    own = [
        os.path.join(prefix, folder)
        for prefix in (sys.base_prefix, sys.base_exec_prefix)
        for folder in ("lib", "lib64")
    ]
    # base_prefix is /usr for a distribution's Python: then these are among the shared libraries already.
    return _once([*standard, *own, *SHARED_LIBRARIES, *TIME_ZONES])


def library_paths(import_path: Iterable[str]) -> list[str]:
    """What the entries of sys.path hold: a site-packages folder whole, of any other one its modules and packages."""
    whole = tuple(os.path.realpath(folder) + os.sep for folder in _package_folders())
    granted = tuple(os.path.realpath(path) + os.sep for path in interpreter_paths())
    found: list[str] = []
    for entry in import_path:
        folder = os.path.realpath(entry) + os.sep
        if folder.startswith(granted):
            continue
        if folder.startswith(whole) or os.path.isfile(entry):
            found.append(entry)
        else:
            found.extend(_modules(entry))
    return _once(found)


def program_paths(folders: Iterable[str]) -> list[str]:
    """The modules and packages in each of ``folders``; nothing else that lies there."""
    return _once(path for folder in folders for path in _modules(folder))


def find_modules(folders: Iterable[str], path: Iterable[str]) -> None:
    """Have the import system know which modules there are in ``folders``, which may have changed, and on ``path``.

    A machine may not list them once it is sealed, and need not list them if its saved system has.
    """
    for folder in folders:
        sys.path_importer_cache.pop(folder, None)
    importlib.machinery.PathFinder.find_spec("retinue_no_such_module", [*folders, *path])


def resolved(path: str, links: dict[str, str]) -> str:
    """Where an absolute path leads; every symbolic link on the way is added to ``links``, with what it says."""
    here, left, hops = "", path.split("/")[::-1], 0
    while left:
        name = left.pop()
        if name in ("", "."):
            continue
        if name == "..":
            here = here.rpartition("/")[0]
            continue
        try:
            target = os.readlink(f"{here}/{name}")
        except OSError:  # no link, or nothing at all
            here = f"{here}/{name}"
            continue
        if (hops := hops + 1) > LINKS_MAX:
            raise OSError(errno.ELOOP, os.strerror(errno.ELOOP), path)
        links[f"{here}/{name}"] = target
        if target.startswith("/"):
            here = ""
        left += target.split("/")[::-1]
    return here or "/"


def outermost(paths: Iterable[str]) -> list[str]:
    """Those that lie in no other one of them, sorted."""
    kept: list[str] = []
    for path in sorted(set(paths), key=lambda path: path.split("/")):
        if not kept or not path.startswith(kept[-1] + "/"):
            kept.append(path)
    return kept


def _package_folders() -> list[str]:
    paths = [sysconfig.get_path("purelib"), sysconfig.get_path("platlib"), *site.getsitepackages()]
    return [*paths, site.getusersitepackages()]


def _modules(folder: str) -> Iterator[str]:
    """Modules, packages (folders with ``__init__.py``) and compiled modules of one folder."""
    try:
        entries = list(os.scandir(folder))
    except OSError:
        return
    for entry in entries:
        if entry.name == "__pycache__" or (entry.name.endswith(_SUFFIXES) and entry.is_file()):
            yield entry.path
        elif _is_package(entry.path):
            yield entry.path
            yield from _linked(entry.path)


def _linked(package: str) -> Iterator[str]:
    """Subpackages and modules that are links out of their package (a source tree that maps its folders so)."""
    for entry in list(os.scandir(package)):
        if entry.is_symlink() and (_is_package(entry.path) or (entry.name.endswith(_SUFFIXES) and entry.is_file())):
            yield entry.path


def _is_package(path: str) -> bool:
    return os.path.isfile(os.path.join(path, "__init__.py"))


def _once(paths: Iterable[str | None]) -> list[str]:
    return list(dict.fromkeys(path for path in paths if path))
