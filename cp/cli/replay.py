"""``retinue replay``: send the requests of a recording again, and compare what comes back."""

import socket
from collections.abc import AsyncIterator
from contextlib import AsyncExitStack, asynccontextmanager
from functools import partial
from typing import TYPE_CHECKING, Any, Final

import attrs
import click

from retinue.cp.cli.command import json_option, selection, state_option, system_option
from retinue.cp.cli.completing import complete_machines
from retinue.cp.cli.errors import FAILED, OK, CommandError
from retinue.cp.cli.output import RED, YELLOW, Paint, say, to_json
from retinue.cp.cli.systems import find_system

if TYPE_CHECKING:
    import trio

    from retinue.cp.cli.comparison import Answer
    from retinue.cp.recording import Reader
    from retinue.cp.runtime import Running
    from retinue.pipes import Path

# Seconds that an answer may take.
ANSWER_WAIT: Final = 60.0
# Requests that are on their way at once, should the recording say no earlier that they were answered.
MOST_OPEN: Final = 1000


@click.command()
@click.argument("file", type=click.Path(dir_okay=False))
@click.argument("name", shell_complete=complete_machines)
@json_option("Print one JSON object.")
@system_option()
@state_option()
@click.pass_context
def replay(ctx: click.Context, file: str, name: str, as_json: bool) -> int:
    """Send recorded requests again, and compare the answers.

    The requests of the recording FILE go to the machine NAME.

    The exit code is 0 if all that could be compared are equal, 1 if not.
    """
    from retinue.cp.recording import BadRecording, Reader

    try:
        with Reader(file) as reader:
            system = find_system(selection(ctx))
            from retinue.cp.cli.session import converse

            report = Report(as_json)
            converse(partial(_replay, system, reader, name, report))
    except OSError as error:
        if error.filename is None:
            raise
        raise CommandError(f"cannot read {file}: {error.strerror}") from error
    except BadRecording as error:
        raise CommandError(str(error), "a recording is made by: retinue tap EDGE --record FILE") from error
    report.finish(file, name)
    return FAILED if report.different else OK


class Report:
    """What was found: prints differences as they come, and the sums at the end."""

    def __init__(self, as_json: bool) -> None:
        import sys

        from retinue.cp.cli.output import colour_wanted

        self._json = as_json
        self._paint = Paint(colour_wanted(sys.stdout))
        self.calls = self.sends = self.equal = self.lost = 0
        self.different: list[dict[str, Any]] = []
        self.not_compared: list[dict[str, Any]] = []

    def differs(self, item: dict[str, Any], differences: list[str]) -> None:
        """An answer is another one than the recorded one (or there is none)."""
        self.different.append(_of(item) | {"differences": differences})
        if not self._json:
            say(self._paint(f"different: {_name(item)}", RED))
            for each in differences:
                say(f"  {each}")

    def skips(self, item: dict[str, Any], why: str) -> None:
        """An answer could not be compared."""
        self.not_compared.append(_of(item) | {"why": why})
        if not self._json:
            say(self._paint(f"not compared: {_name(item)}", YELLOW))
            say(f"  {why}")

    def finish(self, file: str, name: str) -> None:
        """Print the sums."""
        if self._json:
            sums = {"calls": self.calls, "sends": self.sends, "equal": self.equal, "lost": self.lost}
            found = {"different": self.different, "not_compared": self.not_compared}
            say(to_json({"file": file, "machine": name, **sums, **found}))
            return
        text = f"{self.calls} call{'' if self.calls == 1 else 's'} and {self.sends} one-way sent: "
        text += f"{self.equal} equal, {len(self.different)} different, {len(self.not_compared)} not compared"
        say(text + (f"; the recording lacks {self.lost} messages" if self.lost else ""))


def _of(item: dict[str, Any]) -> dict[str, Any]:
    from retinue.cp.cli.messages import plain

    return {"path": item["path"], "id": item["id"], "kind": item["kind"], "request": plain(item.get("body"))}


def _name(item: dict[str, Any]) -> str:
    from retinue.cp.cli.messages import body_text
    from retinue.cp.cli.output import shorten

    return f"{item['kind']} {item['id']} of path {item['path']}  {shorten(body_text(item.get('body')), 60)}".rstrip()


async def _replay(system: "Running", reader: "Reader", name: str, report: Report) -> None:
    import trio

    from retinue.cp.cli.session import operator

    async with operator(system) as control, trio.open_nursery() as nursery, AsyncExitStack() as stack:
        paths: dict[int, Replayed] = {}
        try:
            for item in reader:
                if "lost" in item:
                    report.lost += item["lost"]
                    continue
                ident = item["path"]
                if ident not in paths:
                    if item["direction"] != "->" or item["kind"] not in ("call", "send"):
                        continue
                    live = await stack.enter_async_context(_path_to(control, system, name))
                    paths[ident] = Replayed(live, report, nursery)
                await paths[ident].take(item)
            for each in paths.values():
                await each.finish()
        except BaseException:
            nursery.cancel_scope.cancel()  # what is on its way is not told as different
            raise


@asynccontextmanager
async def _path_to(control: "Path", system: "Running", name: str) -> "AsyncIterator[Path]":
    """A new path to the machine, whose own requests on it are refused."""
    import trio

    from retinue.cp.cli.session import ask_reply
    from retinue.pipes import Message, Rejected, SocketTransport, open_path

    async def refuse(message: Message) -> Any:
        raise Rejected("replay", "nobody is here: this is the replay of a recording")

    reply = await ask_reply(control, system, "connect", within=ANSWER_WAIT, machine=name)
    (descriptor,) = reply.descriptors
    transport = SocketTransport(socket.socket(fileno=descriptor))
    async with open_path(transport, name=name, peer=name) as path, trio.open_nursery() as nursery:
        nursery.start_soon(path.serve, refuse)
        yield path
        nursery.cancel_scope.cancel()


@attrs.define(eq=False)
class Sent:
    """A request that was sent again: ``answer`` when ``done`` is set, None if it was withdrawn or failed."""

    item: dict[str, Any]
    done: "trio.Event"
    scope: "trio.CancelScope"
    answer: "Answer | None" = None


class Replayed:
    """One recorded path, over a new one.

    A request is sent when all answers that stand before it in the recording have come, and not before an earlier
    request: so what overlapped overlaps again.
    """

    def __init__(self, path: "Path", report: Report, nursery: "trio.Nursery") -> None:
        self._path = path
        self._report = report
        self._nursery = nursery
        self._open: dict[int, Sent] = {}
        self._latest = [0, 0]  # ids: ordinary, priority

    async def take(self, item: dict[str, Any]) -> None:
        """The next item of the recording."""
        match item:
            case {"direction": "->", "kind": "call" | "send"}:
                await self._request(item)
            case {"direction": "<-", "kind": "reply" | "reject", "id": ident} if ident in self._open:
                await self._answered(self._open.pop(ident), item)
            case {"direction": "<-", "kind": "ack", "id": first}:
                low, high = sorted((first, item.get("last", first)))
                for ident in [each for each in self._open if low <= each <= high]:
                    if self._open[ident].item["kind"] == "send":
                        await self._open.pop(ident).done.wait()
            case {"direction": "->", "kind": "purge", "id": ident} if ident in self._open:
                sent = self._open.pop(ident)
                sent.scope.cancel()
                await sent.done.wait()
                self._report.skips(sent.item, "the caller had withdrawn it")

    async def finish(self) -> None:
        """The recording has ended."""
        for sent in self._open.values():
            if sent.item["kind"] == "send":
                await sent.done.wait()
            else:
                sent.scope.cancel()
                await sent.done.wait()
                self._report.skips(sent.item, "the recording ends before its answer")
        self._open.clear()

    async def _request(self, item: dict[str, Any]) -> None:
        import trio

        ident = item["id"]
        if abs(ident) <= self._latest[ident < 0]:
            return  # a redelivery, to a successor
        self._latest[ident < 0] = abs(ident)
        if why := _unsendable(item):
            self._report.skips(item, why)
            return
        if len(self._open) >= MOST_OPEN:
            await next(iter(self._open.values())).done.wait()
        sent = Sent(item, trio.Event(), trio.CancelScope())
        self._open[ident] = sent
        await self._nursery.start(self._send, sent)

    async def _send(self, sent: Sent, *, task_status: "trio.TaskStatus[None]") -> None:
        import trio

        from retinue.cp.cli.comparison import Answer
        from retinue.pipes import PathError, Rejected

        call = sent.item["kind"] == "call"
        priority = sent.item.get("priority", False)
        if call:
            self._report.calls += 1
        else:
            self._report.sends += 1
        # From here to the path's queue nothing lets another task run: requests stay in their order.
        task_status.started()
        try:
            with sent.scope, trio.fail_after(ANSWER_WAIT):
                if call:
                    reply = await self._path.call_reply(sent.item["body"], priority=priority)
                    _close(reply.descriptors)
                    sent.answer = Answer(reply.body, len(reply.descriptors))
                else:
                    await self._path.send(sent.item["body"], priority=priority)
        except Rejected as error:
            sent.answer = Answer(error.detail, 0, error.code, error.text)
        except trio.TooSlowError:
            self._report.differs(sent.item, [f"no answer in {ANSWER_WAIT:g} s"])
        except PathError as error:
            self._report.differs(sent.item, [f"no answer: {error}"])
        finally:
            sent.done.set()

    async def _answered(self, sent: Sent, item: dict[str, Any]) -> None:
        from retinue.cp.cli.comparison import Answer, compare

        await sent.done.wait()
        if sent.answer is None:
            return  # told already
        if "omitted" in item:
            self._report.skips(sent.item, f"its answer was not recorded: {item['omitted']}")
            return
        if item["kind"] == "reject":
            recorded = Answer(item.get("detail"), 0, item.get("code", ""), item.get("text", ""))
        else:
            recorded = Answer(item.get("body"), item.get("descriptors", 0))
        differences, skipped = compare(recorded, sent.answer, redacted=bool(item.get("redacted")))
        if differences:
            self._report.differs(sent.item, differences)
        elif skipped:
            values = "value of its answer is" if skipped == 1 else "values of its answer are"
            self._report.skips(sent.item, f"{skipped} {values} redacted; the rest is equal")
        else:
            self._report.equal += 1


def _unsendable(item: dict[str, Any]) -> str | None:
    """Why a request cannot be sent as it was, or None."""
    if "omitted" in item or "body" not in item:
        return f"not sent: it was not recorded ({item.get('omitted', 'it has no body')})"
    if count := item.get("redacted"):
        return f"not sent: {count} of its values {'is' if count == 1 else 'are'} redacted"
    if count := item.get("descriptors"):
        return f"not sent: it carried {count} descriptor{'' if count == 1 else 's'}, which no recording has"
    return None


def _close(descriptors: tuple[int, ...]) -> None:
    from retinue.pipes.message import close_all

    close_all(descriptors)
