"""TCPIP inside its seal, in a real system: names are resolved and datagrams pass there, too."""

import http.client
import os
import signal
import socket
import threading
from collections.abc import Iterator
from contextlib import closing, contextmanager

from tests.systems import Bench, read_until

PROGRAM = """\
from retinue.svm import Machine, dial, open_datagrams

async def main(vm: Machine) -> None:
    for what, ask in (("name", by_name), ("datagrams", by_datagram)):
        try:
            print(what, await ask(vm))
        except Exception as exc:
            print(what, type(exc).__name__, exc)
    await vm.ready()
    await vm.stopping.wait()

async def by_name(vm):
    async with await dial(vm, "net", "localhost", {tcp}) as stream:
        return stream.address, await stream.receive_some()

async def by_datagram(vm):
    async with await open_datagrams(vm, "net", "127.0.0.1", {udp}) as datagrams:
        await datagrams.send(b"question")
        return datagrams.address, await datagrams.receive()
"""

TOPOLOGY = """\
[system]
name = "{name}"
[machines.TCPIP]
program = "retinue.services.tcpip"
network = true
config.allow.ASKER = ["localhost:{tcp}", "127.0.0.1:{tcp}", "udp:127.0.0.1:{udp}"]
[machines.ASKER]
program = "asker"
uses.net = "TCPIP"
"""


@contextmanager
def servers() -> Iterator[tuple[int, int]]:
    """(port of a TCP server that says hello, port of a UDP server that echoes once), on 127.0.0.1."""
    with socket.create_server(("127.0.0.1", 0)) as tcp, socket.socket(socket.AF_INET, socket.SOCK_DGRAM) as udp:
        udp.bind(("127.0.0.1", 0))

        def greet() -> None:
            connection, _ = tcp.accept()
            with connection:
                connection.sendall(b"hello")

        def echo() -> None:
            datagram, address = udp.recvfrom(65536)
            udp.sendto(datagram, address)

        for each in (greet, echo):
            threading.Thread(target=each, daemon=True).start()
        yield tcp.getsockname()[1], udp.getsockname()[1]


def test_sealed_tcpip_resolves_names_and_carries_datagrams(bench: Bench) -> None:
    """The seal of the machine with the network leaves it what getaddrinfo(3) and UDP need."""
    with servers() as (tcp, udp):
        (bench.folder / "asker.py").write_text(PROGRAM.replace("{tcp}", str(tcp)).replace("{udp}", str(udp)))
        bench.file.write_text(TOPOLOGY.format(name=bench.name, tcp=tcp, udp=udp))
        bench.up()
        log = bench.run("logs", "ASKER", "-n", "all").stdout
        assert f"name (('127.0.0.1', {tcp}), b'hello')" in log
        assert f"datagrams (('127.0.0.1', {udp}), b'question')" in log
        assert bench.run("down").returncode == 0
    bench.assert_gone()


APPLICATION = """\
from retinue.svm import dial

async def app(scope, receive, send):
    if scope["type"] != "http":
        raise ValueError("no lifespan")
    vm = scope["extensions"]["retinue"]["machine"]
    async with await dial(vm, "net", "127.0.0.1", {tcp}) as stream:
        body = await stream.receive_some()
    await send({"type": "http.response.start", "status": 200, "headers": []})
    await send({"type": "http.response.body", "body": body})
"""

CIRCLE = """\
[system]
name = "{name}"
[machines.TCPIP]
program = "retinue.services.tcpip"
network = true
uses.web = "HTTPD"
config.listen = {{ "127.0.0.1:{web}" = "web" }}
config.allow.SITE = ["127.0.0.1:{tcp}"]
[machines.HTTPD]
program = "retinue.services.httpd"
uses.site = "SITE"
config.routes = {{ "/" = "site" }}
[machines.SITE]
asgi = "site_app:app"
uses.net = {{ to = "TCPIP", lazy = true }}
"""


def test_application_reaches_the_outside_over_a_lazy_edge(bench: Bench) -> None:
    """In, through HTTPD, out again, and once more after TCPIP has died: every way leads through the same machine."""
    with socket.create_server(("127.0.0.1", 0)) as server:
        tcp, web = server.getsockname()[1], free_port()
        (bench.folder / "site_app.py").write_text(APPLICATION.replace("{tcp}", str(tcp)))
        bench.file.write_text(CIRCLE.format(name=bench.name, tcp=tcp, web=web))

        def greet() -> None:
            for _ in range(2):
                connection, _ = server.accept()
                with connection:
                    connection.sendall(b"hello")

        threading.Thread(target=greet, daemon=True).start()
        bench.up()
        assert get(web) == (200, b"hello")
        follow = bench.start("logs", "CP", "-f", "-n", "all")
        os.kill(bench.pid_of("TCPIP"), signal.SIGKILL)
        read_until(follow.stdout, lambda line: "TCPIP is ABEND" in line)
        read_until(follow.stdout, lambda line: "TCPIP is READY" in line)
        follow.kill()
        assert get(web) == (200, b"hello")
    assert bench.run("down").returncode == 0
    bench.assert_gone()


def get(port: int) -> tuple[int, bytes]:
    """GET / on 127.0.0.1: status and body."""
    with closing(http.client.HTTPConnection("127.0.0.1", port, timeout=30)) as connection:
        connection.request("GET", "/")
        response = connection.getresponse()
        return response.status, response.read()


def free_port() -> int:
    """A port that nobody has now."""
    with closing(socket.socket()) as probe:
        probe.bind(("127.0.0.1", 0))
        return int(probe.getsockname()[1])
