"""The modules that a simulated process has imported for itself, and the folders it imports them from.

In reality each machine is a process with modules of its own. Here they are put into :data:`sys.modules` whenever a
task of the process runs, and taken out again. Installed modules, those of the standard library and Retinue's are
everybody's.
"""

import importlib
import os
import sys
from collections.abc import Mapping, Sequence
from types import ModuleType

__all__ = ["Modules"]


class Modules:
    """What one process has imported from its own ``folders``, to begin with ``given``."""

    def __init__(self, folders: Sequence[str], given: Mapping[str, ModuleType] | None = None) -> None:
        self._folders = list(folders)
        self._inside = tuple(folder + os.sep for folder in folders)
        self._own: dict[str, ModuleType] = dict(given or {})
        self._shadowed: dict[str, ModuleType] = {}
        self._count = 0
        self._fresh = True

    def enter(self) -> None:
        """A task of the process runs from now on."""
        sys.path[:0] = self._folders
        if self._fresh:
            # What a test has in sys.modules under a name in these folders is not this process's.
            self._fresh = False
            if self._folders:
                importlib.invalidate_caches()
            self._shadowed = self._found()
            for name in self._shadowed:
                del sys.modules[name]
        for name, module in self._own.items():
            if (other := sys.modules.get(name)) is not None:
                self._shadowed[name] = other
            sys.modules[name] = module
        self._count = len(sys.modules)

    def leave(self) -> None:
        """A task of somebody else's runs from now on."""
        if self._folders and sys.path[: len(self._folders)] == self._folders:
            del sys.path[: len(self._folders)]
        if len(sys.modules) != self._count:
            self._own |= self._found()
        for name in self._own:
            sys.modules.pop(name, None)
        sys.modules.update(self._shadowed)
        self._shadowed = {}

    def _found(self) -> dict[str, ModuleType]:
        if not self._folders:
            return {}
        return {name: module for name, module in list(sys.modules.items()) if self._is_own(module)}

    def _is_own(self, module: ModuleType) -> bool:
        # As it was found: with the folder in front, and no links resolved, which would take a second for them all.
        file = getattr(module, "__file__", None)
        if file is None:
            spec = getattr(module, "__spec__", None)
            file = next(iter(getattr(spec, "submodule_search_locations", None) or ()), "")
        return type(file) is str and file.startswith(self._inside)
