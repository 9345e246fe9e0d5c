"""When a machine that is started on demand may rest again."""

from collections.abc import Callable
from typing import TYPE_CHECKING, Any, Final

import trio

from retinue.pipes import PathError

if TYPE_CHECKING:
    from retinue.cp.incarnation import Incarnation

# Times that it is asked while ``idle`` passes.
LOOKS: Final = 4


async def until_idle(
    incarnation: "Incarnation",
    idle_of: Callable[["Incarnation"], float | None],
    rest: Callable[["Incarnation", str], bool],
) -> None:
    """Call ``rest`` when no message has passed for ``idle_of`` seconds (None: ever), and none waits for an answer."""
    before: tuple[int, ...] | None = None
    since = trio.current_time()
    # One that was adopted cannot be reached at first, and is not ready then.
    while incarnation.death is None and incarnation.leaving is None and (idle := idle_of(incarnation)) is not None:
        await trio.sleep(idle / LOOKS)
        try:
            # One that is paged out has done nothing since, and would be read back by the question.
            asleep = before is not None and incarnation.pulse.asleep
            passed = before if asleep else count_passed(await incarnation.ask("meters"))
        except PathError:
            continue
        if passed is None or passed != before:
            before, since = passed, trio.current_time()
        elif trio.current_time() - since >= idle and rest(incarnation, f"nobody has asked it anything for {idle:g} s"):
            return


def count_passed(untrusted: Any) -> tuple[int, ...] | None:
    """How many messages have passed along the edges; None while some have no answer."""
    counts: list[int] = []
    match untrusted:
        case {"engaged": int(engaged)} if engaged:
            return None  # also such as others wait for
    match untrusted:
        case {"uses": dict(uses), "serves": dict(serves)}:
            for meter in (*uses.values(), *serves.values()):
                match meter:
                    case {"sent": int(sent), "received": int(received), "outstanding": int(outstanding)}:
                        if outstanding:
                            return None
                        counts += [sent, received]
    return tuple(counts)
