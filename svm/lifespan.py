"""The lifespan protocol of ASGI: an application is told of the start and the end of its machine."""

import logging
from collections.abc import Awaitable, Callable, Mapping, MutableMapping
from typing import Any, Final

import trio

from retinue.svm.errors import LifespanFailed, WrongEvent

log: Final = logging.getLogger("retinue.asgi")

Scope = MutableMapping[str, Any]
Event = MutableMapping[str, Any]
Receive = Callable[[], Awaitable[Event]]
Send = Callable[[Event], Awaitable[None]]
App = Callable[[Scope, Receive, Send], Awaitable[None]]

LIFESPAN_VERSIONS: Final = {"version": "3.0", "spec_version": "2.0"}

# How long the application may take for lifespan.shutdown, in seconds.
SHUTDOWN_TIME: Final = 5.0


class Lifespan:
    """The lifespan protocol with one application.

    An application that raises before it has answered the startup event does not support the protocol: no error.
    """

    def __init__(self, app: App, state: dict[str, Any], extensions: Mapping[str, Any] | None = None) -> None:
        self._app = app
        self._scope = {"type": "lifespan", "asgi": dict(LIFESPAN_VERSIONS), "state": state}
        self._scope["extensions"] = dict(extensions or {})
        self._events = iter(("lifespan.startup", "lifespan.shutdown"))
        self._started = trio.Event()
        self._shut_down = trio.Event()
        self._stop = trio.Event()
        self._supported = False
        self.failure: LifespanFailed | None = None

    async def run(self) -> None:
        """The application's lifespan call, to be run beside everything else."""
        try:
            await self._app(self._scope, self._receive, self._send)
        except Exception as exc:
            if self.failure is None and not self._supported:
                log.debug("the application does not support lifespan: %r", exc)
            elif self.failure is None:
                log.exception("the application's lifespan failed")
        finally:
            self._started.set()
            self._shut_down.set()

    async def startup(self) -> bool:
        """Until the application is ready for requests: True. False when it has said why not (:attr:`failure`)."""
        await self._started.wait()
        return self.failure is None

    async def shutdown(self) -> None:
        """Tell the application to end, and wait until it has, for SHUTDOWN_TIME at most."""
        self._stop.set()
        with trio.move_on_after(SHUTDOWN_TIME) as scope:
            await self._shut_down.wait()
        if scope.cancelled_caught:
            log.warning("the application's shutdown was not complete after %g s", SHUTDOWN_TIME)

    async def _receive(self) -> Event:
        event = next(self._events, None)
        if event == "lifespan.shutdown":
            await self._stop.wait()
        elif event is None:
            await trio.sleep_forever()
        return {"type": event}

    async def _send(self, event: Event) -> None:
        await trio.lowlevel.checkpoint()
        match event.get("type"):
            case "lifespan.startup.complete" if not self._started.is_set():
                self._supported = True
                self._started.set()
            case "lifespan.startup.failed" if not self._started.is_set():
                self.failure = LifespanFailed(str(event.get("message", "")))
                self._started.set()
            case "lifespan.shutdown.complete" if self._stop.is_set():
                self._shut_down.set()
            case "lifespan.shutdown.failed" if self._stop.is_set():
                log.error("the application's shutdown failed: %s", event.get("message", ""))
                self._shut_down.set()
            case other:
                raise WrongEvent(f"the lifespan event {other!r} does not fit here")
