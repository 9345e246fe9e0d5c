"""The records of real systems that have ended, and of machines that are none any more."""

import contextlib
import json
import re
import sqlite3

from tests.cp.test_log_policy_live import Log, flood
from tests.systems import Bench, wait_for

SHOP = """\
import logging
from retinue.svm import Machine

async def main(vm: Machine) -> None:
    logging.info("sold")
    await vm.ready()
    await vm.stopping.wait()
"""


def away(log: Log) -> None:
    """Bring it up, stop what stores, and let the machines write."""
    log.up()
    log.said("stop", "SYSLOG")
    log.open_gate()
    log.until_done("DROP")


def test_last_losses_of_a_system_are_told_by_the_next_one(bench: Bench) -> None:
    """Under drop nothing waits on the disk but the count."""
    log = Log(bench)
    log.add("DROP", flood(1500), '{ policy = "drop" }')
    away(log)
    assert "lost" not in bench.run("down").stderr
    (log.state / "disks" / "GATE" / "a" / "open").unlink()
    log.up()
    wait_for(lambda: [*(log.state / "spill").iterdir()] == [])
    log.said("down")
    assert {"buffer", "end"} <= log.lost("DROP").keys()
    with contextlib.closing(sqlite3.connect(log.state / "disks" / "SYSLOG" / "a" / "records.sqlite3")) as database:
        rows = database.execute("SELECT run, seq, fields FROM records ORDER BY rowid").fetchall()
    first = [(seq, json.loads(fields)) for run, seq, fields in rows if run == rows[0][0]]
    # A number that is used is of a record that is stored, or in a gap; the gaps come last.
    lost = sum(fields.get("lost", 0) for _, fields in first if fields.get("cause") != "descriptor")
    assert len(first) + lost == first[-1][0]
    assert lost > 1000


def test_last_losses_that_no_disk_takes_are_told_by_down(bench: Bench) -> None:
    """With their number and their machine."""
    log = Log(bench)
    log.add("DROP", flood(200), '{ policy = "drop" }')
    away(log)
    (log.state / "spill").write_text("no folder")
    done = bench.run("down")
    assert done.returncode == 0
    (line,) = [line for line in done.stderr.splitlines() if line.startswith("-- at the end")]
    stored = len(log.stored("DROP"))
    found = re.search("([0-9]+) of DROP", line)
    assert found is not None
    # All that it wrote, the records of its death and of what is lost, and of each time its descriptor was full.
    assert 203 <= int(found[1]) + stored < 300


def test_records_of_a_machine_that_was_removed(bench: Bench) -> None:
    """They are shown as long as they are there; only a name that nobody knows is an error."""
    log = Log(bench)
    log.text += '[machines.SYSLOG2]\nprogram = "shop"\ninstances = 2\n'
    (bench.folder / "shop.py").write_text(SHOP)
    without = log.text
    log.add("SHOP", SHOP)
    log.up()
    bench.file.write_text(without.replace("instances = 2", "instances = 1"))
    log.said("apply", str(bench.file))
    for again in (True, False):
        assert "sold" in log.said("logs", "SHOP")
        assert "sold" in log.said("logs", "SYSLOG2@2")
        done = bench.run("logs", "SHOPP")
        assert done.returncode != 0
        assert "SHOP" in done.stderr.replace("SHOPP", "")
        log.said("down")
        if again:
            bench.up()


def test_plan_and_apply_say_that_the_paging_volume_stays(bench: Bench) -> None:
    """And how to have another."""
    (bench.folder / "shop.py").write_text(SHOP)
    text = f'[system]\nname = "{bench.name}"\n[machines.SHOP]\nprogram = "shop"\n'
    bench.file.write_text(text)
    bench.up()
    bench.file.write_text(text.replace("[machines", 'paging = { size = "1M" }\n[machines', 1))
    plan, apply = bench.run("plan", str(bench.file)), bench.run("apply", str(bench.file))
    assert "the paging volume is opened once, before any machine starts" in plan.stdout
    assert apply.returncode == 1
    assert "retinue down" in apply.stderr
    assert bench.run("down").returncode == 0
