"""The example overcommit, small: fewer machines, smaller tables, as much more storage defined than there is."""

import json
import shutil
import threading
from typing import Any

from tests.examples.test_examples import EXAMPLES
from tests.systems import Bench, wait_for
from tests.volumes import root_only, swaps


def install(bench: Bench, topology: str, storage: str, *, mib: int) -> None:
    """Six tables of so many MiB each, in so much real storage."""
    folder = bench.folder / "overcommit"
    shutil.copytree(EXAMPLES / "overcommit", folder)
    bench.file = folder / f"{topology}.toml"
    text = bench.file.read_text()
    for old, new in (
        (f'name = "{topology.upper()}"', f'name = "{bench.name}"'),
        ('storage = "256M"\n', f'storage = "{storage}"\n'),
        ("instances = 50\n", f"instances = 6\nconfig.mib = {mib}\n"),
        ('program = "visitor"\n', 'program = "visitor"\nconfig.machines = 6\nconfig.rounds = 2\nconfig.pause = 0.1\n'),
    ):
        assert text.count(old) == 1, old
        text = text.replace(old, new)
    bench.file.write_text(text.replace('size = "2G"', 'size = "128M"'))


def visit(bench: Bench) -> dict[str, Any]:
    """It comes up, every answer is right, and it keeps within its storage; returns what it has then."""
    bench.up()
    wait_for(lambda: "the visit is over" in bench.run("logs", "VISITOR").stdout)
    assert "round 2: 6 right answers" in bench.run("logs", "VISITOR").stdout
    wait_for(lambda: (told := storage_of(bench))["totals"]["resident"] <= told["storage"])
    assert "over-committed" not in bench.run("logs", "CP", "-n", "all").stdout
    assert "resident;" in bench.run("ps", "--storage").stdout
    return storage_of(bench)


def storage_of(bench: Bench) -> dict[str, Any]:
    found: dict[str, Any] = json.loads(bench.run("ps", "--storage", "--json").stdout)
    return found


@root_only
def test_tables_lie_on_a_paging_volume(bench: Bench) -> None:
    """What is in ordinary memory goes to swap, which is there as long as the system is."""
    before = swaps(bench.folder)
    install(bench, "swap", "56M", mib=8)
    told = visit(bench)
    assert {machine["generation"] for machine in told["machines"]} == {1}
    assert {machine["state"] for machine in told["machines"]} == {"READY"}
    assert told["totals"]["writes"] > 0
    assert told["totals"]["paged"] > 0
    assert told["totals"]["instantiated"] > told["storage"]
    assert swaps(bench.folder) != before
    assert bench.run("down").returncode == 0
    assert swaps(bench.folder) == before
    bench.assert_gone()


def test_tables_are_segments_of_machines_that_rest(bench: Bench) -> None:
    """Neither root nor swap is needed: segments are put out, and what is left goes when a machine rests.

    Three or four of the six have room at a time. Nobody is ended, no call is lost, and every table is what it was.
    """
    install(bench, "segments", "40M", mib=2)
    totals: list[int] = []
    over = threading.Event()

    def look() -> None:
        while not over.wait(0.05):
            totals.append(bench.ask("storage")["totals"]["resident"])

    looking = threading.Thread(target=look)
    looking.start()
    try:
        told = visit(bench)
    finally:
        over.set()
        looking.join()
    tables = [machine for machine in told["machines"] if machine["name"] != "VISITOR"]
    assert {machine["state"] for machine in tables} <= {"READY", "DORMANT"}
    assert "DORMANT" in {machine["state"] for machine in tables}
    assert max(table["generation"] for table in tables) > 1
    assert max(totals) <= 1.05 * told["storage"]
    text = bench.run("logs", "CP", "-n", "all").stdout
    assert text.count("is DORMANT") > 6 + 3
    assert "is STOPPING: rests: real storage was wanted, and nothing has passed for" in text
    why = bench.run("why", next(table["name"] for table in tables if table["state"] == "DORMANT")).stdout
    assert "rests: real storage was wanted" in why
    assert {machine["restarts"] for machine in bench.ask("ps")["machines"]} == {0}
    assert bench.run("down").returncode == 0
    bench.assert_gone()
