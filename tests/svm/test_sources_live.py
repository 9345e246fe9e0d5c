"""Everything that a machine can say becomes records of it, and a request's trace follows it: a real system, sealed."""

import http.client
import json
from collections.abc import Iterator
from contextlib import closing
from typing import Any

import pytest
from tests.systems import Bench, open_bench, wait_for

SPEAKER = """\
import gc
import logging
import sys
import threading
import warnings

import trio

from retinue.svm import Machine

log = logging.getLogger("shop.till")


class Clumsy:
    def __del__(self):
        raise KeyError("while dying")


def fail():
    raise ValueError("in a thread")


async def task():
    raise LookupError("in a task")


async def main(vm: Machine) -> None:
    log.error("%d left", 3, extra={"size": 43, "colour": "red"})
    log.debug("never said")
    warnings.warn("old shoes", DeprecationWarning)
    print("to standard output")
    print("to standard error", file=sys.stderr)
    thread = threading.Thread(target=fail, name="clerk")
    thread.start()
    thread.join()
    Clumsy()
    await vm.ready()
    async with trio.open_nursery() as nursery:
        nursery.start_soon(task)
"""

CRASHER = """\
import ctypes
import threading

from retinue.svm import Machine


async def main(vm: Machine) -> None:
    await vm.ready()
    print("the last word")
    ctypes.string_at(0)
"""

SHOP = """\
import logging

from retinue.svm import trace

log = logging.getLogger("shop")


async def app(scope, receive, send):
    assert scope["type"] == "http"
    vm = scope["extensions"]["retinue"]["machine"]
    log.info("asked for %s", scope["path"], extra={"path": scope["path"]})
    path = await vm.connect("store")
    answer = await path.call(scope["path"])
    path.sever()
    headers = dict(scope["headers"])
    await send({"type": "http.response.start", "status": 200, "headers": []})
    body = f"{trace()} {answer} {headers[b'traceparent'].decode()}"
    await send({"type": "http.response.body", "body": body.encode()})
"""

STORE = """\
import trio

from retinue.svm import Machine, trace


async def main(vm: Machine) -> None:
    async def look(message):
        print("looked for", message.body)
        await trio.to_thread.run_sync(print, "in a thread for", message.body)
        return trace()

    print("begun")
    await vm.serve(look)
"""

TOPOLOGY = """\
[system]
name = "{name}"

[machines.TCPIP]
program = "retinue.services.tcpip"
network = true
uses.web = "HTTPD"
config.listen = {{ "127.0.0.1:0" = "web" }}

[machines.HTTPD]
program = "retinue.services.httpd"
uses.app = "SHOP"
config.routes = {{ "/" = "app" }}

[machines.SHOP]
asgi = "shop:app"
uses.store = "STORE"

[machines.STORE]
program = "store"

[machines.SPEAKER]
program = "speaker"
restart = "never"

[machines.CRASHER]
program = "crasher"
restart = "never"

[machines.NATIVE]
exec = ["/bin/sh", "-c", "echo to output; echo to error >&2; printf unended"]
restart = "never"
"""

IDENT = "0af7651916cd43dd8448eb211c80319c"
PARENT = f"00-{IDENT}-b7ad6b7169203331-01"

Record = dict[str, Any]


class System:
    """A running system."""

    def __init__(self, bench: Bench) -> None:
        self._bench = bench
        self._records: list[Record] = []

    def _read(self) -> None:
        done = self._bench.run("logs", "-n", "all", "--json")
        assert done.returncode == 0, done.stderr
        self._records = [json.loads(line) for line in done.stdout.splitlines()]

    def find(self, name: str, text: str) -> Record:
        """The one record that the machine has made with the text in it, as soon as there is one."""

        def look() -> list[Record]:
            return [
                each
                for each in self._records
                if each["machine"] == name and text in each["message"] and each["logger"] != "retinue.cp"
            ]

        if not look():

            def again() -> list[Record]:
                self._read()
                return look()

            wait_for(again)
        (record,) = look()
        return record

    def get(self, path: str, **headers: str) -> str:
        port = int(self.find("TCPIP", "listening on 127.0.0.1:")["message"].partition("127.0.0.1:")[2].split()[0])
        with closing(http.client.HTTPConnection("127.0.0.1", port, timeout=30)) as connection:
            connection.request("GET", path, headers=headers)
            response = connection.getresponse()
            assert response.status == 200
            return response.read().decode()


@pytest.fixture(scope="module")
def system(tmp_path_factory: pytest.TempPathFactory) -> Iterator[System]:
    """One system for the tests of this module, which only look."""
    with open_bench(tmp_path_factory.mktemp("sources")) as bench:
        for name, text in (("speaker", SPEAKER), ("crasher", CRASHER), ("shop", SHOP), ("store", STORE)):
            (bench.folder / f"{name}.py").write_text(text)
        bench.file.write_text(TOPOLOGY.format(name=bench.name))
        bench.up()
        yield System(bench)
        assert bench.run("down").returncode == 0


@pytest.mark.parametrize(
    ("text", "severity", "logger", "fields"),
    [
        ("3 left", 3, "shop.till", {"size": 43, "colour": "red"}),
        ("DeprecationWarning: old shoes", 4, "py.warnings", {}),
        ("to standard output", 6, "stdout", {}),
        ("to standard error", 5, "stderr", {}),
        ("ValueError: in a thread", 3, "retinue.svm", {"thread": "clerk"}),
        ("KeyError: 'while dying'", 3, "retinue.svm", {}),
        ("LookupError: in a task", 2, "retinue.svm", {}),
    ],
)
def test_python_says(system: System, text: str, severity: int, logger: str, fields: dict[str, Any]) -> None:
    """Each source is one record, with its severity, its logger and its fields; a traceback is part of it."""
    record = system.find("SPEAKER", text)
    assert (record["severity"], record["logger"], record["fields"]) == (severity, logger, fields)
    if "Error: " in text:
        assert "Traceback (most recent call last):\n" in record["message"]


def test_interpreter_that_crashes_says_where(system: System) -> None:
    """faulthandler's lines, whole, on the console: nothing in the process could make records of them any more."""
    first = system.find("CRASHER", "Fatal Python error: Segmentation fault")
    assert (first["severity"], first["logger"]) == (5, "console")
    assert first["message"] == "Fatal Python error: Segmentation fault"
    assert system.find("CRASHER", "the last word")["logger"] == "stdout"
    line = system.find("CRASHER", 'crasher.py", line ')
    assert line["message"].endswith(" in main")
    assert line["logger"] == "console"


def test_native_program_says(system: System) -> None:
    """Its standard output and error, with a last line that has no end."""
    assert system.find("NATIVE", "to output")["severity"] == 6
    assert system.find("NATIVE", "to error")["severity"] == 5
    assert system.find("NATIVE", "unended")["logger"] == "stdout"


@pytest.mark.parametrize("given", [True, False])
def test_trace_follows_a_request_from_machine_to_machine(system: System, given: bool) -> None:
    """That of the client, or a new one: in HTTPD's record, the application's, and those of the machine it asks."""
    path = "/given" if given else "/made"
    in_shop, in_store, parent = system.get(path, **({"traceparent": PARENT} if given else {})).split()
    assert in_shop == in_store == parent.split("-")[1]
    assert (parent == PARENT) is given
    assert (in_shop == IDENT) is given
    assert system.find("HTTPD", f'"GET {path} HTTP')["fields"] == {"trace": in_shop}
    assert system.find("SHOP", f"asked for {path}")["fields"] == {"trace": in_shop, "path": path}
    assert system.find("STORE", f"looked for {path}")["fields"] == {"trace": in_shop}
    assert system.find("STORE", f"in a thread for {path}")["fields"] == {"trace": in_shop}
    assert system.find("STORE", "begun")["fields"] == {}
