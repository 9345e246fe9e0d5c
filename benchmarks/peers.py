"""The same ASGI application under other servers, each with one process for the application and no access log."""

import contextlib
import importlib.metadata
import importlib.util
import os
import pathlib
import re
import shutil
import subprocess
import sys
from collections.abc import Iterator
from typing import Final

import attrs

from benchmarks import web
from benchmarks.processes import cpu_time, descendants, free_port, running

APP: Final = "shop:app"


class NotInstalled(Exception):
    """A peer cannot be measured here. The text says what is missing."""


@attrs.frozen
class Peer:
    """A server that answers ``/`` on a port, and the processes that it consists of, by a name for each."""

    port: int
    roots: dict[str, int]

    def cpu(self) -> dict[str, float]:
        """Seconds of CPU by root process, each with everything below it."""
        return {name: sum(map(cpu_time, descendants(pid))) for name, pid in self.roots.items()}


def find_nginx() -> str | None:
    """nginx, which Debian keeps out of the PATH of ordinary users."""
    return shutil.which("nginx", path=f"{os.environ.get('PATH', '')}:/usr/sbin:/usr/local/sbin")


def _need(*modules: str) -> None:
    missing = [name for name in modules if importlib.util.find_spec(name) is None]
    if missing:
        raise NotInstalled(f"not installed: {', '.join(missing)}")


def _uvicorn(*options: str) -> list[str]:
    return [sys.executable, "-m", "uvicorn", APP, "--no-access-log", "--log-level", "warning", *options]


@contextlib.contextmanager
def uvicorn(folder: pathlib.Path, *options: str) -> Iterator[Peer]:
    """uvicorn with its defaults, which depend on what is installed (:func:`software`), and with more ``options``."""
    _need("uvicorn")
    port = free_port()
    command = _uvicorn("--host", "127.0.0.1", "--port", str(port), *options)
    with running(command, lambda: web.answers(port), folder) as process:
        yield Peer(port, {"uvicorn": process.pid})


@contextlib.contextmanager
def hypercorn(folder: pathlib.Path) -> Iterator[Peer]:
    """hypercorn on trio, as the machines of Retinue are."""
    _need("hypercorn", "trio")
    port = free_port()
    command = [sys.executable, "-m", "hypercorn", "-k", "trio", "-w", "1", "-b", f"127.0.0.1:{port}", APP]
    with running(command, lambda: web.answers(port), folder) as process:
        yield Peer(port, {"hypercorn": process.pid})


@contextlib.contextmanager
def nginx(folder: pathlib.Path) -> Iterator[Peer]:
    """nginx with one worker, in front of uvicorn over a UNIX socket with connections kept alive."""
    _need("uvicorn")
    program = find_nginx()
    if program is None:
        raise NotInstalled("not installed: nginx")
    port = free_port()
    socket = folder / "uvicorn.sock"
    file = folder / "nginx.conf"
    file.write_text(nginx_config(folder, socket, port, as_root=os.geteuid() == 0), "utf-8")
    command = [program, "-p", str(folder), "-e", str(folder / "nginx.log"), "-c", str(file)]
    with (
        running(_uvicorn("--uds", str(socket)), socket.exists, folder) as behind,
        running(command, lambda: web.answers(port), folder) as front,
    ):
        yield Peer(port, {"nginx": front.pid, "uvicorn": behind.pid})


def nginx_config(folder: pathlib.Path, socket: pathlib.Path, port: int, *, as_root: bool) -> str:
    """What nginx is told; everything it writes lies in the folder."""
    kinds = ("client_body", "proxy", "fastcgi", "uwsgi", "scgi")
    temporary = "\n  ".join(f"{kind}_temp_path {folder}/{kind};" for kind in kinds)
    return f"""\
{"user root;  # its worker has to get at the socket in a private folder" if as_root else ""}
daemon off;
worker_processes 1;
pid {folder}/nginx.pid;
events {{ worker_connections 1024; }}
http {{
  access_log off;
  {temporary}
  keepalive_requests 1000000000;
  upstream application {{
    server unix:{socket};
    keepalive 64;
    keepalive_requests 1000000000;
  }}
  server {{
    listen 127.0.0.1:{port};
    location / {{
      proxy_pass http://application;
      proxy_http_version 1.1;
      proxy_set_header Connection "";
      proxy_set_header Host $http_host;
    }}
  }}
}}
"""


def software() -> dict[str, str]:
    """What takes part in the measurement here, with versions."""
    found = {name: _version(name) for name in ("retinue", "trio", "starlette", "h11")}
    if importlib.util.find_spec("uvicorn") is not None:
        loop = f"uvloop {_version('uvloop')}" if importlib.util.find_spec("uvloop") else "asyncio"
        parser = f"httptools {_version('httptools')}" if importlib.util.find_spec("httptools") else "h11"
        found["uvicorn"] = f"{_version('uvicorn')} ({loop}, {parser})"
    if importlib.util.find_spec("hypercorn") is not None:
        found["hypercorn"] = f"{_version('hypercorn')} (trio, h11)"
    if (program := find_nginx()) is not None:
        told = subprocess.run([program, "-v"], capture_output=True, text=True).stderr
        found["nginx"] = _first(r"nginx/(\S+)", told)
    if (program := shutil.which("wrk")) is not None:
        told = subprocess.run([program, "-v"], capture_output=True, text=True).stdout
        found["wrk"] = _first(r"wrk (?:debian/)?(\S+)", told)
    return found


def _version(name: str) -> str:
    return importlib.metadata.version(name)


def _first(pattern: str, text: str) -> str:
    found = re.search(pattern, text)
    return found[1] if found else "of unknown version"
