"""The one form in which every benchmark reports, and the description of the machine it ran on.

``--json`` prints ``{"machine": {...}, "results": [{"name", "value", "unit", "target", "met"}, ...]}``. ``target`` and
``met`` are null where nothing is promised: peers, floors, and figures that are only a starting line. ``value`` is null
where nothing could be measured, and ``why`` says so then; ``rounds`` holds the values that ``value`` is the median of.
"""

import argparse
import datetime
import importlib.util
import json
import os
import pathlib
import platform
import statistics
import sys
from collections.abc import Mapping, Sequence
from typing import Any, Final

import attrs

# Figures that tell something; more would only be noise. Counts are never cut.
DIGITS: Final = 4

MachineInfo = dict[str, str | int | float | dict[str, str]]


@attrs.frozen
class Result:
    """One figure. ``target`` is the least that is promised, or with ``at_most`` the most."""

    name: str
    value: float | None
    unit: str
    target: float | None = None
    at_most: bool = False
    why: str | None = None
    rounds: tuple[float, ...] = ()

    @property
    def met(self) -> bool | None:
        """Whether the promise is kept; None where there is none. What could not be measured keeps no promise."""
        if self.target is None:
            return None
        if self.value is None:
            return False
        return self.value <= self.target if self.at_most else self.value >= self.target

    def as_json(self) -> dict[str, Any]:
        """The result as it is printed: always the five keys of the form, the others where they say something."""
        fields: dict[str, Any] = {
            "name": self.name,
            "value": None if self.value is None else rounded(self.value),
            "unit": self.unit,
            "target": self.target,
            "met": self.met,
        }
        if self.why is not None:
            fields["why"] = self.why
        if self.rounds:
            fields["rounds"] = [rounded(value) for value in self.rounds]
        return fields


def median(name: str, values: Sequence[float], unit: str) -> Result:
    """The median of several rounds; the values themselves show how far they lie apart."""
    return Result(name, statistics.median(values), unit, rounds=tuple(values) if len(values) > 1 else ())


def rounded(value: float) -> float:
    """The value with DIGITS figures; whole numbers as they are."""
    if abs(value) < 10**DIGITS:
        value = float(f"{value:.{DIGITS}g}") if value % 1 else value
    return round(value) if value % 1 == 0 or abs(value) >= 10**DIGITS else value


def machine(software: Mapping[str, str]) -> MachineInfo:
    """What the figures were measured on. ``software`` names what takes part and its version."""
    return {
        "cpu": _field("/proc/cpuinfo", "model name") or platform.machine(),
        "cores": len(os.sched_getaffinity(0)),
        "memory": f"{int((_field('/proc/meminfo', 'MemTotal') or '0 kB').split()[0]) // 1024} MiB",
        "kernel": platform.release(),
        "python": f"{platform.python_implementation()} {platform.python_version()}",
        "date": datetime.datetime.now(datetime.UTC).isoformat(timespec="seconds"),
        # Above some tenths, somebody else is using this machine, and the figures are theirs as well.
        "load": round(os.getloadavg()[0], 2),
        "software": dict(software),
    }


def _field(file: str, key: str) -> str | None:
    for line in pathlib.Path(file).read_text("utf-8", "replace").splitlines():
        name, colon, value = line.partition(":")
        if colon and name.strip() == key:
            return value.strip()
    return None


def form(machine: MachineInfo, results: Sequence[Result]) -> dict[str, Any]:
    """The whole report."""
    return {"machine": machine, "results": [result.as_json() for result in results]}


def add_options(parser: argparse.ArgumentParser) -> None:
    """The option that every benchmark has."""
    parser.add_argument("--json", action="store_true", help="print the report as JSON")


def show(report: dict[str, Any], *, as_json: bool) -> None:
    """Print a report that :func:`form` made."""
    if as_json:
        print(json.dumps(report, indent=2, ensure_ascii=False))
    elif importlib.util.find_spec("rich") is not None:
        _show_rich(report)
    else:
        print(plain(report))


def conclude(report: dict[str, Any], *, as_json: bool) -> int:
    """Print a report and what of it is not kept; the exit status, which is 1 if that is anything."""
    show(report, as_json=as_json)
    missed = [each["name"] for each in report["results"] if each["met"] is False]
    for name in missed:
        print(f"not kept: {name}", file=sys.stderr)
    return 1 if missed else 0


def progress(text: str) -> None:
    """Tell whoever waits what is going on, beside the report."""
    print(text, file=sys.stderr, flush=True)


def rows(results: Sequence[Mapping[str, Any]]) -> list[tuple[str, str, str, str]]:
    """The cells of a table: name, value with its unit, range of the rounds (or why there is no value), target."""
    cells = []
    for result in results:
        value, unit, rounds = result["value"], result["unit"], result.get("rounds")
        spread = f"{min(rounds):,} to {max(rounds):,}" if rounds else ""
        promise = ""
        if result["target"] is not None:
            promise = f"{result['target']:,} {'met' if result['met'] else 'MISSED'}"
        cells.append(
            (result["name"], "-" if value is None else f"{value:,} {unit}", result.get("why") or spread, promise)
        )
    return cells


_HEADINGS: Final = ("", "median", "rounds", "target")


def _title(report: dict[str, Any]) -> str:
    info = report["machine"]
    software = ", ".join(f"{name} {version}" for name, version in info["software"].items())
    return (
        f"{info['cpu']}, {info['cores']} cores, {info['memory']}, Linux {info['kernel']}, {info['python']}, "
        f"load {info['load']}, {info['date']}\n{software}"
    )


def _show_rich(report: dict[str, Any]) -> None:
    from rich.console import Console
    from rich.table import Table

    table = Table(*_HEADINGS, caption=_title(report), caption_justify="left", box=None)
    table.columns[1].justify = "right"
    for row in rows(report["results"]):
        table.add_row(*row)
    Console().print(table)


def plain(report: dict[str, Any]) -> str:
    """The table without rich."""
    table = [_HEADINGS, *rows(report["results"])]
    widths = [max(len(row[column]) for row in table) for column in range(len(_HEADINGS))]
    lines = [
        f"{name:{widths[0]}}  {value:>{widths[1]}}  {spread:{widths[2]}}  {promise}".rstrip()
        for name, value, spread, promise in table
    ]
    return "\n".join([*lines, _title(report)])
