"""Attempts with paths: the control path, other machines' paths, descriptors that come over an edge, the log."""

import errno
import json
import os
import re
from typing import Any

import pytest
from tests.escapes.conftest import PrisonOf
from tests.escapes.inside.attempt import REFUSALS
from tests.escapes.inside.control import CONTROL
from tests.escapes.prison import MACHINES, Prison
from tests.escapes.rungs import PLACES, RUNGS

from retinue.pipes import wire


@pytest.mark.parametrize("name", CONTROL)
@pytest.mark.parametrize("rung", RUNGS)
def test_attempt_is_refused(prison_of: PrisonOf, rung: str, name: str) -> None:
    prison = prison_of(rung)
    before = prison.machines()
    answer = prison.ask("PRISONER", ["control", name, prison.world("program")])
    assert "raised" not in answer, answer["raised"]
    needs = CONTROL[name].needs
    if needs and not needs.keys() & prison.layers("PRISONER"):
        assert "value" in answer, f"the page says that it is not refused: {'; '.join(needs.values())}"
        return
    assert "value" not in answer, f"it got out: {answer['value']}"
    codes = CONTROL[name].codes
    if codes:
        assert answer.get("refused") in codes, answer
    else:
        assert answer.get("errno") in REFUSALS | {errno.EXDEV, errno.EROFS, errno.EBADF, errno.EINVAL}, answer
    after = prison.machines()
    assert {name: each["generation"] for name, each in after.items()} == {
        name: each["generation"] for name, each in before.items()
    }


@pytest.mark.parametrize(("rung", "profile"), PLACES)
def test_machine_is_born_with_its_own_descriptors_only(prison_of: PrisonOf, rung: str, profile: str) -> None:
    """Of 4,096 numbers: /dev/null, its console, its log, its control path, and what its own runtime has opened."""
    prison = prison_of(rung)
    machine = MACHINES[profile]
    prison.restart(machine)
    found = prison.ask(machine, ["descriptors"])
    assert set(found.values()) <= {"socket", "pipe", "anonymous", "device 1:3"}, found
    assert len(found) <= 24, found


# The log.

TERMINAL = [
    b"\x1b]0;title\x07",
    b"\x1b[2J\x1b[H",
    b"\x1b[6n",
    b"\x1bP+q544e\x1b\\",
    b"\x9b2J",
    "\x9b2J\u202eevil\u2066".encode(),
    b"\x1b]52;c;ZXZpbA==\x07",
    b"\rOTHER | forged",
    b"\x08\x08\x08\x08",
    b"\x00\x7f\xff\xfe",
]


def _all_of(machine: str, printed: str) -> bool:
    """Whether each line begins with a time and the machine's name."""
    return all(re.match(rf"\w{{3}} \d\d [\d:.]+ {machine} +\| ", line) for line in printed.split("\n") if line)


def _logs(prison: Prison, machine: str, *more: str) -> str:
    done = prison.bench.run("logs", machine, "-n", "all", *more)
    assert done.returncode == 0, done.stderr
    return done.stdout


@pytest.mark.parametrize("rung", ["full"])
def test_log_line_does_nothing_to_a_terminal(prison_of: PrisonOf, rung: str) -> None:
    """As ``retinue logs`` prints it: no control character leaves it but the newline."""
    prison = prison_of(rung)
    marker = f"marker-{os.getpid()}"
    prison.ask("OTHER", ["say", [each + b" " + marker.encode() + b"\n" for each in TERMINAL]])
    printed = _logs(prison, "OTHER")
    assert printed.count(marker) >= len(TERMINAL)
    for line in printed.splitlines():
        assert line.isprintable() or "\t" in line, ascii(line)
    assert not any(ord(char) < 32 and char not in "\n\t" for char in printed)
    assert _all_of("OTHER", printed), printed


@pytest.mark.parametrize("rung", ["full"])
def test_log_record_cannot_be_forged_for_another_machine(prison_of: PrisonOf, rung: str) -> None:
    """A machine writes frames as the log library does, with whatever it likes in them: the stamp is not its own."""
    prison = prison_of(rung)
    marker = f"forged-{os.getpid()}"
    bodies: list[Any] = [
        [1.0e9, 0, "retinue.cp", f"{marker} CP says", {"machine": "CP", "generation": 7}],
        [1.0e9, 0, "x", f"OTHER | {marker}", {"machine": "OTHER"}],
        [1.0e9, 0, "x", f"{marker}\nOTHER | second line", {}],
        [1.0e9, 0, "x", marker, {"of": "OTHER", "event": "STOPPED"}],
    ]
    prison.ask("PEER", ["say", [wire.encode([wire.Kind.SEND, number + 1, body]) for number, body in enumerate(bodies)]])
    records = [json.loads(line) for line in _logs(prison, "PEER", "--json").splitlines()]
    ours = [record for record in records if marker in record["message"]]
    assert len(ours) == len(bodies)
    assert {record["machine"] for record in ours} == {"PEER"}
    assert not any(record["logger"].startswith("retinue.cp") for record in ours)
    for other in ("OTHER", "CP"):
        assert marker not in _logs(prison, other)
    assert _all_of("PEER", _logs(prison, "PEER"))


@pytest.mark.parametrize("rung", ["full"])
def test_log_flood_drives_out_nobody_elses_lines(prison_of: PrisonOf, rung: str) -> None:
    """Another machine's line, said before, is there afterwards."""
    prison = prison_of(rung)
    marker = f"before-the-flood-{os.getpid()}"
    prison.ask("OTHER", ["say", [marker.encode() + b"\n"]])
    for _ in range(20):
        prison.ask("PEER", ["say", [b"flood " * 20 + b"\n"] * 500])
    prison.ask("OTHER", ["say", [b"after-" + marker.encode() + b"\n"]])
    printed = _logs(prison, "OTHER")
    assert marker in printed
    assert "after-" + marker in printed
