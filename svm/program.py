"""Finding the program of a machine: a module with ``main``, or an ASGI application."""

import importlib
import inspect
import traceback
from collections.abc import Awaitable, Callable
from typing import Any

import attrs

from retinue.svm.errors import ProgramError

Main = Callable[[Any], Awaitable[None]]


@attrs.frozen
class Program:
    """What a machine runs: ``main(vm)`` and the class of its configuration, if it has one."""

    name: str
    main: Main
    config_class: type | None


def load(kind: str, name: str) -> Program:
    """Import the program ``name`` (``module``, or ``module:attribute`` for the kind ``asgi``).

    This runs the program's own code. Raises :exc:`~retinue.svm.errors.ProgramError`.
    """
    module_name, _, attribute = name.partition(":")
    try:
        module = importlib.import_module(module_name)
    except BaseException as exc:
        # Also SystemExit: a module that calls sys.exit() on import is a program that cannot be run.
        raise ProgramError(f"cannot import {module_name}:\n{_own_traceback(exc)}") from exc
    if kind == "asgi":
        return Program(name, _asgi_main(module, attribute), None)
    main = getattr(module, "main", None)
    if not inspect.iscoroutinefunction(main):
        raise ProgramError(f"the module {module_name} has no  async def main(vm)")
    config_class = getattr(module, "Config", None)
    if config_class is not None and not (isinstance(config_class, type) and attrs.has(config_class)):
        raise ProgramError(f"{module_name}.Config is not an attrs class")
    return Program(name, main, config_class)


def _asgi_main(module: Any, attribute: str) -> Main:
    app: Any = module
    for part in attribute.split("."):
        app = getattr(app, part, None)
    if not callable(app):
        raise ProgramError(f"the module {module.__name__} has no ASGI application {attribute!r}")
    from retinue.svm.asgi import serve_asgi

    async def main(vm: Any) -> None:
        await serve_asgi(vm, app)

    return main


def _own_traceback(error: BaseException) -> str:
    """The traceback without the frames of the import machinery."""
    frames = [f for f in traceback.extract_tb(error.__traceback__) if "importlib" not in f.filename]
    lines = traceback.format_list(frames[1:]) + traceback.format_exception_only(error)
    return "".join(lines).rstrip()
