"""What machines do that they must not: recorded, counted, and never so often that the log is full of it."""

import pytest
import trio
import trio.testing

from retinue.cp.offences import PAUSE, Offences
from retinue.cp.syslog import Syslog
from retinue.pipes import memory_pair, open_path


def told(syslog: Syslog) -> list[tuple[str, int, str]]:
    """Who, how often, and the whole text."""
    records = syslog.recent(None, 100)
    return [(record["fields"]["of"], record["fields"]["count"], record["message"]) for record in records]


async def test_first_at_once_then_with_their_number(autojump_clock: trio.testing.MockClock) -> None:
    """Each machine and each kind of offence has records of its own, and none is lost at the end."""
    syslog = Syslog()
    async with trio.open_nursery() as nursery:
        offences = Offences(syslog, nursery)
        for number in range(1000):
            offences.tell("A", "edge", f"A asked {number}")
        offences.tell("B", "edge", "B asked")
        offences.tell("A", "path", "A wrote")
        assert told(syslog) == [("A", 1, "A asked 0"), ("B", 1, "B asked"), ("A", 1, "A wrote")]
        await trio.sleep(PAUSE * 1.5)
        assert told(syslog)[3:] == [("A", 999, "A asked 999 (999 times within 1 s; this is the last)")]
        await trio.sleep(PAUSE * 3)
        offences.tell("A", "edge", "A asked again")
        assert told(syslog)[4:] == [("A", 1, "A asked again")]
        await trio.testing.wait_all_tasks_blocked()
        offences.tell("A", "edge", "A asked once more")
        nursery.cancel_scope.cancel()
    assert told(syslog)[5:] == [("A", 1, "A asked once more")]


@pytest.mark.parametrize("who", ["this end", "the peer"])
async def test_only_what_this_end_has_found_is_a_violation(who: str) -> None:
    """A peer that ends a path in that way accuses this end; it must not be told of the peer."""
    syslog = Syslog()
    with trio.fail_after(5):
        async with trio.open_nursery() as nursery:
            offences = Offences(syslog, nursery)
            ours, theirs = memory_pair()
            async with open_path(ours, name="A to *CP") as path, open_path(theirs) as peer:
                if who == "this end":
                    theirs.send(b"\xc1")
                else:
                    peer.session.give_up("violation", "nothing at all")
                    peer.flush()
                await path.wait_severed()
                offences.tell_violation("A", path)
            nursery.cancel_scope.cancel()
    if who == "this end":
        ((machine, count, text),) = told(syslog)
        assert (machine, count) == ("A", 1)
        assert text.startswith("the path A to *CP was severed: A broke the protocol: ")
    else:
        assert told(syslog) == []
