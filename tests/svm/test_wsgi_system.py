"""A WSGI application in a real system, behind TCPIP and HTTPD."""

import http.client
import os
import signal
import threading
from collections.abc import Iterator
from contextlib import closing

import pytest
from tests.systems import Bench, open_bench, wait_for

APP = '''\
"""An ordinary WSGI application, which any server would run."""

import sys
import threading
import time
from wsgiref.validate import validator


def run(environ, start_response):
    path, errors = environ["PATH_INFO"], environ["wsgi.errors"]
    if path == "/fail":
        raise KeyError("so what")
    if path == "/slow":
        time.sleep(0.3)
    start_response("200 OK", [("Content-Type", "text/plain")])
    if path == "/echo":
        return [environ["wsgi.input"].read(-1)]
    if path == "/count":
        return stream()
    print("asked for", path, file=errors)
    return [f"{threading.current_thread() is not threading.main_thread()}".encode()]


def stream():
    for number in range(100):
        yield b"%d\\n" % number * 1000


app = validator(run)
'''

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
uses.app = {{ to = "APP", limit = 64 }}
config.routes = {{ "/" = "app" }}

[machines.APP]
wsgi = "shop:app"
threads = 4
"""


class Site:
    """The running system."""

    def __init__(self, bench: Bench) -> None:
        self.bench = bench
        said = bench.run("logs", "TCPIP", "-n", "all").stdout
        self.port = int(said.partition("listening on 127.0.0.1:")[2].split()[0])

    def ask(self, path: str, method: str = "GET", body: object = None) -> tuple[int, bytes]:
        """One request on a connection of its own."""
        with closing(http.client.HTTPConnection("127.0.0.1", self.port, timeout=30)) as connection:
            connection.request(method, path, body=body)  # type: ignore[arg-type]
            response = connection.getresponse()
            return response.status, response.read()


@pytest.fixture(scope="module")
def site(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Site]:
    """One system for both tests, which leave it READY."""
    with open_bench(tmp_path_factory.mktemp("site")) as bench:
        (bench.folder / "shop.py").write_text(APP)
        bench.file.write_text(TOPOLOGY.format(name=bench.name))
        bench.up()
        yield Site(bench)
        down = bench.run("down")
        assert down.returncode == 0, down.stderr
        bench.assert_gone()


def test_wsgi_application_serves_browsers(site: Site) -> None:
    """In threads; bodies in and out are streamed; its errors and failures are in its log."""
    assert site.ask("/") == (200, b"True")
    body = os.urandom(3_000_000)
    assert site.ask("/echo", "POST", body) == (200, body)
    assert site.ask("/echo", "POST", iter([b"one", b"two"])) == (200, b"onetwo")
    assert site.ask("/count")[1].count(b"\n") == 100_000
    assert site.ask("/", "HEAD") == (200, b"")
    assert site.ask("/fail")[0] == 500
    said = site.bench.run("logs", "APP", "-n", "all").stdout
    assert "asked for /" in said
    assert "KeyError: 'so what'" in said


def test_wsgi_application_has_threads_and_survives_its_death(site: Site) -> None:
    """More requests than threads are all answered, also when the machine is killed between them."""

    def ask_many() -> list[int]:
        found: list[int] = []
        threads = [threading.Thread(target=lambda: found.append(site.ask("/slow")[0])) for _ in range(12)]
        for thread in threads:
            thread.start()
        for thread in threads:
            thread.join()
        return found

    assert ask_many() == [200] * 12
    os.kill(site.bench.machine("APP")["pid"], signal.SIGKILL)
    wait_for(lambda: site.ask("/")[0] == 200)
    assert ask_many() == [200] * 12
