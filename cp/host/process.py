"""How every long-lived process of a system is started: an isolated interpreter that is told everything explicitly.

Standard library only. A child gets one JSON object as its only argument::

    {"path": [...],            # sys.path, whole
     "entry": "module:function",   # called with this object; what it returns is the exit status
     "parent": int,            # pid it dies with (0: nobody)
     "title": str,             # its name in ps
     ...}                      # whatever else the entry wants

It inherits standard streams and the descriptors named in the call, nothing else.
"""

import importlib
import json
import os
import sys
from collections.abc import Mapping, Sequence
from typing import Any, NoReturn

from retinue.cp.host import libc

__all__ = ["BOOTSTRAP", "TITLE", "command", "enter", "import_path", "start"]

BOOTSTRAP = (
    "import sys,json;a=json.loads(sys.argv[1]);sys.path[:]=a['path'];from retinue.cp.host.process import enter;enter(a)"
)
"""The program text of every process; all it does is take over the parent's sys.path and call :func:`enter`."""


TITLE = "control-program"
"""Of the one in office, as ps shows it."""


def import_path() -> list[str]:
    """sys.path as a child should have it: absolute, existing, and without the folder of the script that was started.

    Python puts the script's folder (or the working directory) first; for a command that is ``/usr/local/bin`` or
    ``~/bin``, which is no place to import from and none that a machine should be able to read.
    """
    entries = list(sys.path)
    if not sys.flags.safe_path and entries and sys.argv[:1] not in ([], [""], ["-c"]):
        script = os.path.dirname(os.path.realpath(sys.argv[0]))
        if os.path.realpath(entries[0] or ".") == script:
            del entries[0]
    return list(dict.fromkeys(entry for entry in entries if os.path.isabs(entry) and os.path.exists(entry)))


def command(arguments: Mapping[str, Any], *, site: bool) -> list[str]:
    """The argument vector of a child.

    ``site`` lets the interpreter run its site module, so that import hooks of editable installs exist; without it
    nothing but the standard library gets into the process by itself.
    """
    return [sys.executable, "-I", *([] if site else ["-S"]), "-c", BOOTSTRAP, json.dumps(arguments)]


def start(
    arguments: Mapping[str, Any], *, inherit: Sequence[int], environment: Mapping[str, str], site: bool = True
) -> int:
    """Start a child of this process and return its pid. It is killed when the calling process dies.

    Python opens every descriptor close-on-exec, so the child has 0, 1, 2 and the numbers in ``inherit``.
    """
    vector = command({**arguments, "parent": os.getpid()}, site=site)
    for descriptor in inherit:
        os.set_inheritable(descriptor, True)
    try:
        return os.posix_spawn(vector[0], vector, environment)
    finally:
        for descriptor in inherit:
            os.set_inheritable(descriptor, False)


def resolve(entry: str) -> Any:
    """The object that ``"module:name"`` names."""
    module, _, name = entry.partition(":")
    return getattr(importlib.import_module(module), name)


def enter(arguments: dict[str, Any]) -> NoReturn:
    """First code of ours in a child: tie its life to its parent, then call the entry."""
    libc.set_process_name(arguments["title"])
    if arguments["parent"]:
        try:
            libc.die_with_parent(arguments["parent"])
        except ProcessLookupError:
            sys.exit(1)
    # No neighbour of the same user, and no core file, shall see the memory of a process that holds every descriptor.
    libc.prctl(libc.PR_SET_DUMPABLE, 0)
    sys.exit(resolve(arguments["entry"])(arguments))
