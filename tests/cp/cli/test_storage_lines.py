"""`retinue ps --storage` as a table, and as INDICATE USER shows it."""

from typing import Any

from retinue.cp.cli.output import Paint
from retinue.cp.cli.storage import storage_lines, user_lines

MIB = 1 << 20

SHOP: dict[str, Any] = {
    "name": "SHOP@1",
    "state": "READY",
    "generation": 1,
    "paged_out": True,
    "defined": 128 * MIB,
    "instantiated": 40 * MIB,
    "resident": MIB,
    "private": 512 << 10,
    "segments": 0,
    "working": 12 * MIB,
    "paged": 39 * MIB,
    "reads": 7,
    "writes": 9984,
    "idle": 41.5,
    "reserve": 8 * MIB,
    "priority": 200,
    "idle_page_out": 30.0,
    "held": None,
}
NOTHING: dict[str, Any] = dict.fromkeys(SHOP) | {
    "name": "WAITER",
    "state": "WAITING",
    "generation": 3,
    "paged_out": False,
    "defined": 64 * MIB,
    "reserve": 0,
    "priority": 100,
    "held": "it was ended for want of real storage\x1b[2J",
}
REPORT: dict[str, Any] = {
    "system": "SHOP",
    "state": "READY",
    "storage": 64 * MIB,
    "step": "hold",
    "pressure": 0.034,
    "paging": {
        "limit": "paging",
        "mechanism": "segments only",
        "enforced": False,
        "why": "no swap",
        "cure": "make some",
    },
    "totals": {
        **{"defined": 192 * MIB, "instantiated": 40 * MIB, "resident": MIB, "private": 512 << 10, "segments": 0},
        **{"paged": 39 * MIB, "reads": 7, "writes": 9984, "reserve": 8 * MIB, "working": 12 * MIB},
    },
    "overcommit": {"defined": 3.0, "instantiated": 0.62},
    "machines": [SHOP, NOTHING],
}


def test_listing_has_machines_reasons_and_totals() -> None:
    """What keeps a machine from being started stands below it, without what a terminal would obey."""
    head, shop, waiter, *rest = [line.rstrip() for line in storage_lines(REPORT, paint=Paint(False))]
    assert " ".join(head.split()) == (
        "NAME STATE DEFINED INSTANT RESIDENT PRIVATE SEGMENT WORKING PAGED READS WRITES RESERVE PRIO IDLE"
    )
    assert " ".join(shop.split()) == "SHOP@1 READY paged 128M 40M 1M 512K 0B 12M 39M 7 9984 8M 200 41s"
    assert " ".join(waiter.split()) == "WAITER WAITING 64M - - - - - - - - - 100 -"
    assert {len(line) for line in (head, shop)} == {max(map(len, (head, shop, waiter)))}
    assert rest == [
        "  it was ended for want of real storage\\x1b[2J",
        "",
        "1M of 64M resident; 192M defined, 40M instantiated, 12M working set, 39M paged, 8M reserved",
        "over-commit 3:1 defined, 0.62:1 instantiated; 7 pages read, 9984 written",
        "paging by segments only (no swap); pressure 3 %",
        "to have better: make some",
        "over-committed: no machine is started",
    ]


def test_listing_without_a_bound_says_so() -> None:
    unbounded = {**REPORT, "storage": None, "step": "fits", "pressure": None, "machines": []}
    unbounded["totals"] = {**REPORT["totals"], "working": None}
    lines = storage_lines(unbounded, paint=Paint(False))
    assert lines[2].startswith("1M resident, without a bound; 192M defined, 40M instantiated, - working set")
    assert lines[-1] == "to have better: make some"


def test_indicate_user_counts_pages() -> None:
    assert user_lines(REPORT, {"SHOP"}) == [
        "USERID=SHOP@1   STATE=READY STOR=128M PRIO=200",
        "PAGES: RES=256 WS=3072 INSTAN=10240 RESVD=2048 PAGED=9984 READS=7 WRITES=9984",
    ]
    assert len(user_lines(REPORT, set())) == 4
    assert user_lines(REPORT, {"WAITER"})[1].startswith("PAGES: RES=- WS=- INSTAN=- RESVD=0 PAGED=- READS=-")
