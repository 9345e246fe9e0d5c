"""Finding the program of a machine: a module with ``main``, an ASGI or WSGI application, or a native program."""

import importlib
import inspect
import traceback
from collections.abc import Awaitable, Callable, Mapping
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


def load(kind: str, name: str, arguments: Mapping[str, Any] | None = None) -> Program:
    """Import the program ``name`` (``module``, or ``module:attribute`` for the kinds ``asgi`` and ``wsgi``).

    ``arguments`` are those of the control program's ``load``, of which some kinds need more than the name. This runs
    the program's own code, but not that of a native one (kind ``exec``). Raises
    :exc:`~retinue.svm.errors.ProgramError`.
    """
    arguments = arguments or {}
    if kind == "exec":
        from retinue.svm.command import read_command
        from retinue.svm.native import main_of

        return Program(name, main_of(read_command(arguments)), None)
    module_name, _, attribute = name.partition(":")
    try:
        module = importlib.import_module(module_name)
    except BaseException as exc:
        # Also SystemExit: a module that calls sys.exit() on import is a program that cannot be run.
        raise ProgramError(f"cannot import {module_name}:\n{_own_traceback(exc)}") from exc
    if kind in ("asgi", "wsgi"):
        app = _application(module, attribute, kind)
        return Program(name, _asgi_main(app) if kind == "asgi" else _wsgi_main(app, arguments), None)
    main = getattr(module, "main", None)
    if not inspect.iscoroutinefunction(main):
        raise ProgramError(f"the module {module_name} has no  async def main(vm)")
    config_class = getattr(module, "Config", None)
    if config_class is not None and not (isinstance(config_class, type) and attrs.has(config_class)):
        raise ProgramError(f"{module_name}.Config is not an attrs class")
    return Program(name, main, config_class)


def _application(module: Any, attribute: str, kind: str) -> Any:
    app: Any = module
    for part in attribute.split("."):
        app = getattr(app, part, None)
    if not callable(app):
        raise ProgramError(f"the module {module.__name__} has no {kind.upper()} application {attribute!r}")
    return app


def _asgi_main(app: Any) -> Main:
    from retinue.svm.asgi import serve_asgi

    async def main(vm: Any) -> None:
        await serve_asgi(vm, app)

    return main


def _wsgi_main(app: Any, arguments: Mapping[str, Any]) -> Main:
    from retinue.svm.wsgi import THREADS, serve_wsgi

    async def main(vm: Any) -> None:
        await serve_wsgi(vm, app, arguments.get("threads", THREADS))

    return main


def _own_traceback(error: BaseException) -> str:
    """The traceback without the frames of the import machinery."""
    frames = [f for f in traceback.extract_tb(error.__traceback__) if "importlib" not in f.filename]
    lines = traceback.format_list(frames[1:]) + traceback.format_exception_only(error)
    return "".join(lines).rstrip()
