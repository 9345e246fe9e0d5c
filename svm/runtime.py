"""The trio side of a machine: obey the control program, run the program.

The control path is this machine's path to ``*CP``. The control program calls ``load`` (import the program, check its
config), ``start`` (run ``main``), ``offer`` (another machine opens a path, the descriptor comes along), ``meters``
(what passed along the edges), ``last`` (what nobody has answered), ``edge`` (how many machines are behind one),
``reload`` (another config), ``watch`` (a heartbeat, or none), ``shrink`` (give storage back), ``page-out`` (of its own
pages), ``evict`` (unmap parts of segments), ``log`` (what it does when its log is full), ``self-test`` (of a scratch
machine), ``stop``, and ``drain`` (stop, and leave the served paths to a successor); the machine calls ``ready``,
``connect``, ``rebind``, ``segment`` and ``socket``.

The control path outlives the control program: when its descriptor has ended, another one comes by the descriptor of the
log. What this machine has asked is then asked again; what it was asked by the one before is answered to nobody.
"""

import logging
import socket
from typing import Any, Final

import trio

from retinue.pipes import Message, Path, PathError, PathSevered, Rejected, SocketTransport, Transport, tracing, wire
from retinue.pipes.message import close_all
from retinue.pipes.parcel import CONTROL, receive_descriptor
from retinue.svm import config, paging, program, selftest
from retinue.svm import log as records
from retinue.svm.drops import tell_drops
from retinue.svm.edge import Edge
from retinue.svm.errors import ConfigError, ProgramError, mistakes_to_wire
from retinue.svm.heartbeat import Heart, Heartbeat
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

    def __init__(self, control: Path, nursery: trio.Nursery, heart: Heart | None = None) -> None:
        self._control = control
        self._nursery = nursery
        self._heart = heart
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
            "last": self._last,
            "edge": self._edge,
            "reload": self._reload,
            "watch": self._watch,
            "shrink": self._shrink,
            "page-out": self._page_out,
            "drain": self._drain,
            "evict": self._evict,
            "log": self._log_policy,
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
        with tracing(None):  # the program is begun here, and nobody's request is the reason for all that it does
            return await self._verbs[verb](arguments, message)

    async def _load(self, arguments: dict[str, Any], _: Message) -> None:
        records.set_policy(arguments.get("log", ""))
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
        if self._machine is None:
            return {"uses": {}, "serves": {}}
        return {**self._machine.meters(), **self._machine.engagements()}

    async def _last(self, arguments: dict[str, Any], _: Message) -> Any:
        return {"uses": {}, "serves": {}} if self._machine is None else self._machine.last(arguments["edge"])

    async def _edge(self, arguments: dict[str, Any], _: Message) -> None:
        self._loaded().resize(arguments["name"], arguments["instances"])

    async def _reload(self, arguments: dict[str, Any], _: Message) -> None:
        machine = self._loaded()
        assert self._program is not None
        if not machine.reloadable:
            raise Rejected("not-reloadable", f"the program {self._program.name} takes no other config while it runs")
        try:
            settings = config.structure(arguments["config"], self._program.config_class, self._program.name)
        except ConfigError as exc:
            raise Rejected("bad-config", str(exc), mistakes_to_wire(exc)) from None
        failure: Exception | None = None
        done = trio.Event()

        async def reload() -> None:
            nonlocal failure
            try:
                await machine.reload(settings)
            except Exception as exc:
                failure = exc
            done.set()

        # In a task of its own: a control program that dies meanwhile must not leave it half done.
        self._nursery.start_soon(reload)
        await done.wait()
        match failure:
            case None:
                return
            case ConfigError():
                raise Rejected("bad-config", str(failure), mistakes_to_wire(failure))
            case Rejected():
                raise failure
        _log.error("the program %s could not take another config", self._program.name, exc_info=failure)
        raise Rejected("failed", f"the program raised {type(failure).__name__}")

    def _loaded(self) -> Machine[Any]:
        if self._machine is None:
            raise Rejected("not-ready", "the machine is not loaded")
        return self._machine

    async def _watch(self, arguments: dict[str, Any], message: Message) -> None:
        if self._heart is None:
            return
        try:
            stacks = self._heart.watch(float(arguments["every"]))
            await message.reply(None, descriptors=() if stacks is None else (stacks,))
        except (OSError, RuntimeError) as exc:
            raise Rejected("exhausted", f"there is no room for a heartbeat: {exc}") from exc

    async def _page_out(self, arguments: dict[str, Any], _: Message) -> int:
        try:
            return paging.page_out(arguments["ranges"])
        except ValueError as exc:
            raise Rejected("bad-ranges", str(exc)) from None

    async def _shrink(self, arguments: dict[str, Any], _: Message) -> Any:
        return {"heeded": self._machine is not None and self._running and self._machine.shrink(arguments["bytes"])}

    async def _drain(self, _: dict[str, Any], message: Message) -> None:
        if self._machine is None or not self._running:
            self._nursery.cancel_scope.cancel()
            return
        await self._machine.drain()
        if not self._machine.heeds_stopping:
            self._main_scope.cancel()

    async def _log_policy(self, arguments: dict[str, Any], _: Message) -> None:
        records.set_policy(arguments["policy"])

    async def _evict(self, arguments: dict[str, Any], _: Message) -> None:
        machine = self._loaded()
        for name, offset, length in arguments["segments"]:
            machine.unmap(name, offset, length)

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
        self._machine.leave()
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


async def run(control: socket.socket, log: socket.socket | None = None, *, heart: Heart | None = None) -> int:
    """Run the machine at the end of a control socket; returns its exit code.

    ``log`` is the socket of ``*LOG``, on which another control socket may come when this one has ended; without it
    that is the end. ``heart`` says that the machine lives when the control program wants to hear of it: without it a
    thread of this process, if there is a ``log``.
    """

    async def rebind(_: Path) -> Transport:
        assert log is not None
        try:
            return SocketTransport(socket.socket(fileno=await receive_descriptor(log, CONTROL)))
        except (EOFError, OSError) as exc:
            raise PathSevered("lost", f"the control program is gone: {exc}", "*CP") from None

    heart = heart or (Heartbeat(log) if log is not None else None)
    try:
        async with trio.open_nursery() as nursery:
            path = Path(
                SocketTransport(control),
                name="*CP",
                peer="*CP",
                limit=CONTROL_LIMIT,
                rebind=rebind if log is not None else None,
            )
            await nursery.start(path.run)
            runtime = Runtime(path, nursery, heart)
            nursery.start_soon(runtime.obey)
            if log is not None:
                for writer in records.writers():
                    nursery.start_soon(tell_drops, writer, log)
    finally:
        if heart is not None:
            heart.close()
    return runtime.exit_code


def run_to_exit_code(control: socket.socket, log: socket.socket | None = None) -> int:
    """:func:`run` on a fresh trio loop, with what escapes it told to the log."""
    try:
        return trio.run(run, control, log)
    except PathError:
        return EXIT_CP_GONE
    except BaseException as exc:
        _log.critical("the machine failed", exc_info=exc)
        return EXIT_PROGRAM_FAILED
