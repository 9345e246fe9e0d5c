"""`retinue ps` as a table."""

from typing import Any

import pytest

from retinue.cp.cli.edges import edge_lines, percentile_bound
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


EDGE: dict[str, Any] = {
    "from": "WEB",
    "name": "app",
    "to": "SHOP",
    "on_restart": "keep",
    "overflow": "block",
    "limit": 64,
    "paths": 1,
    "meters": {
        "from": {
            "sent": 1200,
            "received": 3,
            "bytes_sent": 150 << 10,
            "bytes_received": 2 << 20,
            "outstanding": 2,
            "high_water": 9,
            "dropped": 0,
            "redelivered": 0,
            "latency": [*([0] * 7), 600, 590, *([0] * 5), 10, *([0] * 17)],
        },
        "to": None,
    },
}


def test_edges_are_a_table() -> None:
    assert edge_lines({"edges": [EDGE]}, paint=Paint(False)) == [
        "FROM  EDGE  TO    PATHS  MESSAGES  BACK  BYTES  BACK  OUT  HIGH  LIMIT  DROPS      P50      P99  "
        "ON RESTART  OVERFLOW",
        "WEB   app   SHOP      1      1200     3   150K    2M    2     9     64      0  <=128us  <=256us  "
        "keep        block",
    ]


def test_edge_whose_one_end_does_not_tell_has_the_figures_of_the_other() -> None:
    meters = {"from": None, "to": {**EDGE["meters"]["from"], "sent": 3, "received": 1200}}
    _, line = edge_lines({"edges": [{**EDGE, "meters": meters}]}, paint=Paint(False))
    assert line.split() == [
        *("WEB", "app", "SHOP", "1", "1200", "3", "2M", "150K", "-", "-", "64", "-", "-", "-", "keep", "block"),
    ]
    _, line = edge_lines({"edges": [{"on_restart": None}]}, paint=Paint(False))
    assert set(line.split()) == {"?", "-"}


def test_drops_are_coloured() -> None:
    meters = {"from": {**EDGE["meters"]["from"], "dropped": 5}, "to": None}
    _, line = edge_lines({"edges": [{**EDGE, "meters": meters}]}, paint=Paint(True))
    assert "\x1b[31m    5\x1b[0m" in line


def test_edges_cannot_be_used_to_control_the_terminal() -> None:
    lines = edge_lines({"edges": [{**EDGE, "name": "\x1b[2J\n"}]}, paint=Paint(False))
    assert len(lines) == 2
    assert not any(char < " " for char in lines[1])


@pytest.mark.parametrize(
    ("buckets", "share", "expected"),
    [
        ({}, 0.5, None),
        ({0: 1}, 0.5, 1),
        ({3: 1}, 0.99, 8),
        ({3: 50, 4: 50}, 0.5, 8),
        ({3: 49, 4: 51}, 0.5, 16),
        ({3: 99, 20: 1}, 0.99, 8),
        ({3: 98, 20: 2}, 0.99, 1 << 20),
    ],
)
def test_percentile_is_the_bound_of_its_bucket(buckets: dict[int, int], share: float, expected: int | None) -> None:
    assert percentile_bound([buckets.get(bucket, 0) for bucket in range(32)], share) == expected


def test_latency_is_told_in_units_that_can_be_read() -> None:
    def shown(bucket: int) -> str:
        latency = [0] * 32
        latency[bucket] = 1
        meters = {"from": {**EDGE["meters"]["from"], "latency": latency}, "to": None}
        return edge_lines({"edges": [{**EDGE, "meters": meters}]}, paint=Paint(False))[1].split()[12]

    assert [shown(bucket) for bucket in (0, 9, 10, 17, 20, 29, 31)] == [
        *("<=1us", "<=512us", "<=1.02ms", "<=131ms", "<=1.05s", "<=537s", ">1073s"),
    ]
