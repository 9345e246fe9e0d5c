"""A successor in the place of a machine's process, so that nobody misses a message; or the same process anew.

Where real storage is over-committed, a machine that would not be started again is not ended: it goes on as it is. One
that has no process waits for room anyway; who orders something waits with it for a moment, since others may rest.
"""

from typing import TYPE_CHECKING, Final

import trio

from retinue.cp.death import Cause, Trouble
from retinue.cp.directory import MachineEntry
from retinue.cp.incarnation import START_LIMIT, Incarnation
from retinue.cp.life import Life
from retinue.cp.standing import Wish
from retinue.pipes import Rejected

if TYPE_CHECKING:
    from retinue.cp.pager.pager import Pager

# Seconds an order waits for a machine to be ready: it may have to wait for others, and other orders wait for this one.
PATIENCE: Final = 2 * START_LIMIT
# The same while it may not be started for want of real storage: who is idle rests within that time.
ROOM_PATIENCE: Final = 10.0
_CURE: Final = "retinue ps --storage shows who has how much: stop somebody, or give [system] more storage"


class Waits(Rejected):
    """A machine has the definition that it should have, and no process before there is room in real storage."""


async def replace(life: Life, entry: MachineEntry, pager: "Pager", *, overlap: bool) -> None:
    """Have a successor with this definition take the machine's place.

    With ``overlap`` it is started beside its predecessor. Rejected ``not-replaced`` when it does not become ready: then
    the machine runs as before. Rejected ``no-room``, likewise, when there is no room in real storage for it. A machine
    that does not run has the definition from now on, also if it waits for room: then that is said by :class:`Waits`.
    """
    current, before = life.current, life.entry
    ends = life.wish is Wish.UP and current is not None and current.leaving is None  # because of this
    try:
        if life.wish is not Wish.UP or current is None or not current.ready:
            ends = ends and current is not None and current.ready_at is None
            if ends:
                _check_room(life, entry, pager)
            life.redefine(entry)
            if life.wish is Wish.UP:
                if ends:
                    life.start_again(Trouble(Cause.REPLACED, "replaced while it started"), _now())
                await come_up(life, current, pager)
        elif overlap:
            await _overlap(life, current, entry)
        else:
            _check_room(life, entry, pager)
            await _stop_first(life, current, entry, pager)
    except Rejected as exc:
        if not ends and exc.code == "no-room":
            text = exc.text if entry == before else f"{exc.text}; it has its new definition then"
            raise Waits(exc.code, text) from None
        life.redefine(before)
        raise


async def restart(life: Life, pager: "Pager") -> None:
    """Stop and start it, or start it. Rejected ``not-ready`` when it does not start.

    Rejected ``no-room`` when there is no room in real storage for it: then it goes on, or waits for that.
    """
    current = life.current
    if current is None or life.wish is not Wish.UP:
        life.ask_to_start()
    elif current.leaving is None:
        _check_room(life, life.entry, pager)
        life.start_again(Trouble(Cause.ASKED, "asked to start again"), _now())
    await come_up(life, current, pager)


def _check_room(life: Life, entry: MachineEntry, pager: "Pager") -> None:
    """Rejected ``no-room`` if nobody could say when a machine that ends now is ready again, with this definition."""
    if why := pager.why_not_again(life, entry):
        text = f"{life.name} goes on as it is, for nobody could say when it is ready again after its end"
        raise Rejected("no-room", f"{text}: {why}; {_CURE}")


async def come_up(life: Life, before: Incarnation | None, pager: "Pager", *, tries: int = 1) -> None:
    """Until a process after ``before`` is ready; Rejected ``not-ready`` when so many have not become so, and
    ``no-room`` when none is started for want of real storage, or the last of them was ended for that."""
    if before is not None:
        await life.wait_until(lambda: before.death is not None or life.wish is not Wish.UP)
    last = life.generation - (life.current is not None and life.current is not before) + tries

    def over() -> bool:
        ready = life.ready and life.current is not before
        return ready or life.wish is not Wish.UP or life.failed[0] >= last

    def held() -> str:
        return pager.why_held(life) if life.wish is Wish.UP and life.current is None else ""

    def no_room(why: str | None) -> Rejected:
        text = f"{life.name} has no process, and is started as soon as there is room"
        return Rejected("no-room", f"{text}: {why}; {_CURE}")

    with trio.move_on_after(PATIENCE):
        while not over():
            await life.wait_until(lambda: over() or bool(held()))
            with trio.move_on_after(ROOM_PATIENCE):
                await life.wait_until(lambda: over() or not held())
            if not over() and (why := held()):
                raise no_room(why)
    if not life.ready:
        number, cause = life.failed
        if number >= last and cause is Cause.NO_ROOM and life.wish is Wish.UP:
            raise no_room(life.cause)
        raise Rejected("not-ready", f"{life.name} is {life.state.value}" + (f": {life.cause}" if life.cause else ""))


async def _overlap(life: Life, current: Incarnation, entry: MachineEntry) -> None:
    successor = life.bear(entry)
    try:
        with trio.move_on_after(PATIENCE):
            await life.wait_until(
                lambda: (
                    (life.current is successor and successor.ready)
                    or successor.death is not None
                    or life.takes(successor)
                )
            )
        if life.takes(successor):
            life.redefine(entry)
            life.hand_over(successor)
            await life.wait_end_of(current)
            life.replaced(current)
        elif life.current is successor and successor.ready:
            life.redefine(entry)  # its predecessor has died meanwhile
        else:
            await _give_back(life, successor)
    except BaseException:
        life.disown(successor)
        if not successor.placed:
            successor.leave(Trouble(Cause.REPLACED, "not wanted any more"))
        raise


async def _give_back(life: Life, successor: Incarnation) -> None:
    """Take note that it has not become ready."""
    life.disown(successor)
    if successor.placed:
        death = await life.wait_end_of(successor) if life.current is not successor else None
        why = "it waits for others" if death is None else death.text
        raise Rejected("not-replaced", f"the successor of {life.name} did not become ready: {why}")
    successor.leave(Trouble(Cause.REPLACED, f"it was not ready within {PATIENCE:.0f} s"))
    death = await life.wait_end_of(successor)
    life.report(successor, death, then="its predecessor goes on")
    text = f"the successor of {life.name} did not become ready, and {life.name} goes on as it was"
    raise Rejected("not-replaced", f"{text}: {death.text}")


async def _stop_first(life: Life, current: Incarnation, entry: MachineEntry, pager: "Pager") -> None:
    life.put_to_trial(life.entry)
    life.redefine(entry)
    try:
        life.start_again(Trouble(Cause.REPLACED, "replaced"), _now())
        await come_up(life, current, pager, tries=2)
    finally:
        life.put_to_trial(None)
    if life.trial_failed is not None:
        text = f"the successor of {life.name} did not become ready, and {life.name} runs as before"
        raise Rejected("not-replaced", f"{text}: {life.trial_failed}")


def _now() -> trio.Event:
    event = trio.Event()
    event.set()
    return event
