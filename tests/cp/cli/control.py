"""The control program of a real system, and the spare beside it."""

import pathlib

from tests.systems import Bench


def control_programs(bench: Bench) -> list[int]:
    """The process that answers, and after it the spare, if there is one by now."""
    nucleus = bench.nucleus_pid()
    # The kernel lists children in the order of their birth (proc(5)).
    children = map(int, pathlib.Path(f"/proc/{nucleus}/task/{nucleus}/children").read_text().split())
    titles = bench.processes()
    return [pid for pid in children if titles.get(pid, "").startswith("control")]


def control_program(bench: Bench) -> int:
    """The process that answers."""
    return control_programs(bench)[0]
