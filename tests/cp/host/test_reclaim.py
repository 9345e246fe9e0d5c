"""Pages taken by the memory cgroup of a machine, where nobody may do it by the process."""

import pathlib
import subprocess
import sys
import uuid

import pytest
from tests.volumes import MIB, open_volume, root_only

from retinue.cp.host.cgroups import Groups
from retinue.cp.host.figures import look

FILLED = """
import mmap, sys
kept = mmap.mmap(-1, 24 << 20, flags=mmap.MAP_PRIVATE | mmap.MAP_ANONYMOUS)
for line in sys.stdin:
    for at in range(0, len(kept), 4096):
        kept[at] = 7
    print(sum(kept[::4096]), flush=True)
"""


@root_only
def test_a_group_gives_up_what_is_in_it(tmp_path: pathlib.Path) -> None:
    """All of it with either version; a part, of version 1, is refused with the reason."""
    groups = Groups(f"T{uuid.uuid4().hex[:6].upper()}")
    try:
        if not groups.reclaims:
            pytest.skip("this host gives no memory cgroups that can be reclaimed")
        group = groups.make("SHOP", 1, storage=128 * MIB, share=100, cpu=0.0)
        with (
            open_volume(tmp_path, 64 * MIB),
            subprocess.Popen(
                [sys.executable, "-S", "-c", FILLED], stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True
            ) as process,
        ):
            assert process.stdin is not None
            assert process.stdout is not None
            try:
                group.move(process.pid)
                process.stdin.write("\n")
                process.stdin.flush()
                filled = process.stdout.readline()
                before = look(process.pid)
                assert before is not None
                if groups.reclaims == 1:
                    assert "whole or not at all" in group.reclaim(MIB)
                assert group.reclaim(before.resident) == ""
                after = look(process.pid)
                assert after is not None
                assert before.resident - after.resident > 20 * MIB
                process.stdin.write("\n")
                process.stdin.flush()
                assert process.stdout.readline() == filled
            finally:
                process.kill()
    finally:
        groups.close()
