"""Objects of the image that are not counted any more."""

import os
import subprocess
import sys

import pytest

from retinue.cp.host import immortal

CHILD = """
import gc, os, sys
from retinue.cp.host import immortal
import trio, msgpack, attrs, cattrs
trio.run(trio.sleep, 0)
if sys.argv[1] == "immortal":
    assert immortal.immortalise() > 10_000
gc.collect()
gc.freeze()
if os.fork() == 0:
    async def work():
        for number in range(1000):
            await trio.lowlevel.checkpoint()
        return [str(each) for each in (1.5, "x", b"y", {"a": [1]}, sys.modules["trio"], cattrs.Converter)]
    assert len(trio.run(work)) == 6
    gc.collect()
    own = 0
    for line in open("/proc/self/smaps_rollup"):
        if line.startswith("Private_"):
            own += int(line.split()[1])
    print(own, flush=True)
    os._exit(0)
assert os.waitstatus_to_exitcode(os.wait()[1]) == 0
"""

WALK = """
import ctypes, gc, sys
from retinue.cp.host import immortal
import trio, msgpack, attrs, cattrs

def data():
    return next(int(line.split()[1]) for line in open("/proc/self/status") if line.startswith("VmData"))

before = data()
immortal.immortalise()
print(data() - before)
seen, level = {}, [sys.modules]
while level:
    fresh = {id(each): each for each in level if id(each) not in seen}
    seen |= fresh
    level = gc.get_referents(*fresh.values())
counted = [where for where in seen if ctypes.c_uint32.from_address(where).value != 0xFFFF_FFFF]
print(len(seen), sum(type(seen[where]) is not int for where in counted))
"""


@pytest.mark.skipif(not immortal.POSSIBLE, reason="this interpreter has no immortal objects as they are known here")
def test_everything_that_modules_lead_to_is_immortal_and_the_heap_stays_small() -> None:
    """But for what the walk itself makes: numbers, and a handful of others."""
    done = subprocess.run([sys.executable, "-c", WALK], capture_output=True, text=True, check=True)
    more, seen, counted = map(int, done.stdout.split())
    assert seen > 30_000
    assert counted < 20
    assert more < 4096


def own_kib(how: str) -> int:
    done = subprocess.run([sys.executable, "-c", CHILD, how], capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr
    return int(done.stdout)


@pytest.mark.skipif(not immortal.POSSIBLE, reason="this interpreter has no immortal objects as they are known here")
def test_a_fork_keeps_less_for_itself_where_the_image_is_immortal() -> None:
    assert own_kib("immortal") < 0.75 * own_kib("mortal")


@pytest.mark.skipif(immortal.POSSIBLE, reason="this interpreter has immortal objects")
def test_nothing_is_touched_where_it_is_not_known_how() -> None:
    count = sys.getrefcount(os)
    assert immortal.immortalise() == 0
    assert sys.getrefcount(os) == count
