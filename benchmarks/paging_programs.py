"""The machines of benchmarks/paging.py: topologies, and programs as texts that are written into a folder."""

import pathlib
from typing import Final

IDLE: Final = '''\
"""Answers, and does nothing else."""

from retinue.svm import Machine


async def main(vm: Machine[None]) -> None:
    async def answer(message: object) -> str:
        return "here"

    await vm.serve(answer)
'''

#: Calls every idle machine once for each file ``go-N`` that it finds on its disk, and prints the seconds of each call.
ASKER: Final = """\
import json
import time

import attrs
import trio

from retinue.svm import Machine


@attrs.frozen
class Config:
    machines: int
    every: float = 0.0


async def main(vm: Machine[Config]) -> None:
    paths = [await vm.connect_instance(vm.edges[n // 50], n % 50 + 1) for n in range(vm.config.machines)]
    await vm.ready()
    if vm.config.every:
        while True:
            for path in paths:
                await path.call("wake up")
                await trio.sleep(vm.config.every)
    number = 0
    while True:
        if not (vm.disk("a") / f"go-{number}").exists():
            await trio.sleep(0.05)
            continue
        number += 1
        times = []
        for path in paths:
            begun = time.perf_counter()
            await path.call("wake up")
            times.append(time.perf_counter() - begun)
            await trio.sleep(0)
        print(json.dumps({"times": times}))
"""

#: Looks at random pages of its segment for so many seconds, and prints how many it has looked at.
READER: Final = """\
import json
import time

import attrs
import trio

from retinue.svm import Machine

from access import pages, run


@attrs.frozen
class Config:
    mib: int
    seconds: float
    zipf: bool


async def main(vm: Machine[Config]) -> None:
    config = vm.config
    segment = await vm.segment("table", config.mib << 20)
    await vm.ready()
    for at in range(0, len(segment), 4096):
        segment[at : at + 8] = at.to_bytes(8, "big")
        if not at % (1 << 20):
            await trio.sleep(0)
    draw = pages(len(segment) // 4096, config.zipf, vm.name)
    print(json.dumps({"filled": True}))
    begun = time.perf_counter()
    done = wrong = 0
    while time.perf_counter() < begun + config.seconds:
        wrong += run(segment, draw, 256)
        done += 256
        await trio.sleep(0)
    print(json.dumps({"rate": done / (time.perf_counter() - begun), "wrong": wrong}))
    await vm.stopping.wait()
"""

#: Both of those who read: the machine, and the same program under the kernel alone.
ACCESS: Final = '''\
"""Random pages, all alike or by Zipf's law, and what stands in them."""

import bisect
import itertools
import random


def pages(count, zipf, seed):
    chance = random.Random(seed)
    if not zipf:
        return lambda: chance.randrange(count)
    places = list(range(count))
    chance.shuffle(places)
    sums = list(itertools.accumulate(1 / rank for rank in range(1, count + 1)))
    return lambda: places[bisect.bisect(sums, chance.random() * sums[-1]) % count]


def run(table, draw, times):
    """Look at so many pages and write into each eighth; how many did not hold what they should."""
    wrong = 0
    for number in range(times):
        at = draw() * 4096
        wrong += table[at : at + 8] != at.to_bytes(8, "big")
        if not number % 8:
            table[at + 8 : at + 16] = number.to_bytes(8, "big")
    return wrong
'''

#: The same program with a file that it maps itself: arguments are the file, MiB, seconds, "zipf" or "uniform", a seed.
PLAIN: Final = """\
import mmap
import os
import sys
import time

from access import pages, run

name, mib, seconds, law, seed = sys.argv[1:]
descriptor = os.open(name, os.O_RDWR | os.O_CREAT, 0o600)
os.posix_fallocate(descriptor, 0, int(mib) << 20)
table = mmap.mmap(descriptor, int(mib) << 20)
table.madvise(mmap.MADV_RANDOM)
print("there", flush=True)
sys.stdin.readline()
for at in range(0, len(table), 4096):
    table[at : at + 8] = at.to_bytes(8, "big")
draw = pages(len(table) // 4096, law == "zipf", seed)
begun = time.perf_counter()
done = wrong = 0
while time.perf_counter() < begun + float(seconds):
    wrong += run(table, draw, 256)
    done += 256
print(done / (time.perf_counter() - begun), wrong, flush=True)
"""

#: Asks its server for as long as the system runs, and prints how often in each second.
BUSY: Final = """\
import json
import time

from retinue.svm import Machine


async def main(vm: Machine[None]) -> None:
    path = await vm.connect("server")
    await vm.ready()
    while True:
        begun = time.perf_counter()
        calls = 0
        while time.perf_counter() < begun + 1:
            await path.call("here?")
            calls += 1
        print(json.dumps({"calls": calls, "began": begun, "ended": time.perf_counter()}))
"""

_PROGRAMS: Final = {"idle": IDLE, "asker": ASKER, "reader": READER, "access": ACCESS, "plain": PLAIN, "busy": BUSY}


def write(folder: pathlib.Path, topology: str) -> pathlib.Path:
    """All programs and a topology in a folder; returns the topology's file."""
    folder.mkdir(parents=True, exist_ok=True)
    for name, text in _PROGRAMS.items():
        (folder / f"{name}.py").write_text(text)
    file = folder / "paging.toml"
    file.write_text(topology)
    return file


def idle_system(machines: int, *, page_out: float, volume: bool, every: float = 0.0, busy: bool = False) -> str:
    """Machines that do nothing and one that asks them, up to 100; perhaps a pair that works all the time."""
    first, second = min(machines, 50), max(machines - 50, 0)
    text = '[system]\nname = "IDLE"\n'
    if page_out:
        text += f'idle_page_out = "{page_out:g}s"\n'
    if volume:
        text += f'paging = {{ volume = "page.img", size = "{max(64, machines * 8)}M" }}\n'
    text += f'[machines.A]\nprogram = "idle"\ninstances = {max(first, 2)}\n'
    uses = 'uses.a = "A"\n'
    if second:
        text += f'[machines.B]\nprogram = "idle"\ninstances = {max(second, 2)}\n'
        uses += 'uses.b = "B"\n'
    text += f'[machines.ASKER]\nprogram = "asker"\nidle_page_out = "off"\ndisks.a = {{}}\n{uses}'
    text += f"config.machines = {machines}\nconfig.every = {every}\n"
    if busy:
        text += '[machines.SERVER]\nprogram = "idle"\n[machines.BUSY]\nprogram = "busy"\nuses.server = "SERVER"\n'
    return text


def reading_system(storage: int, machines: int, mib: int, seconds: float, *, zipf: bool) -> str:
    """Machines that read their segments; ``storage`` and ``mib`` in MiB."""
    text = f'[system]\nname = "READING"\nstorage = "{storage}M"\n'
    for number in range(machines):
        text += f'[machines.R{number}]\nprogram = "reader"\nsegments = "{mib}M"\n'
        text += f"config.mib = {mib}\nconfig.seconds = {seconds}\nconfig.zipf = {str(zipf).lower()}\n"
    return text
