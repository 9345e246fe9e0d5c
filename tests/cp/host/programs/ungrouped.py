"""The control program of a host without control groups."""

from typing import Any

from retinue.cp.main import run


def main(args: dict[str, Any]) -> int:
    return run(args, None)
