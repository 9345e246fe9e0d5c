"""rsyslog from Debian, to which processes of Python log over a UNIX socket as fast as they can."""

import contextlib
import pathlib
import shutil
import socket
import subprocess
import sys
import time
from collections.abc import Iterator
from typing import Final

import attrs

from benchmarks.processes import cpu_time, running

_CONFIG: Final = """\
global(workDirectory="{folder}")
module(load="imuxsock" SysSock.Use="off")
input(type="imuxsock" Socket="{folder}/log" CreatePath="off" RateLimit.Interval="0" UseSysTimeStamp="on")
*.* action(type="omfile" file="{folder}/records")
"""

# What the standard library has for it; a datagram that finds no room is waited for.
_SENDER: Final = """\
import logging, logging.handlers, sys
handler = logging.handlers.SysLogHandler(sys.argv[1])
handler.append_nul = False
log = logging.getLogger("flood")
log.addHandler(handler)
log.setLevel(logging.INFO)
sys.stdin.readline()
for number in range(int(sys.argv[2])):
    log.info("record %d of a machine that has a lot to say about itself", number)
"""

STILL: Final = 5.0


@attrs.frozen
class Found:
    """Records a second and how many were stored, of how many; microseconds of the server and of a sender for each."""

    rate: float
    stored: int
    sent: int
    server: float
    sender: float


def absent() -> str | None:
    """Why it cannot be measured; None when it can."""
    return None if _program() else "not installed: rsyslogd (Debian: apt install rsyslog)"


def _program() -> str | None:
    return shutil.which("rsyslogd", path="/usr/sbin:/usr/bin:/sbin:/bin")


@contextlib.contextmanager
def _server(folder: pathlib.Path) -> Iterator[int]:
    (folder / "rsyslog.conf").write_text(_CONFIG.format(folder=folder))
    command = [str(_program()), "-n", "-f", str(folder / "rsyslog.conf"), "-i", str(folder / "pid")]
    with running(command, (folder / "log").exists, folder) as process:
        yield process.pid


def measure(folder: pathlib.Path, senders: int, count: int) -> Found:
    """So many processes that log so many records each. Raises :exc:`~benchmarks.processes.NotStarted`."""
    folder.mkdir()
    with _server(folder) as pid:
        address = str(folder / "log")
        with socket.socket(socket.AF_UNIX, socket.SOCK_DGRAM) as probe:
            probe.connect(address)
        command = [sys.executable, "-P", "-c", _SENDER, address, str(count)]
        processes = [subprocess.Popen(command, stdin=subprocess.PIPE) for _ in range(senders)]
        try:
            time.sleep(1)  # all have imported what they need
            begun, used = time.time(), cpu_time(pid)
            before = [cpu_time(each.pid) for each in processes]
            for each in processes:
                assert each.stdin is not None
                each.stdin.write(b"go\n")
                each.stdin.flush()
            spent = 0.0
            stored, when, seen = 0, begun, -1
            records = folder / "records"
            while stored < senders * count and time.time() < when + STILL:
                spent = max(spent, sum(cpu_time(each.pid) for each in processes))
                size = records.stat().st_size if records.exists() else 0
                if size != seen:
                    seen, when = size, time.time()
                    stored = records.read_bytes().count(b"\n") if records.exists() else 0
                time.sleep(0.05)
            total = senders * count
            spent = max(spent, sum(cpu_time(each.pid) for each in processes)) - sum(before)
            server = cpu_time(pid) - used
        finally:
            for each in processes:
                each.kill()
                each.communicate()
    return Found(stored / (when - begun), stored, total, server / total * 1e6, spent / total * 1e6)
