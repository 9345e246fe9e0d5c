"""Segments of real machines: sealed, larger than all real storage, and over the death of a control program."""

import json
import os
import pathlib
import signal

from tests.systems import Bench, wait_for

# Written and verified, with other contents in each page; the program asks ahead for what it reads in order.
LARGE = """\
from retinue.svm import Machine
from retinue.pipes import AccessDenied, Rejected

SIZE = 256 << 20
WINDOW = 4 << 20

def stamp(offset):
    return offset.to_bytes(8, "big")

async def main(vm: Machine) -> None:
    segment = await vm.segment("large", "256M")
    assert len(segment) == SIZE
    for offset in range(0, SIZE, 4096):
        segment[offset + 8:offset + 16] = stamp(offset)
    for first in range(0, SIZE, WINDOW):
        segment.prefetch(first, WINDOW)
        for offset in range(first, first + WINDOW, 4096):
            assert segment[offset + 8:offset + 16] == stamp(offset)
    try:
        await vm.segment("more", 1)
    except AccessDenied as refused:
        print("refused:", refused.text)
    try:
        bytearray(48 << 20)
    except MemoryError:
        print("no more of anything else")
    await vm.ready()
    await vm.stopping.wait()
"""

# Answers whether everything is there, which reads it all again; kept over its own death.
KEEPER = """\
import os
from retinue.svm import Machine

SIZE = 24 << 20

async def main(vm: Machine) -> None:
    segment = await vm.segment("state", SIZE, keep=True)
    scratch = await vm.segment("scratch", "1M")
    print("began with", segment[4095], scratch[0])
    for offset in range(4095, SIZE, 4096):
        assert segment[offset] in (0, 7)
        segment[offset] = 7
    scratch[0] = 1
    await vm.ready()
    await vm.stopping.wait()
    print("all there:", all(segment[offset] == 7 for offset in range(4095, SIZE, 4096)))
"""

OTHER = """\
from retinue.svm import Machine

async def main(vm: Machine) -> None:
    await vm.ready()
    await vm.stopping.wait()
"""


def records(bench: Bench, machine: str) -> list[str]:
    done = bench.run("logs", machine, "--json", "-n", "100")
    assert done.returncode == 0, done.stderr
    return [json.loads(line)["message"] for line in done.stdout.splitlines()]


def pages(pid: int, name: str) -> int:
    """Bytes of a file that a process has in its tables."""
    total, wanted = 0, False
    for line in pathlib.Path(f"/proc/{pid}/smaps").read_text(errors="replace").splitlines():
        words = line.split()
        if not words[0].endswith(":"):
            wanted = f"/paging/{name}" in line
        elif wanted and words[0] == "Rss:":
            total += int(words[1]) * 1024
    return total


def test_a_segment_larger_than_all_real_storage_of_its_machine_is_written_and_verified(bench: Bench) -> None:
    """Eight times as large: nobody is killed for it, and it may have no more of anything else."""
    bench.write(large=LARGE)
    keys = 'storage = "32M"\nsegments = "256M"\nrestart = "never"\n'
    bench.file.write_text(bench.file.read_text() + keys)
    bench.up()
    told = records(bench, "LARGE")
    assert told[-2:] == [
        "refused: with more the segments of LARGE would have 268435457 bytes, and it may have 268435456; "
        'to allow it, put  segments = "257M"  under [machines.LARGE]',
        "no more of anything else",
    ]
    assert bench.run("down").returncode == 0
    bench.assert_gone()
    assert [path.name for path in bench.folder.rglob("*large*") if "paging" in str(path)] == []


def test_kept_segments_outlive_machines_and_segments_are_put_out_over_control_programs(bench: Bench) -> None:
    """The pager puts them out when the system has less storage, also after the control program was killed."""
    bench.write(other=OTHER, keeper=KEEPER)
    bench.file.write_text(bench.file.read_text() + 'storage = "48M"\n')
    bench.up()
    pid = bench.pid_of("KEEPER")
    assert pages(pid, "KEEPER/state") >= 24 << 20
    os.kill(bench.cp_pid(), signal.SIGKILL)
    text = bench.file.read_text()
    bench.file.write_text(text.replace("[machines", 'storage = "32M"\n[machines', 1))
    done = bench.run("apply", str(bench.file))
    assert done.returncode == 0, done.stderr
    wait_for(lambda: pages(pid, "KEEPER/state") < 8 << 20)
    assert bench.pid_of("KEEPER") == pid
    bench.file.write_text(text)
    assert bench.run("apply", str(bench.file)).returncode == 0
    done = bench.run("restart", "KEEPER")
    assert done.returncode == 0, done.stderr
    assert bench.run("down").returncode == 0
    bench.assert_gone()
    kept = [path.name for path in bench.folder.rglob("paging/KEEPER/*")]
    assert kept == ["state"]
    bench.up()
    assert [line for line in records(bench, "KEEPER") if line.startswith(("began", "all"))][-1:] == ["began with 7 0"]
    assert bench.run("down").returncode == 0
