"""Sending records on to the site's collector, from the store, in order, beside the storing of them.

What was sent counts when the link has been finished: then the places up to which the collector has everything are
written into the store, one for each run of the system, and a successor goes on from there. Whatever fails before that
is sent again.
"""

import difflib
import logging
import random
import re
import socket
import sqlite3
from collections.abc import Iterable
from typing import Any, Final

import attrs
import trio
from attrs.validators import ge, le, optional

from retinue.pipes import PathError
from retinue.services.syslog.collector import BadCollector, CollectorLost, Link, open_link, parse_collector
from retinue.services.syslog.places import NUMBER, Places
from retinue.services.syslog.rfc5424 import ENTERPRISE, FACILITIES, SEVERITIES, SHORTEST, Formatter
from retinue.services.syslog.row import Row
from retinue.services.syslog.store import Store
from retinue.svm import ConfigError, ConfigMistake, Machine

log: Final = logging.getLogger("retinue.syslog")

# The name of the places in the store. It is not the collector's: another address of it, or another one, goes on there.
PLACE: Final = "forward"
# Records read from the store at once: they hold up storing for some 2 ms.
BATCH: Final = 100
# While records are being stored, sending them on rests so many times as long as it has worked.
REST: Final = 4.0
# A link is finished after so many records, or so many seconds, or so many without a record: what is sent twice when it
# breaks. TCPIP, when it stops, waits for the end of those that are open.
MOST_UNCONFIRMED: Final = 10_000
CONFIRM_AFTER: Final = 5.0
QUIET: Final = 0.5
# Seconds until the next attempt: at first, and at most. A fifth of it is chance, so that sites do not come in step.
SOONEST: Final = 0.2
LATEST: Final = 30.0
_CHANCE: Final = 0.2
# Seconds that a machine which stops gives the collector for what it has been sent.
LAST_WORD: Final = 1.0

# Bytes of a message: what rsyslog takes unless told otherwise (8096, and cuts a longer one in two), and what every
# receiver of datagrams should take (RFC 5426, 3.2). A datagram can have 65,507.
_LONGEST: Final = {"tcp": 8000, "udp": 2048, "unix": 8000, "unix-stream": 8000}
_MOST_BYTES: Final = 65507

# What the way to a collector may end in.
FAILURES: Final = (
    PathError,
    CollectorLost,
    OSError,
    trio.BrokenResourceError,
    trio.ClosedResourceError,
    trio.TooSlowError,
    sqlite3.Error,
)


def _one_of(words: Iterable[str]) -> Any:
    known = tuple(words)

    def check(_: object, attribute: "attrs.Attribute[Any]", word: str) -> None:
        if word not in known:
            near = difflib.get_close_matches(word, known, 1)
            hint = f'did you mean "{near[0]}"?' if near else f"it is one of {', '.join(known)}"
            raise _mistake(attribute, f"there is no {attribute.name} {word[:40]!r}; {hint}")

    return check


def _mistake(attribute: "attrs.Attribute[Any]", text: str) -> ConfigError:
    return ConfigError((ConfigMistake((attribute.name,), text),))


def _check_hostname(_: object, attribute: "attrs.Attribute[Any]", text: str) -> None:
    if not re.fullmatch(r"[!-~]{1,255}", text):
        raise _mistake(attribute, f"{text[:80]!r} is no name of a host: 1 to 255 characters of ASCII, without spaces")


def _check_collector(_: object, attribute: "attrs.Attribute[Any]", text: str) -> None:
    try:
        parse_collector(text)
    except BadCollector as exc:
        raise _mistake(attribute, str(exc)) from None


@attrs.frozen(kw_only=True)
class Forward:
    """Where records are sent on to, and as what. ``to`` is required."""

    # "tcp://HOST:PORT", "udp://HOST:PORT", "unix:///PATH" (datagrams) or "unix-stream:///PATH", as TCPIP's config.allow
    # lets this machine go there.
    to: str = attrs.field(validator=_check_collector)
    # The local name of the edge to TCPIP.
    edge: str = "out"
    # RFC 5424, 6.2.1: what the site's rules sort by.
    facility: str = attrs.field(default="daemon", validator=_one_of(FACILITIES))
    # The HOSTNAME of every message. None: what this machine takes for the host's, which is the name of the system.
    hostname: str | None = attrs.field(default=None, validator=optional(_check_hostname))
    # The least severe that is sent.
    severity: str = attrs.field(default="debug", validator=_one_of(SEVERITIES))
    # The site's private enterprise number, in the names of structured data (retinue@32473).
    enterprise: int = attrs.field(default=ENTERPRISE, validator=ge(0))
    # Bytes of a message. None: 2048 over UDP, 8000 otherwise.
    longest: int | None = attrs.field(default=None, validator=optional([ge(SHORTEST), le(_MOST_BYTES)]))


class UnknownEdge(ValueError):
    """``config.forward`` names an edge that this machine does not have. Fields: ``edge``."""

    def __init__(self, edge: str, edges: tuple[str, ...]) -> None:
        self.edge = edge
        known = ", ".join(sorted(edges)) or "none"
        super().__init__(
            f"config.forward goes over {edge!r}, which is no edge of this machine (it has: {known}); "
            f'declare it: uses.{edge} = {{ to = "TCPIP", lazy = true }}'
        )


class Forwarder:
    """Sends the records of a store to the collector until it is cancelled, or :meth:`finish` is called."""

    def __init__(self, vm: Machine[Any], config: Forward, store: Store, nursery: trio.Nursery) -> None:
        if config.edge not in vm.edges:
            raise UnknownEdge(config.edge, vm.edges)
        self._vm = vm
        self._edge = config.edge
        self._nursery = nursery
        self._collector = parse_collector(config.to)
        self._least = SEVERITIES.index(config.severity)
        self._formatter = Formatter(
            facility=FACILITIES[config.facility],
            hostname=config.hostname or socket.gethostname(),
            enterprise=config.enterprise,
            longest=config.longest or _LONGEST[self._collector.protocol],
        )
        self._places = Places(store, PLACE)
        self._came = trio.Event()  # records
        self._link: Link | None = None
        self._stopping = False
        self._done = trio.Event()
        self._removed = 0  # records that the store did not keep until they were sent
        self._down_since: float | None = None
        self._pause = SOONEST
        self._most = MOST_UNCONFIRMED  # records over one link; few after a failure, for a slow line takes no more

    def notice(self, run: str | None = None) -> None:
        """There are more records in the store, of this run of the system or of any."""
        if run is None:
            self._places.look()
        else:
            self._places.came(run)
        self._came.set()

    async def finish(self) -> None:
        """Send nothing more; up to LAST_WORD seconds for the collector to take what it has been sent."""
        self._stopping = True
        self._came.set()
        if self._link is not None:
            with trio.move_on_after(LAST_WORD):
                await self._done.wait()

    async def run(self) -> None:
        """Task: send everything that there is and comes, whatever happens to the collector and to the way there."""
        while not self._stopping:
            try:
                await self._send_some()
            except Exception as exc:
                if self._stopping:
                    break
                # A mistake in here is nothing to end storing for.
                self._tell_down(exc, trace=not isinstance(exc, FAILURES))
                self._most = BATCH
                await trio.sleep(self._pause * random.uniform(1 - _CHANCE, 1))
                self._pause = min(2 * self._pause, LATEST)
        self._done.set()

    async def _send_some(self) -> None:
        """Wait for records and send them over one link. Raises FAILURES; then none of it counts."""
        self._removed = 0
        self._places.back()
        while not (messages := await self._next()):
            self._places.keep(save=False)
            await self._wait()
            if self._stopping:
                return
        self._link = link = await open_link(self._vm, self._edge, self._collector, self._nursery)
        try:
            await self._fill(link, messages)
            await link.finish()
        finally:
            link.cut()
            self._link = None
        self._places.keep()
        self._most = min(2 * self._most, MOST_UNCONFIRMED)
        self._tell_up()
        self._tell_removed()

    async def _fill(self, link: Link, messages: list[bytes]) -> None:
        """Send some records over a link, the first ones given."""
        await link.send(messages)
        sent = len(messages)
        deadline = trio.current_time() + CONFIRM_AFTER
        # After a failure a few are enough, to see whether it has passed.
        while self._down_since is None and sent < self._most and not self._stopping:
            messages = await self._next()
            if messages:
                await link.send(messages)
                sent += len(messages)
            elif link.lost.is_set():
                break
            else:
                with trio.move_on_at(min(deadline, trio.current_time() + QUIET)) as quiet:
                    await self._wait(link.lost)
                if quiet.cancelled_caught:
                    break
            if trio.current_time() >= deadline:
                break

    async def _next(self) -> list[bytes]:
        """The next records that are to be sent, as messages. None: there are no more."""
        messages: list[bytes] = []
        while not messages:
            storing, self._came = self._came.is_set(), trio.Event()
            began = trio.current_time()
            place, rows = self._places.next(BATCH)
            if not rows:
                break
            self._removed += self._removed_between(place, rows[0])
            messages = [self._formatter.format(row) for row in rows if row.severity <= self._least]
            await trio.sleep(REST * (trio.current_time() - began) if storing else 0)
        return messages

    def _removed_between(self, place: int, row: Row) -> int:
        """How many records after the place the store has removed, for it keeps no more; the row follows in it now."""
        # Numbers that are missing for another reason have older records before them. Of another run nothing is known.
        if row.id == place + 1 or place & NUMBER == 0 or not self._places.first(row):
            return 0
        return row.id - place - 1

    async def _wait(self, lost: trio.Event | None = None) -> None:
        """Until there may be more records, or nothing more is to be sent, or the link is ``lost``."""
        if self._stopping:
            return
        async with trio.open_nursery() as nursery:
            if lost is not None:
                nursery.start_soon(_then_cancel, lost, nursery.cancel_scope)
            await self._came.wait()
            nursery.cancel_scope.cancel()

    # -- records of its own: one when it goes down and one when it comes back, however long that takes. They are sent on
    # as all records, and being sent makes none.

    def _tell_down(self, error: Exception, *, trace: bool) -> None:
        if self._down_since is None:
            self._down_since = trio.current_time()
            why = str(error) or type(error).__name__
            text = f"{self._collector} takes no records: {why}; they wait here and are sent when it does"
            log.warning("%s", text, extra={"collector": str(self._collector)}, exc_info=error if trace else None)

    def _tell_up(self) -> None:
        if self._down_since is not None:
            seconds = trio.current_time() - self._down_since
            self._down_since = None
            about = {"collector": str(self._collector), "seconds": round(seconds, 3)}
            log.warning("%s takes records again, after %.1f s", self._collector, seconds, extra=about)
        self._pause = SOONEST

    def _tell_removed(self) -> None:
        if self._removed:
            about = {"collector": str(self._collector), "unsent": self._removed}
            text = "%d records were removed before they could be sent on: no more are kept (config.keep)"
            log.warning(text, self._removed, extra=about)


async def _then_cancel(event: trio.Event, scope: trio.CancelScope) -> None:
    await event.wait()
    scope.cancel()
