"""A successor in the place of a machine's process, so that nobody misses a message; or the same process anew."""

import trio

from retinue.cp.death import Cause, Trouble
from retinue.cp.directory import MachineEntry
from retinue.cp.incarnation import Incarnation
from retinue.cp.life import Life, Wish
from retinue.pipes import Rejected


async def replace(life: Life, entry: MachineEntry, *, overlap: bool) -> None:
    """Have a successor with this definition take the machine's place.

    With ``overlap`` it is started beside its predecessor. Rejected ``not-replaced`` when it does not become ready: then
    the machine runs as before. A machine that does not run has the definition from now on.
    """
    current = life.current
    if life.wish is not Wish.UP or current is None or not current.ready:
        life.redefine(entry)
        if life.wish is Wish.UP:
            if current is not None and current.leaving is None and current.ready_at is None:
                life.start_again(Trouble(Cause.REPLACED, "replaced while it started"), _now())
            await _come_up(life, current)
    elif overlap:
        await _overlap(life, current, entry)
    else:
        await _stop_first(life, current, entry)


async def restart(life: Life) -> None:
    """Stop and start it, or start it. Rejected ``not-ready`` when it does not start."""
    current = life.current
    if current is None or life.wish is not Wish.UP:
        life.ask_to_start()
    else:
        life.start_again(Trouble(Cause.ASKED, "asked to start again"), _now())
    await _come_up(life, current)


async def _come_up(life: Life, before: Incarnation | None) -> None:
    await life.wait_until(lambda: (life.ready and life.current is not before) or life.wish is not Wish.UP)
    if not life.ready:
        raise Rejected("not-ready", f"{life.name} is {life.state.value}" + (f": {life.cause}" if life.cause else ""))


async def _overlap(life: Life, current: Incarnation, entry: MachineEntry) -> None:
    successor = life.bear(entry)
    await life.wait_until(lambda: successor.ready_at is not None or successor.death is not None)
    if successor.death is not None and successor.ready_at is None:
        life.disown(successor)
        life.report(successor, successor.death, then="its predecessor goes on")
        text = f"the successor of {life.name} did not become ready, and {life.name} goes on as it was"
        raise Rejected("not-replaced", f"{text}: {successor.death.text}")
    life.redefine(entry)
    if life.hand_over(successor):
        await life.wait_end_of(current)
        life.replaced(current)


async def _stop_first(life: Life, current: Incarnation, entry: MachineEntry) -> None:
    life.put_to_trial(life.entry)
    life.redefine(entry)
    try:
        life.start_again(Trouble(Cause.REPLACED, "replaced"), _now())
        await _come_up(life, current)
    finally:
        life.put_to_trial(None)
    if life.trial_failed is not None:
        text = f"the successor of {life.name} did not become ready, and {life.name} runs as before"
        raise Rejected("not-replaced", f"{text}: {life.trial_failed}")


def _now() -> trio.Event:
    event = trio.Event()
    event.set()
    return event
