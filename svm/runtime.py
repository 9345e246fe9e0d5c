"""The trio side of a machine: obey the control program, run the program.

The control path is this machine's path to ``*CP``. The control program calls ``load`` (import the program, check its
config), ``start`` (run ``main``), ``offer`` (another machine opens a path, the descriptor comes along), ``meters``
(what passed along the edges), ``self-test`` (of a scratch machine) and ``stop``; the machine calls ``ready``,
``connect`` and ``rebind``.
"""

import logging
import socket
from typing import Any, Final

import trio

from retinue.pipes import Message, Path, PathError, PathSevered, Rejected, SocketTransport, wire
from retinue.pipes.message import close_all
from retinue.svm import config, program, selftest
from retinue.svm.edge import Edge
from retinue.svm.errors import ConfigError, ProgramError, mistakes_to_wire
from retinue.svm.machine import Machine

# sysexits(3); the control program reads them.
EXIT_OK: Final = 0
EXIT_PROGRAM_FAILED: Final = 70  # EX_SOFTWARE: main raised
EXIT_CP_GONE: Final = 69  # EX_UNAVAILABLE: the control path is lost

# Messages that may be outstanding on the control path: offered paths wait there, and paths that are to be bound again;
# a stop must still get through. The control program allows fewer.
CONTROL_LIMIT: Final = wire.MAX_LIMIT

_log = logging.getLogger("retinue.svm")


class Runtime:
    """Runs one machine over its control path."""

    def __init__(self, control: Path, nursery: trio.Nursery) -> None:
        self._control = control
        self._nursery = nursery
        self._machine: Machine[Any] | None = None
        self._program: program.Program | None = None
        self._running = False
        self._main_scope = trio.CancelScope()
        self.exit_code = EXIT_OK
        self._verbs = {
            "load": self._load,
            "start": self._start,
            "offer": self._offer,
            "meters": self._meters,
            "self-test": self._self_test,
            "stop": self._stop,
        }

    async def obey(self) -> None:
        """Serve the control program until the path to it is lost."""
        await self._control.serve(self._handle)
        if isinstance(self._control.severed, PathSevered):
            self.exit_code = EXIT_CP_GONE
        self._nursery.cancel_scope.cancel()

    async def _handle(self, message: Message) -> Any:
        verb, arguments = message.body
        if verb != "offer":
            close_all(message.descriptors)
        return await self._verbs[verb](arguments, message)

    async def _load(self, arguments: dict[str, Any], _: Message) -> None:
        try:
            self._program = program.load(arguments["kind"], arguments["program"], arguments)
            settings = config.structure(arguments["config"], self._program.config_class, arguments["program"])
        except ProgramError as exc:
            raise Rejected("bad-program", exc.text) from None
        except ConfigError as exc:
            raise Rejected("bad-config", str(exc), mistakes_to_wire(exc)) from None
        self._machine = Machine(
            name=arguments["name"],
            config=settings,
            edges={name: _edge(name, about) for name, about in arguments["edges"].items()},
            disks=arguments["disks"],
            control=self._control,
            nursery=self._nursery,
            secrets=arguments["secrets"],
        )

    async def _start(self, _: dict[str, Any], message: Message) -> None:
        self._running = True
        self._nursery.start_soon(self._run_main)

    async def _offer(self, arguments: dict[str, Any], message: Message) -> None:
        (descriptor,) = message.descriptors
        if self._machine is None:
            close_all((descriptor,))
            raise Rejected("not-ready", "the machine is not loaded")
        peer, limit = arguments["peer"], arguments["limit"]
        await self._machine.offer(peer, limit, descriptor, ident=arguments["path"], edge=arguments["edge"])

    async def _meters(self, _: dict[str, Any], message: Message) -> Any:
        return {"uses": {}, "serves": {}} if self._machine is None else self._machine.meters()

    async def _self_test(self, arguments: dict[str, Any], _: Message) -> Any:
        profile = arguments["profile"]
        return {"attempts": selftest.count(profile), "succeeded": selftest.succeeded(profile)}

    async def _stop(self, _: dict[str, Any], message: Message) -> None:
        if self._machine is None or not self._running:
            self._nursery.cancel_scope.cancel()
            return
        self._machine.stop()
        if not self._machine.heeds_stopping:
            self._main_scope.cancel()

    async def _run_main(self) -> None:
        assert self._program is not None
        assert self._machine is not None
        try:
            with self._main_scope:
                await self._program.main(self._machine)
        except SystemExit as exc:
            self.exit_code = _exit_code(exc)
            if self.exit_code != EXIT_OK:
                self._machine.abandon(f"{self._machine.name} failed")
        except Exception as exc:
            self.exit_code = EXIT_PROGRAM_FAILED
            _log.critical("the program %s failed", self._program.name, exc_info=exc)
            self._machine.abandon(f"{self._machine.name} failed")
        self._control.sever("finished")
        self._nursery.cancel_scope.cancel()


def _edge(name: str, about: dict[str, Any]) -> Edge:
    """An edge out of the arguments of ``load``; when it is connected is the business of the kind ``exec`` alone."""
    return Edge(name, **{key: value for key, value in about.items() if key != "lazy"})


def _exit_code(leaving: SystemExit) -> int:
    """What sys.exit() was called with, read as the interpreter does."""
    if leaving.code is None:
        return EXIT_OK
    if isinstance(leaving.code, int):
        return leaving.code & 0xFF
    _log.critical("%s", leaving.code)
    return 1


async def run(control: socket.socket) -> int:
    """Run the machine at the end of a control socket; returns its exit code."""
    async with trio.open_nursery() as nursery:
        path = Path(SocketTransport(control), name="*CP", peer="*CP", limit=CONTROL_LIMIT)
        await nursery.start(path.run)
        runtime = Runtime(path, nursery)
        nursery.start_soon(runtime.obey)
    return runtime.exit_code


def run_to_exit_code(control: socket.socket) -> int:
    """:func:`run` on a fresh trio loop, with what escapes it told to the log."""
    try:
        return trio.run(run, control)
    except PathError:
        return EXIT_CP_GONE
    except BaseException as exc:
        _log.critical("the machine failed", exc_info=exc)
        return EXIT_PROGRAM_FAILED
