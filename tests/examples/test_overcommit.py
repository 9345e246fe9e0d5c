"""The example overcommit, small: fewer machines, smaller tables, as much more storage defined than there is."""

import json
import shutil
from typing import Any

from tests.examples.test_examples import EXAMPLES
from tests.systems import Bench, wait_for
from tests.volumes import root_only, swaps

MIB = 1 << 20


def install(bench: Bench, topology: str, storage: str) -> None:
    """Six tables of 8 MiB each, in so much real storage."""
    folder = bench.folder / "overcommit"
    shutil.copytree(EXAMPLES / "overcommit", folder)
    bench.file = folder / f"{topology}.toml"
    text = bench.file.read_text()
    real = "512M" if topology == "segments" else "256M"
    for old, new in (
        (f'name = "{topology.upper()}"', f'name = "{bench.name}"'),
        (f'storage = "{real}"\n', f'storage = "{storage}"\n'),
        ("instances = 50\n", "instances = 6\nconfig.mib = 8\n"),
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
    told = storage_of(bench)
    assert {machine["generation"] for machine in told["machines"]} == {1}
    assert {machine["state"] for machine in told["machines"]} == {"READY"}
    assert told["totals"]["writes"] > 0
    assert "no machine is started" not in bench.run("logs", "CP", "-n", "all").stdout
    assert "resident;" in bench.run("ps", "--storage").stdout
    return told


def storage_of(bench: Bench) -> dict[str, Any]:
    found: dict[str, Any] = json.loads(bench.run("ps", "--storage", "--json").stdout)
    return found


@root_only
def test_tables_lie_on_a_paging_volume(bench: Bench) -> None:
    """What is in ordinary memory goes to swap, which is there as long as the system is."""
    before = swaps(bench.folder)
    install(bench, "swap", "56M")
    told = visit(bench)
    assert told["totals"]["paged"] > 0
    assert told["totals"]["instantiated"] > told["storage"]
    assert swaps(bench.folder) != before
    assert bench.run("down").returncode == 0
    assert swaps(bench.folder) == before
    bench.assert_gone()


def test_tables_are_segments(bench: Bench) -> None:
    """What is in a segment needs neither root nor swap to be put out."""
    install(bench, "segments", "88M")
    told = visit(bench)
    tables = [machine for machine in told["machines"] if machine["name"] != "VISITOR"]
    assert sum(table["segments"] for table in tables) < 6 * 8 * MIB
    assert bench.run("down").returncode == 0
    bench.assert_gone()
