"""What a machine is made of at each rung: the layers of its level, and no privilege."""

import os
import pathlib
import signal
import subprocess
import sys

import pytest
from tests.escapes.conftest import PrisonOf
from tests.escapes.prison import (
    MACHINES,
    Refused,
    begin,
    copy_inside,
    native_entry,
    wait_until_ready,
)
from tests.escapes.rungs import AS_ROOT, PLACES, RUNGS
from tests.systems import Bench, wait_for

from retinue.cp.host import levels

PROJECT = pathlib.Path(__file__).parents[2]


@pytest.mark.parametrize(("rung", "profile"), PLACES)
def test_machine_has_the_layers_of_its_level(prison_of: PrisonOf, rung: str, profile: str) -> None:
    prison = prison_of(rung)
    least = next(level for level in levels.LEVELS if level == prison.rung.level)
    wanted = levels.layers_of(least, network=profile == "network", root=os.geteuid() == 0)
    assert set(wanted) <= set(prison.machines()[MACHINES[profile]]["seal"])


@pytest.mark.parametrize(("rung", "profile"), PLACES)
def test_machine_has_no_privilege(prison_of: PrisonOf, rung: str, profile: str) -> None:
    """As the kernel says it. With the host's network and as root: the right to bind a port below 1024, nothing else."""
    status = status_of(prison_of(rung).machines()[MACHINES[profile]]["pid"])
    assert (status["NoNewPrivs"], status["Seccomp"]) == ("1", "2")
    assert {status["CapInh"], status["CapAmb"]} == {"0" * 16}
    allowed = 1 << 10 if profile == "network" and os.geteuid() == 0 else 0
    assert {int(status[name], 16) & ~allowed for name in ("CapPrm", "CapEff")} == {0}
    assert status["Groups"] == "" or os.geteuid() != 0


def status_of(pid: int) -> dict[str, str]:
    """What the kernel says of a process."""
    lines = pathlib.Path(f"/proc/{pid}/status").read_text().splitlines()
    return {name: value.strip() for name, _, value in (line.partition(":") for line in lines)}


@pytest.mark.parametrize("rung", RUNGS)
def test_no_machine_of_root_is_root(prison_of: PrisonOf, rung: str) -> None:
    """Each has a user of its own: what escapes is nobody, and not the owner of every library.

    Those of an ordinary user's system have that user, who is all that such a system could give.
    """
    users = {name: status_of(each["pid"])["Uid"].split()[0] for name, each in prison_of(rung).machines().items()}
    if AS_ROOT:
        assert "0" not in users.values(), users
        assert len(set(users.values())) == len(users)
    else:
        assert set(users.values()) == {str(os.geteuid())}


def test_exec_machine_knows_no_user_of_the_host(prison_of: PrisonOf) -> None:
    prison = prison_of("full")
    answer = prison.ask("NATIVE", ["perform", "files/read-etc-passwd", prison.world("exec")])
    assert "root" not in answer["value"]
    assert answer["value"].count(":/") <= 2


def test_exec_machine_without_a_root_of_its_own_is_refused(bench: Bench) -> None:
    """It may open UNIX sockets: without a root of its own it would reach those of the host, the operator's first."""
    disk = bench.folder / "state" / "retinue" / bench.name / "disks" / "NATIVE" / "d"
    disk.mkdir(parents=True)
    copy_inside(disk)
    bench.file.write_text(f'[system]\nname = "{bench.name}"\nseal = "strong"\n' + native_entry("NATIVE"))
    up = begin(bench, "user-namespaces", "mounts")
    with pytest.raises(Refused, match="mount-ns"):
        wait_until_ready(bench, up)


def test_systems_end_with_the_run_that_has_started_them(bench: Bench) -> None:
    """However it ends: not even a run that is killed leaves a system behind."""
    bench.file.write_text(f'[system]\nname = "{bench.name}"\nseal = "basic"\n[machines.ONE]\nprogram = "one"\n')
    (bench.folder / "one.py").write_text("async def main(vm):\n    await vm.ready()\n    await vm.stopping.wait()\n")
    code = (
        "import os, pathlib, sys\n"
        "from tests.escapes.prison import begin, wait_until_ready\n"
        "from tests.systems import Bench\n"
        "bench = Bench(pathlib.Path(sys.argv[1]), sys.argv[2], dict(os.environ))\n"
        "wait_until_ready(bench, begin(bench))\n"
        "os.kill(os.getpid(), 9)\n"
    )
    environ = bench.environ | {"PYTHONPATH": os.pathsep.join((str(PROJECT), str(PROJECT / "src")))}
    done = subprocess.run([sys.executable, "-c", code, str(bench.folder), bench.name], env=environ, check=False)
    assert done.returncode == -signal.SIGKILL
    wait_for(lambda: not bench.processes())
