"""What a saved system holds ready for its machines: environment and imported modules. Standard library until called."""

import importlib
import mimetypes
import os
import pkgutil
from collections.abc import Callable, Sequence
from typing import Final

from retinue.cp.host import immortal
from retinue.cp.host.errors import PreloadFailed
from retinue.cp.host.process import resolve

__all__ = ["environment", "warm_up"]

_LAZY = ("encodings.idna", "encodings.latin_1", "encodings.ascii", "stringprep", "logging", "traceback", "tokenize")
"""Standard modules that others import when they are first needed."""


def environment(inherited: dict[str, str]) -> dict[str, str]:
    """The environment of a saved system and so of every machine: nothing of the operator's but the time zone."""
    clean = {
        "LANG": "C.UTF-8",
        "PATH": "/usr/bin:/bin",
        "PYTHONDONTWRITEBYTECODE": "1",
        # One heap for all threads: each further one reserves 64 MiB that count as storage.
        "MALLOC_ARENA_MAX": "1",
    }
    # An interpreter whose libpython lies in an odd place would not start without the last.
    return clean | {name: inherited[name] for name in ("TZ", "LD_LIBRARY_PATH") if name in inherited}


def warm_up(house: Sequence[str], preload: Sequence[str], boot_entry: str) -> Callable[..., object]:
    """Import and use once whatever every machine would otherwise import and set up for itself.

    :param house: packages that every machine uses; those of ours are imported with all their modules.
    :param preload: modules of ``[system] preload``.
    :returns: what ``boot_entry`` (``"module:function"``) names.
    :raises PreloadFailed: one of ``preload`` cannot be imported, or started a thread.
    """
    for name in (*house, *_LAZY):
        _import_whole(name)
    mimetypes.init()
    trio = importlib.import_module("trio")
    trio.run(trio.sleep, 0)
    for name in preload:
        try:
            importlib.import_module(name)
        except Exception as error:
            raise PreloadFailed(name, f"{type(error).__name__}: {error}") from error
    boot: Callable[..., object] = resolve(boot_entry)
    if len(os.listdir("/proc/self/task")) != 1:
        raise PreloadFailed("", "a module started a thread, which a fork would lose")
    immortal.immortalise()
    return boot


# Modules of ours that are for developers, and may need what is not installed here.
_NOT_TO_RUN: Final = frozenset({"testing", "diagram"})


def _import_whole(name: str) -> None:
    module = importlib.import_module(name)
    if name.startswith("retinue."):
        for found in pkgutil.walk_packages(module.__path__, name + "."):
            if found.name.rpartition(".")[2] not in _NOT_TO_RUN:
                importlib.import_module(found.name)
