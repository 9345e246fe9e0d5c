"""One run of wrk and what it found."""

import contextlib
import json
import os
import pathlib
import shutil
import subprocess
import tempfile
from collections.abc import Iterator
from typing import Any, Final

import attrs

THREADS: Final = 1
CONNECTIONS: Final = 32

# wrk's own text rounds; its Lua hook has the exact figures. The hook runs once, at the end: requests do not pay for it.
_MARK: Final = "WRK-SUMMARY "
_FIELDS: Final = ("requests", "microseconds", "connect", "read", "write", "timeout", "status", "p50", "p99", "max")
_SCRIPT: Final = """
done = function(summary, latency, requests)
  local e = summary.errors
  local figures = {
    summary.requests, summary.duration, e.connect, e.read, e.write, e.timeout, e.status,
    latency:percentile(50), latency:percentile(99), latency.max
  }
  for i, value in ipairs(figures) do figures[i] = string.format("%.0f", value) end
  io.write("WRK-SUMMARY [" .. table.concat(figures, ",") .. "]\\n")
end
"""


class WrkFailed(RuntimeError):
    """wrk did not run to its end. ``output`` is what it said."""

    def __init__(self, output: str) -> None:
        self.output = output.strip()
        super().__init__(f"wrk failed: {self.output or 'it said nothing'}")


@attrs.frozen
class Summary:
    """One run. Latencies are in milliseconds; ``status`` counts answers of 400 and above, the other errors sockets."""

    requests: int
    seconds: float
    connect: int
    read: int
    write: int
    timeout: int
    status: int
    p50: float
    p99: float
    longest: float

    @property
    def rate(self) -> float:
        """Requests per second."""
        return self.requests / self.seconds if self.seconds else 0.0

    @property
    def errors(self) -> int:
        """Errors of every kind."""
        return self.socket_errors + self.status

    @property
    def socket_errors(self) -> int:
        """Connections that failed, broke off, or took longer than wrk waits (2 s)."""
        return self.connect + self.read + self.write + self.timeout


def parse(output: str) -> Summary:
    """The summary in wrk's output. Raises :exc:`WrkFailed` when there is none."""
    for line in output.splitlines():
        if line.startswith(_MARK):
            try:
                figures: Any = json.loads(line.removeprefix(_MARK))
                named = dict(zip(_FIELDS, map(int, figures), strict=True))
            except (ValueError, TypeError) as exc:
                raise WrkFailed(output) from exc
            return Summary(
                requests=named["requests"],
                seconds=named["microseconds"] / 1e6,
                connect=named["connect"],
                read=named["read"],
                write=named["write"],
                timeout=named["timeout"],
                status=named["status"],
                p50=named["p50"] / 1e3,
                p99=named["p99"] / 1e3,
                longest=named["max"] / 1e3,
            )
    raise WrkFailed(output)


def installed() -> str | None:
    """Where wrk is, if it is."""
    return shutil.which("wrk")


@contextlib.contextmanager
def started(url: str, seconds: float) -> Iterator["subprocess.Popen[str]"]:
    """wrk at work on an URL; see :func:`finish`. It ends with the block at the latest."""
    program = installed()
    if program is None:
        raise WrkFailed("it is not installed")
    with tempfile.TemporaryDirectory(prefix="wrk-") as folder:
        script = pathlib.Path(folder, "summary.lua")
        script.write_text(_SCRIPT)
        process = subprocess.Popen(
            [program, f"-t{THREADS}", f"-c{CONNECTIONS}", f"-d{max(1, round(seconds))}s", "-s", str(script), url],
            stdin=subprocess.DEVNULL,
            stdout=subprocess.PIPE,
            stderr=subprocess.STDOUT,
            text=True,
            env={**os.environ, "LC_ALL": "C"},
        )
        try:
            yield process
        finally:
            process.kill()
            process.communicate()


def finish(process: "subprocess.Popen[str]", patience: float) -> Summary:
    """Wait until wrk is through. Raises :exc:`WrkFailed`."""
    try:
        output, _ = process.communicate(timeout=patience)
    except subprocess.TimeoutExpired:
        raise WrkFailed(f"not finished within {patience:g} s") from None
    if process.returncode != 0:
        raise WrkFailed(output)
    return parse(output)


def run(url: str, seconds: float) -> Summary:
    """Load an URL for so long. Raises :exc:`WrkFailed`."""
    with started(url, seconds) as process:
        return finish(process, seconds + 30)
