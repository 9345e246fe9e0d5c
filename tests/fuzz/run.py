"""Fuzz one target of the pipe layer with coverage guidance: python -m tests.fuzz.run TARGET [--seconds N]."""

import argparse
import importlib.util
import os
import re
import subprocess
import sys
from pathlib import Path
from typing import Final

# Seconds one input may take, and what all of a run may need in memory, before it is a finding.
TIMEOUT: Final = 10
MOST_MEMORY_MB: Final = 1024
# Bytes of one input: longer ones say nothing that these cannot, and take longer.
LONGEST: Final = 4096

TARGET_NAMES: Final = ("wire", "session", "bulk", "path")

MISSING: Final = """\
atheris is not installed in this environment. It is in an extra of its own:

    .venv/bin/pip install -e '.[test,fuzz]'

Where there is no atheris for this Python: pytest tests/fuzz runs every kept input, and some thousand made of them.
"""

ABOUT: Final = """\
Fuzz one target of the pipe layer. atheris (libFuzzer for Python) makes inputs, watches which lines of retinue.pipes
they reach, and goes on from those that reach new ones.

targets:
  wire      arbitrary bytes into the decoder of packets and memfds
  session   the bytes steer one session: commands of its program, frames of a hostile peer, lost descriptors
  bulk      memfds of any content, size and seals into the reader of large frames
  path      a whole path under trio, with a program above it and a hostile peer below
"""

EPILOG: Final = """\
It begins with tests/fuzz/corpus/TARGET and tests/fuzz/regressions/TARGET. What it learns is kept outside the
repository, in $XDG_CACHE_HOME/retinue-fuzz/TARGET (~/.cache without the variable), and the next run goes on from there.

It ends after --seconds, at Ctrl-C, or at the first finding: an exception, an input that takes 10 seconds, or more than
1 GiB of memory. The input is then in tests/fuzz/regressions/TARGET, the exit code is not 0, and pytest fails until the
bug is mended. docs/how-to/fuzz.md says what to do with it.

examples:
  python -m tests.fuzz.run session --seconds 600
  python -m tests.fuzz.run path --input tests/fuzz/regressions/path/crash-0123   run this one input, without atheris
"""


def arguments() -> argparse.Namespace:
    """What was asked for."""
    parser = argparse.ArgumentParser(
        "python -m tests.fuzz.run", description=ABOUT, epilog=EPILOG, formatter_class=argparse.RawTextHelpFormatter
    )
    parser.add_argument("target", choices=TARGET_NAMES, metavar="TARGET", help=", ".join(TARGET_NAMES))
    parser.add_argument("--seconds", type=int, default=60, metavar="N", help="how long (default 60; 0: until Ctrl-C)")
    parser.add_argument("--seed", type=int, default=0, metavar="N", help="of the random numbers (0, the default: any)")
    parser.add_argument("--input", type=Path, metavar="FILE", help="only run the target with this file")
    parser.add_argument("--work", action="store_true", help=argparse.SUPPRESS)  # the fuzzing process itself
    return parser.parse_args()


def main() -> int:
    """Run what the command line says; the exit code."""
    asked = arguments()
    if asked.input is not None:
        from tests.fuzz.targets import TARGETS

        TARGETS[asked.target].run(asked.input.read_bytes())
        print(f"{asked.input}: {asked.target} has nothing to say against it")
        return 0
    if importlib.util.find_spec("atheris") is None:
        print(MISSING, file=sys.stderr, end="")
        return 2
    if asked.work:
        return work(asked.target)
    return supervise(asked.target, asked.seconds, asked.seed)


def work(name: str) -> int:
    """Fuzz in this process. libFuzzer ends it, and takes its options from the environment of :func:`supervise`."""
    import atheris

    with atheris.instrument_imports(include=["retinue.pipes"]):
        from tests.fuzz.targets import TARGETS
    options = os.environ["RETINUE_FUZZ_OPTIONS"].split("\n")
    atheris.Setup([sys.argv[0], *options], TARGETS[name].run)
    atheris.Fuzz()
    return 0


def supervise(name: str, seconds: int, seed: int) -> int:
    """Fuzz in a process of its own, pass on what it says, and sum up."""
    from tests.fuzz.targets import TARGETS

    target = TARGETS[name]
    cache = Path(os.environ.get("XDG_CACHE_HOME") or Path.home() / ".cache") / "retinue-fuzz" / name
    for folder in (cache, target.corpus, target.regressions):
        folder.mkdir(parents=True, exist_ok=True)
    options = [
        f"-max_total_time={seconds}",
        f"-seed={seed}",
        f"-timeout={TIMEOUT}",
        f"-rss_limit_mb={MOST_MEMORY_MB}",
        f"-max_len={LONGEST}",
        f"-artifact_prefix={target.regressions}/",
        "-print_final_stats=1",
        str(cache),
        str(target.corpus),
        str(target.regressions),
    ]
    worker = subprocess.Popen(
        [sys.executable, "-m", "tests.fuzz.run", name, "--work"],
        env={**os.environ, "RETINUE_FUZZ_OPTIONS": "\n".join(options)},
        stderr=subprocess.PIPE,
        text=True,
        errors="replace",
    )
    figures: dict[str, int] = {}
    assert worker.stderr is not None
    while True:
        try:
            for line in worker.stderr:
                note(line, figures)
                print(line, end="", file=sys.stderr, flush=True)
            code = worker.wait()
            break
        except KeyboardInterrupt:
            pass  # it has had the same signal, and has something to say before it ends
    print(summary(figures))
    return code


# Such as: #2097152	pulse  cov: 402 ft: 1234 corp: 98/2071b lim: 4096 exec/s: 15534 rss: 61Mb
_STATUS: Final = re.compile(r"#(\d+)\s+(\w+)\s.*\bcov: (\d+).*\bexec/s: (\d+) rss: (\d+)Mb")
# What is told at the end, unless it was interrupted: stat::peak_rss_mb: 61
_STATISTIC: Final = re.compile(r"stat::(\w+):\s+(\d+)")
_STATISTICS: Final = {
    "number_of_executed_units": "executions",
    "average_exec_per_sec": "executions/s",
    "peak_rss_mb": "memory",
}


def note(line: str, figures: dict[str, int]) -> None:
    """Take the figures out of a line of libFuzzer; later ones replace those before."""
    if found := _STATUS.match(line):
        executions, event, coverage, rate, memory = found.groups()
        if event == "INITED":
            figures["memory at start"] = int(memory)
        figures |= {"executions": int(executions), "executions/s": int(rate)}
        figures |= {"coverage": int(coverage), "memory": int(memory)}
    elif (found := _STATISTIC.match(line)) and found[1] in _STATISTICS:
        figures[_STATISTICS[found[1]]] = int(found[2])


def summary(figures: dict[str, int]) -> str:
    """The figures of a run in one line."""
    if "memory at start" not in figures:
        return "it has ended before it began"
    return (
        f"{figures['executions']} executions, {figures['executions/s']} executions/s, "
        f"{figures['coverage']} places reached; peak resident memory "
        f"{figures['memory at start']} MB after the first inputs, {figures['memory']} MB at the end"
    )


if __name__ == "__main__":
    sys.exit(main())
