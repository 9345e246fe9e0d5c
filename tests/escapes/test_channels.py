"""Two machines without an edge do not tell each other one bit, by any of the channels that are known.

What remains stands in docs/explanation/security.md: what can be tried here is in the table of :mod:`known`, the load of
processors and caches, free space and the like are told there only.
"""

import pathlib
from collections.abc import Callable, Iterator
from typing import Any

import pytest
from tests.escapes.conftest import PrisonOf
from tests.escapes.inside.attempt import USER
from tests.escapes.inside.channels import CHANNELS
from tests.escapes.known import expect
from tests.escapes.prison import MACHINES, OTHERS, Outside, open_outside
from tests.escapes.rungs import PLACES
from tests.escapes.unsealed import Unsealed

BITS = (1, 0, 1, 1, 0, 0, 1, 0)
Ask = Callable[[Any], Any]


def told(name: str, sender: tuple[Ask, Any], receiver: tuple[Ask, Any]) -> str:
    """How the bits were told, or an empty string if they were not."""
    (ask_sender, sender_world), (ask_receiver, receiver_world) = sender, receiver
    answers = []
    for bit in BITS:
        sent = ask_sender(["send", name, sender_world, bit])
        received = ask_receiver(["receive", name, receiver_world])
        answers.append(received)
        if received.get("value") != bit:
            break
    else:
        assert "value" in sent, sent
        return f"{name}: {[answer['value'] for answer in answers]}"
    ask_sender(["send", name, sender_world, 0])
    return ""


@pytest.mark.parametrize("name", CHANNELS)
@pytest.mark.parametrize(("rung", "profile"), PLACES)
def test_no_bit_passes(request: pytest.FixtureRequest, prison_of: PrisonOf, rung: str, profile: str, name: str) -> None:
    prison = prison_of(rung)
    expect(request, name, prison, profile)
    one, other = MACHINES[profile], OTHERS[profile]
    of_other = "exec" if profile == "exec" else "program"
    assert not told(
        name,
        (lambda order: prison.ask(one, order), prison.world(profile, one, other)),
        (lambda order: prison.ask(other, order), prison.world(of_other, other, one)),
    )


@pytest.fixture(scope="module")
def two(tmp_path_factory: pytest.TempPathFactory) -> Iterator[tuple[Unsealed, Unsealed]]:
    """Two processes without a seal."""
    folder = tmp_path_factory.mktemp("two")
    with open_outside() as outside:
        pair = [_start(folder, outside), _start(folder, outside)]
        yield pair[0], pair[1]
        for one in pair:
            one.close()


def _start(folder: pathlib.Path, outside: Outside) -> Unsealed:
    return Unsealed(folder, outside, "--one-process")


@pytest.mark.parametrize("name", [name for name, each in CHANNELS.items() if each.unsealed == USER])
def test_bits_pass_without_a_seal(two: tuple[Unsealed, Unsealed], name: str) -> None:
    """Otherwise the test above would prove nothing."""
    one, other = two
    for _ in range(3):  # others on this host may disturb it: they read the same file
        if told(name, (one.ask, one.world()), (other.ask, other.world(other=True))):
            return
    pytest.fail("no bit passed")
