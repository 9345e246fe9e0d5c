"""How long one changed line of a large topology takes to take effect, and whom it touches.

``python benchmarks/apply.py [--json]``: 200 machines run; one line of one of them is changed, in turn one that needs
another process and one that does not, and the file is applied. The time is that of the command, from its start to its
end.
"""

import sys
from pathlib import Path

if __name__ == "__main__":
    # As a script its own folder comes first, and there another file would pass for the standard library's `http`.
    sys.path.pop(0)
    sys.path.insert(0, str(Path(__file__).resolve().parent.parent))

import argparse
import json
import statistics
import tempfile
import time
from typing import Final

from benchmarks import systems
from benchmarks.processes import end_on_signals
from benchmarks.report import Result, add_options, form, machine, progress, show

MACHINES: Final = 200
ROUNDS: Final = 5
SECOND: Final = 1.0

PROGRAM: Final = """\
import attrs

from retinue.svm import Machine


@attrs.frozen
class Config:
    number: int = 0


async def main(vm: Machine[Config]) -> None:
    await vm.ready()
    await vm.stopping.wait()
"""


def topology(machines: int, *, number: int = 0, share: int = 100) -> str:
    """All alike, but for the config and the share of one."""
    text = '[system]\nname = "APPLY"\n'
    for each in range(machines):
        text += f'[machines.M{each}]\nprogram = "node"\n'
        if each == machines // 2:
            text += f"config.number = {number}\nshare = {share}\n"
    return text


def pids(state: Path) -> dict[str, int]:
    """The process of every machine."""
    listed = json.loads(systems.retinue(state, "ps", "--json").stdout)["machines"]
    return {each["name"]: each["pid"] for each in listed}


def measure(machines: int, rounds: int) -> list[Result]:
    """Apply changes to a running system."""
    times: dict[str, list[float]] = {"replaced": [], "set": []}
    touched: dict[str, list[int]] = {"replaced": [], "set": []}
    with tempfile.TemporaryDirectory(prefix="retinue-bench-") as folder:
        root, state = Path(folder), Path(folder) / "state"
        (root / "node.py").write_text(PROGRAM)
        file = root / "apply.toml"
        file.write_text(topology(machines))
        begun = time.perf_counter()
        with systems.running(file, state):
            progress(f"{machines} machines are up after {time.perf_counter() - begun:.1f} s")
            number, share = 0, 100
            for turn in range(2 * rounds):
                how = "replaced" if turn % 2 == 0 else "set"
                number, share = (number + 1, share) if how == "replaced" else (number, share - 5)
                file.write_text(topology(machines, number=number, share=share))
                before = pids(state)
                begun = time.perf_counter()
                done = systems.retinue(state, "apply", str(file))
                times[how].append(time.perf_counter() - begun)
                if done.returncode != 0:
                    raise RuntimeError(done.stderr)
                after = pids(state)
                touched[how].append(sum(before[name] != after[name] for name in before))
    return [
        Result(f"{machines} machines, config of one: touched", max(touched["replaced"]), "machines", 1, at_most=True),
        Result("config of one: apply", statistics.median(times["replaced"]), "s", SECOND, at_most=True),
        Result(f"{machines} machines, share of one: touched", max(touched["set"]), "machines", 0, at_most=True),
        Result("share of one: apply", statistics.median(times["set"]), "s", SECOND, at_most=True),
    ]


def main(arguments: list[str] | None = None) -> int:
    """Measure and report; the exit status is 1 when more was touched than was changed."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    add_options(parser)
    parser.add_argument("--machines", type=int, default=MACHINES, help="how many")
    parser.add_argument("--rounds", type=int, default=ROUNDS, help="of each kind of change")
    given = parser.parse_args(arguments)
    report = form(machine({}), measure(given.machines, given.rounds))
    show(report, as_json=given.json)
    return 1 if any(each["met"] is False and each["unit"] == "machines" for each in report["results"]) else 0


if __name__ == "__main__":
    end_on_signals()
    sys.exit(main())
