"""`retinue ps` as a table."""

from typing import Any

from retinue.cp.cli.listings import ps_lines
from retinue.cp.cli.output import Paint

READY: dict[str, Any] = {
    "name": "SHOP",
    "state": "READY",
    "pid": 4711,
    "generation": 1,
    "storage": {"limit": 128 << 20, "resident": 20 << 20},
    "uptime": 192.5,
    "restarts": 0,
    "kind": "program",
    "program": "shop",
    "network": False,
    "uses": [],
    "cause": None,
    "seal": [],
}
WAITING: dict[str, Any] = {
    **READY,
    "name": "TCPIP",
    "state": "WAITING",
    "pid": None,
    "generation": 12,
    "storage": {"limit": 64 << 20, "resident": None},
    "uptime": None,
    "restarts": 11,
    "program": "retinue.services.tcpip",
    "network": True,
    "cause": "killed by signal 9",
}


def test_ps_is_a_table() -> None:
    listing = {"system": "SHOP", "state": "READY", "machines": [READY, {**READY, "name": "DB"}]}
    assert ps_lines(listing, paint=Paint(False)) == [
        "NAME  STATE   PID  GEN   STORAGE  UPTIME  RESTARTS  PROGRAM",
        "SHOP  READY  4711    1  20M/128M   3m12s         0  shop",
        "DB    READY  4711    1  20M/128M   3m12s         0  shop",
    ]


def test_ps_shows_why_a_machine_ended() -> None:
    assert ps_lines({"machines": [READY, WAITING]}, paint=Paint(False)) == [
        "NAME   STATE     PID  GEN   STORAGE  UPTIME  RESTARTS  PROGRAM                           LAST END",
        "SHOP   READY    4711    1  20M/128M   3m12s         0  shop",
        "TCPIP  WAITING     -   12       64M       -        11  retinue.services.tcpip (network)  killed by signal 9",
    ]


def test_ps_cuts_the_last_column_to_the_terminal() -> None:
    lines = ps_lines({"machines": [WAITING]}, paint=Paint(False), room=95)
    assert max(map(len, lines)) == 95
    assert lines[1].endswith("  killed …")


def test_ps_cannot_be_used_to_control_the_terminal() -> None:
    hostile = {**WAITING, "cause": "\x1b[2J\nSHOP READY", "program": "x\x9b"}
    lines = ps_lines({"machines": [hostile]}, paint=Paint(False))
    assert len(lines) == 2
    assert not any(char < " " or "\x7f" <= char <= "\x9f" for line in lines for char in line)


def test_ps_colours_around_the_padding() -> None:
    _, line = ps_lines({"machines": [READY]}, paint=Paint(True))
    assert line.startswith("\x1b[")
    assert "\x1b[32mREADY\x1b[0m  4711" in line


def test_ps_of_a_reply_with_gaps_still_lists() -> None:
    assert ps_lines({"machines": [{"name": "X"}]}, paint=Paint(False))[1].split() == ["X", "?", "-", "-", "-", "-", "-"]
    assert len(ps_lines({}, paint=Paint(False))) == 1
