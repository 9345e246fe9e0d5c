"""Going outside through TCPIP, with real sockets on this host: real machine objects, the client side, a real TCPIP.

The one thing made for the tests is who knows the addresses of names (:class:`Names`): it stands for the world's DNS.
"""

import errno
import ipaddress
import logging
import re
import socket
import ssl
import struct
import tomllib
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from functools import partial
from pathlib import Path as File
from typing import Any

import pytest
import trio
import trio.testing
from tests.leaks import few_left
from tests.services.machines import Running, System, everything

from retinue.pipes import AccessDenied, LimitExceeded, PathSevered, Rejected
from retinue.services import tcpip
from retinue.services.tcpip.dialling import interleaved
from retinue.services.tcpip.resolver import MOST_LOOKUPS_PER_MACHINE, SystemResolver
from retinue.svm import BadDestination, ConnectRefused, Machine, OutsideFailed, OutsideStream, dial, open_datagrams


@pytest.fixture(autouse=True)
def _log(caplog: pytest.LogCaptureFixture) -> None:
    caplog.set_level(logging.DEBUG, "retinue")


@pytest.fixture
async def system() -> AsyncIterator[System]:
    with trio.fail_after(20):
        async with trio.open_nursery() as nursery:
            system = System(nursery)
            yield system
            nursery.cancel_scope.cancel()
    system.close()


class Names:
    """Names and their addresses. ``asked`` is what was looked up; a name with no entry is not resolved, ever."""

    def __init__(self, **names: list[str]) -> None:
        self.names = {name.replace("_", "."): list(map(ipaddress.ip_address, each)) for name, each in names.items()}
        self.asked: list[str] = []

    async def resolve(self, machine: str, name: str) -> list[Any]:
        self.asked.append(name)
        if name not in self.names:
            await trio.sleep_forever()
        if not self.names[name]:
            raise socket.gaierror(socket.EAI_NONAME, "Name or service not known")
        return self.names[name]


class Shop:
    """A machine that does nothing by itself: the test uses its ``vm``."""

    vm: Machine[Any]

    async def main(self, vm: Machine[Any]) -> None:
        self.vm = vm
        await vm.ready()
        await vm.stopping.wait()


async def start(
    system: System, allow: Any = None, names: Names | None = None, **settings: Any
) -> tuple[Machine[Any], Running]:
    """(SHOP, which has the edge ``net``, TCPIP). ``allow``: of SHOP, or the whole table."""
    table = allow if isinstance(allow, dict) else {"SHOP": allow or []}
    config = tcpip.Config(allow=table, **settings)
    running = await system.start("TCPIP", partial(tcpip.run, resolver=names or Names()), config)
    shop = Shop()
    await system.start("SHOP", shop.main, net="TCPIP")
    return shop.vm, running


class Outside:
    """A TCP server on 127.0.0.1; the test takes its connections one by one."""

    def __init__(self, listener: trio.SocketListener) -> None:
        self.listener = listener
        self.port: int = listener.socket.getsockname()[1]
        self.accepted: list[trio.SocketStream] = []

    async def accept(self) -> trio.SocketStream:
        self.accepted.append(await self.listener.accept())
        return self.accepted[-1]


@pytest.fixture
async def outside() -> AsyncIterator[Outside]:
    (listener,) = await trio.open_tcp_listeners(0, host="127.0.0.1")
    async with listener:
        outside = Outside(listener)
        yield outside
        for each in outside.accepted:
            each.socket.close()


@asynccontextmanager
async def connected(
    system: System, outside: Outside, **settings: Any
) -> AsyncIterator[tuple[OutsideStream, trio.SocketStream, Running]]:
    """(SHOP's stream, the outside's stream, TCPIP)."""
    vm, running = await start(system, [f"127.0.0.1:{outside.port}"], **settings)
    stream = await dial(vm, "net", "127.0.0.1", outside.port)
    far = await outside.accept()
    async with far:
        yield stream, far, running
    stream.abort()


def refusals(caplog: Any) -> list[str]:
    return [record.getMessage() for record in caplog.records if record.getMessage().startswith("refused")]


# -- what is allowed ------------------------------------------------------------------------------------------------


async def test_machine_reaches_what_it_may_and_learns_the_address(system: System, outside: Outside) -> None:
    """Bytes go both ways, both sides half-close, and the stream knows where it leads."""
    async with connected(system, outside) as (stream, far, _):
        assert stream.address == ("127.0.0.1", outside.port)
        await stream.send_all(b"question")
        await stream.send_eof()
        assert await everything(far) == b"question"
        await far.send_all(b"answer")
        await far.send_eof()
        assert await everything(stream) == b"answer"


async def test_outside_may_end_its_side_first(system: System, outside: Outside) -> None:
    """FIN from outside ends what the machine reads; what it writes still arrives."""
    async with connected(system, outside) as (stream, far, _):
        await far.send_eof()
        assert await everything(stream) == b""
        await stream.send_all(b"still here")
        assert await far.receive_some() == b"still here"
        await stream.aclose()
        assert await everything(far) == b""


@pytest.mark.parametrize("rule", ["127.0.0.1:{}", "127.0.0.0/8:{}", "127.0.0.0/8:*", "127.0.0.1:1-65535"])
async def test_address_needs_a_rule_for_addresses(system: System, outside: Outside, rule: str) -> None:
    """An address or its network, with the port, a range or any."""
    vm, _ = await start(system, [rule.format(outside.port)])
    async with await dial(vm, "net", "127.0.0.1", outside.port):
        await outside.accept()


@pytest.mark.parametrize("rule", ["*.example.org:*", "api.example.org:*"])
async def test_name_is_resolved_by_tcpip(system: System, outside: Outside, rule: str) -> None:
    """The name by its rule, in any spelling; that it leads to this host is allowed by another."""
    vm, _ = await start(system, [rule, "127.0.0.0/8:*"], Names(api_example_org=["127.0.0.1"]))
    async with await dial(vm, "net", "API.example.org.", outside.port) as stream:
        await outside.accept()
        assert stream.address == ("127.0.0.1", outside.port)


async def test_next_address_is_tried(system: System, outside: Outside) -> None:
    """An address at which nobody listens does not end the attempt."""
    names = Names(api_example_org=["127.0.0.2", "127.0.0.3", "127.0.0.1"])
    vm, _ = await start(system, ["api.example.org:*", "127.0.0.0/8:*"], names)
    async with await dial(vm, "net", "api.example.org", outside.port) as stream:
        assert stream.address[0] == "127.0.0.1"


def test_families_take_turns() -> None:
    """The first address's family begins; no more than eight are tried."""
    four = [ipaddress.ip_address(f"192.0.2.{number}") for number in range(1, 7)]
    six = [ipaddress.ip_address(f"2001:db8::{number}") for number in range(1, 7)]
    found = interleaved([*six, *four])
    assert found == [each for pair in zip(six, four, strict=True) for each in pair][:8]


async def test_everybody_may_what_stands_under_the_star(system: System, outside: Outside) -> None:
    """``*`` is for every machine with an edge."""
    vm, _ = await start(system, {"*": ["127.0.0.1:*"]})
    async with await dial(vm, "net", "127.0.0.1", outside.port):
        await outside.accept()


# -- what is not ----------------------------------------------------------------------------------------------------


async def test_nothing_is_allowed_by_default_and_the_line_to_add_works(
    system: System, outside: Outside, caplog: Any
) -> None:
    """Refused with a line; that line, pasted into a topology, allows it; and the refusal is a record."""
    vm, running = await start(system)
    with pytest.raises(
        AccessDenied, match=r"SHOP may not reach 127\.0\.0\.1:\d+: no rule .* \[machines\.TCPIP\]"
    ) as no:
        await dial(vm, "net", "127.0.0.1", outside.port)
    assert refusals(caplog) == [f"refused: {no.value.text}"]
    running.machine.stop()
    await running.ended.wait()
    line = re.search(r"put  (.*)  under", no.value.text)
    assert line is not None
    topology = tomllib.loads(f"[machines.TCPIP]\n{line[1]}\n")
    fresh = System(system.nursery)
    vm, _ = await start(fresh, topology["machines"]["TCPIP"]["config"]["allow"])
    async with await dial(vm, "net", "127.0.0.1", outside.port):
        await outside.accept()
    fresh.close()


async def test_rule_of_another_machine_does_not_help(system: System, outside: Outside) -> None:
    """Rules are by machine."""
    vm, _ = await start(system, {"FILES": ["127.0.0.1:*"]})
    with pytest.raises(AccessDenied):
        await dial(vm, "net", "127.0.0.1", outside.port)


async def test_name_that_no_rule_names_is_not_looked_up(system: System) -> None:
    """A question to the world's DNS would carry data out; addresses allowed do not make a name allowed."""
    names = Names(db_example_org=["127.0.0.1"])
    vm, _ = await start(system, ["127.0.0.0/8:*", "*.example.net:*"], names)
    for name in ("db.example.org", "localhost", "example.net"):
        with pytest.raises(AccessDenied):
            await dial(vm, "net", name, 80)
    assert names.asked == []


@pytest.mark.parametrize(
    "address", ["127.0.0.1", "10.0.0.7", "169.254.169.254", "::1", "fd00::1", "fe80::1", "224.0.0.1"]
)
async def test_name_does_not_lead_inside(system: System, outside: Outside, address: str) -> None:
    """Rebinding: whoever owns an allowed name may point it anywhere, but not to where only an address rule leads."""
    vm, _ = await start(system, ["api.example.org:*"], Names(api_example_org=[address]))
    with pytest.raises(AccessDenied, match="not of the public internet") as no:
        await dial(vm, "net", "api.example.org", outside.port)
    there = f"[{address}]" if ":" in address else address
    assert f'["api.example.org:*", "{there}:{outside.port}"]' in no.value.text
    with pytest.raises(AccessDenied):
        await open_datagrams(vm, "net", "api.example.org", outside.port)


async def test_name_that_leads_inside_and_elsewhere_leads_elsewhere_only(system: System, outside: Outside) -> None:
    """Of the addresses of a name only those are tried that it may lead to. (Connecting UDP sends nothing.)"""
    names = Names(api_example_org=["127.0.0.1", "192.0.2.1", "127.0.0.2"])
    vm, _ = await start(system, ["udp:api.example.org:*", "udp:192.0.2.1:*"], names)
    try:
        async with await open_datagrams(vm, "net", "api.example.org", 9) as datagrams:
            assert datagrams.address == ("192.0.2.1", 9)
    except OutsideFailed as exc:
        if exc.errno != errno.ENETUNREACH:  # this host has no way to anywhere
            raise


async def test_name_is_looked_up_once_for_each_connection(system: System, outside: Outside) -> None:
    """What was decided about is what is connected to: no second answer can differ."""
    names = Names(api_example_org=["127.0.0.1"])
    vm, _ = await start(system, ["api.example.org:*", "127.0.0.1:*"], names)
    async with await dial(vm, "net", "api.example.org", outside.port):
        await outside.accept()
    assert names.asked == ["api.example.org"]


@pytest.mark.parametrize("host", ["127.1", "0x7f.1", "2130706433", "0177.0.0.1", "::1%lo", "127.0.0.1.", "a b", ""])
async def test_odd_spellings_are_no_addresses(system: System, outside: Outside, caplog: Any, host: str) -> None:
    """What a C library would take for 127.0.0.1 is refused, although 127.0.0.1 is allowed, and recorded."""
    vm, _ = await start(system, ["127.0.0.0/8:*", "[::1]:*"])
    with pytest.raises(BadDestination, match="is no host"):
        await dial(vm, "net", host, outside.port)
    assert len(refusals(caplog)) == 1


async def test_mapped_address_is_the_address(system: System, outside: Outside) -> None:
    """IPv4 in IPv6 is allowed and denied as IPv4."""
    vm, _ = await start(system, ["127.0.0.1:*", "[::/0]:*"])
    async with await dial(vm, "net", "::ffff:127.0.0.1", outside.port) as stream:
        assert stream.address[0] == "127.0.0.1"
    with pytest.raises(AccessDenied):
        await dial(vm, "net", "::ffff:127.0.0.2", outside.port)


async def test_refusals_are_counted(system: System, caplog: Any) -> None:
    """The first at once, those after it as one record with their number."""
    vm, running = await start(system)
    for _ in range(50):
        with pytest.raises(AccessDenied):
            await dial(vm, "net", "192.0.2.1", 80)
    assert len(refusals(caplog)) == 1
    running.machine.stop()
    await running.ended.wait()
    first, second = [record for record in caplog.records if record.getMessage().startswith("refused")]
    assert (first.count, second.count) == (1, 49)
    assert second.getMessage().startswith("refused 49 times: SHOP may not reach 192.0.2.1:80")
    assert second.peer == "SHOP"
    assert second.destination == "192.0.2.1:80"


async def test_refusals_of_a_machine_that_tries_everything_stay_few(system: System, caplog: Any) -> None:
    """A machine that scans makes a handful of records, and none of its attempts is left out of the count."""
    vm, running = await start(system)
    path = await vm.connect("net")
    for port in range(1, 301):
        with pytest.raises(AccessDenied):
            await path.call({"type": "tcp.connect", "host": "192.0.2.1", "port": port})
    running.machine.stop()
    await running.ended.wait()
    counts = [record.count for record in caplog.records if hasattr(record, "count")]
    assert sum(counts) == 300
    assert len(counts) < 40


@pytest.mark.parametrize(
    "body",
    [None, b"", [], {"type": "tcp.open"}, {"type": ["tcp.connect"]}, {"type": {}}, {"type": "tcp.connect"}],
)
async def test_request_that_is_none_is_refused(system: System, outside: Outside, body: Any) -> None:
    """Whatever is asked, TCPIP lives on."""
    vm, _ = await start(system, ["127.0.0.1:*"])
    path = await vm.connect("net")
    with pytest.raises(Rejected):
        await path.call(body)
    async with await dial(vm, "net", "127.0.0.1", outside.port):
        await outside.accept()


async def test_path_that_begins_with_no_question_is_severed(system: System) -> None:
    """One-way messages open nothing: so does a path for datagrams end whose TCPIP is another one now."""
    vm, _ = await start(system)
    path = await vm.connect("net")
    await path.send(b"a datagram")
    with pytest.raises(PathSevered, match="nothing is open"):
        await path.receive()


# -- the world says no ----------------------------------------------------------------------------------------------


async def test_outside_says_no(system: System, outside: Outside) -> None:
    """Nobody listens, there is no such name, no answer comes: an OSError with the system's number."""
    names = Names(none_example_org=[])
    rules = ["127.0.0.1:*", "none.example.org:1", "slow.example.org:1"]
    vm, _ = await start(system, rules, names, resolve_time=0.05)
    await outside.listener.aclose()
    with pytest.raises(OutsideFailed, match=r"127\.0\.0\.1:\d+: Connection refused") as refused:
        await dial(vm, "net", "127.0.0.1", outside.port)
    assert (refused.value.code, refused.value.errno) == ("unreachable", errno.ECONNREFUSED)
    assert isinstance(refused.value, OSError)
    with pytest.raises(OutsideFailed, match="Name or service not known") as unknown:
        await dial(vm, "net", "none.example.org", 1)
    assert unknown.value.code == "unresolved"
    with pytest.raises(OutsideFailed, match=r"was not resolved within 0\.05 s") as slow:
        await dial(vm, "net", "slow.example.org", 1)
    assert (slow.value.code, slow.value.errno) == ("timeout", errno.ETIMEDOUT)


async def test_connecting_is_bounded(system: System) -> None:
    """A server that takes no more connections costs connect_time, over all addresses."""
    with socket.socket() as full, socket.socket() as first, socket.socket() as second:
        full.bind(("127.0.0.1", 0))
        full.listen(0)
        for each in (first, second):  # one is in the queue, one waits for it: further ones are not answered
            each.setblocking(False)
            each.connect_ex(full.getsockname())
        vm, _ = await start(system, ["127.0.0.1:*"], connect_time=0.1)
        with pytest.raises(OutsideFailed, match=r"did not answer within 0\.1 s"):
            await dial(vm, "net", *full.getsockname())


async def test_system_resolver_knows_localhost_and_what_does_not_exist() -> None:
    """The host's own resolver, in a thread."""
    resolver = SystemResolver()
    assert ipaddress.ip_address("127.0.0.1") in await resolver.resolve("SHOP", "localhost")
    with pytest.raises(OSError, match=r"."):
        await resolver.resolve("SHOP", "no-such-name.invalid")


async def test_lookups_of_one_machine_are_bounded() -> None:
    """No more threads than MOST_LOOKUPS_PER_MACHINE for one machine, and another one still gets its answer."""
    resolver = SystemResolver()
    async with trio.open_nursery() as nursery:
        for _ in range(50):
            nursery.start_soon(resolver.resolve, "SHOP", "localhost")
        await trio.testing.wait_all_tasks_blocked()
        limiter = resolver.limiter("SHOP")
        assert limiter.borrowed_tokens <= MOST_LOOKUPS_PER_MACHINE
        await resolver.resolve("FILES", "localhost")


async def test_withdrawn_question_opens_nothing(system: System, outside: Outside) -> None:
    """A machine that waits no longer leaves no connection and no place behind."""
    vm, _ = await start(system, ["slow.example.org:*", "127.0.0.1:*"], max_outbound_per_machine=1)
    for _ in range(3):
        with trio.move_on_after(0.02) as scope:
            await dial(vm, "net", "slow.example.org", 1)
        assert scope.cancelled_caught
        await trio.testing.wait_all_tasks_blocked(0.01)
    async with await dial(vm, "net", "127.0.0.1", outside.port):
        await outside.accept()


# -- bytes ----------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("outward", [True, False])
async def test_slow_reader_holds_the_writer_back(system: System, outside: Outside, outward: bool) -> None:
    """Whoever reads slowly, the writer waits; nothing is lost."""
    total = 20_000_000
    async with connected(system, outside) as (stream, far, _), trio.open_nursery() as nursery:
        source: Any = stream if outward else far
        target: Any = far if outward else stream
        sent = 0

        async def send() -> None:
            nonlocal sent
            while sent < total:
                await source.send_all(bytes(100_000))
                sent += 100_000
            await source.send_eof()

        nursery.start_soon(send)
        await trio.testing.wait_all_tasks_blocked(0.05)
        assert sent < total
        received = 0
        async for piece in target:
            received += len(piece)
        assert received == total


@pytest.mark.parametrize("ended", [False, True])
async def test_reset_from_outside_breaks_the_stream(system: System, outside: Outside, ended: bool) -> None:
    """Nobody takes a part for the whole, not even when the machine's own side had ended before."""
    async with connected(system, outside) as (stream, far, _):
        if ended:
            await stream.send_eof()
            assert await far.receive_some() == b""
        await far.send_all(b"the first ha")
        assert await stream.receive_some() == b"the first ha"
        far.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, struct.pack("ii", 1, 0))
        far.socket.close()
        with pytest.raises(trio.BrokenResourceError):
            await stream.receive_some()


@pytest.mark.parametrize("how", ["killed", "aborted"])
async def test_machine_that_is_gone_resets_the_outside(system: System, outside: Outside, how: str) -> None:
    """A machine that dies in the middle: RST, so that the server does not take the half for the whole."""
    async with connected(system, outside) as (stream, far, _):
        await stream.send_all(b"the first ha")
        assert await far.receive_some() == b"the first ha"
        if how == "killed":
            system.kill("SHOP")
        else:
            stream.abort("no more")
        with pytest.raises(trio.BrokenResourceError):
            await far.receive_some()


async def test_stop_lets_an_answer_come(system: System, outside: Outside) -> None:
    """A machine that has asked gets its answer; then the server is told that nothing follows."""
    async with connected(system, outside) as (stream, far, running):
        await stream.send_all(b"question")
        assert await far.receive_some() == b"question"
        running.machine.stop()
        await trio.testing.wait_all_tasks_blocked(0.01)
        await far.send_all(b"answer")
        assert await stream.receive_some() == b"answer"
        assert await everything(far) == b""
        await far.aclose()
        assert await everything(stream) == b""
        await running.ended.wait()


async def test_stop_is_bounded(system: System, outside: Outside) -> None:
    """A server that never answers does not keep TCPIP."""
    async with connected(system, outside, drain_time=0.05) as (stream, far, running):
        await stream.send_all(b"question")
        assert await far.receive_some() == b"question"
        running.machine.stop()
        await running.ended.wait()
        with pytest.raises(trio.BrokenResourceError):
            await far.receive_some()
        with pytest.raises(trio.BrokenResourceError):
            await stream.receive_some()


# -- limits ---------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("setting", ["max_outbound_per_machine", "max_outbound"])
async def test_connections_are_bounded_and_places_come_back(
    system: System, outside: Outside, caplog: Any, setting: str
) -> None:
    """One more than may be open is turned away with the setting's name, as a record; a closed one makes room."""
    settings: dict[str, Any] = {setting: 2}
    vm, _ = await start(system, ["127.0.0.1:*"], **settings)
    first = await dial(vm, "net", "127.0.0.1", outside.port)
    far = await outside.accept()
    second = await dial(vm, "net", "127.0.0.1", outside.port)
    with pytest.raises(ConnectRefused, match=f"exhausted.*{setting}"):
        await dial(vm, "net", "127.0.0.1", outside.port)
    assert len(refusals(caplog)) == 1
    await first.aclose()
    await far.aclose()
    await trio.testing.wait_all_tasks_blocked(0.01)
    third = await dial(vm, "net", "127.0.0.1", outside.port)
    for each in (second, third):
        await each.aclose()


async def test_want_of_descriptors_refuses_and_passes(system: System, outside: Outside) -> None:
    """When the host has none to spare the machine is told so; TCPIP lives on."""
    vm, _ = await start(system, ["127.0.0.1:*"])
    path = await vm.connect("net")
    with few_left(), pytest.raises(Rejected, match="Too many open files") as full:
        await path.call({"type": "tcp.connect", "host": "127.0.0.1", "port": outside.port})
    assert full.value.code == "exhausted"
    async with await dial(vm, "net", "127.0.0.1", outside.port):
        await outside.accept()


# -- TLS ------------------------------------------------------------------------------------------------------------


async def test_tls_is_the_program_s_own(system: System, outside: Outside, tmp_path: File) -> None:
    """ssl over the stream: TCPIP sees no plain byte and needs no certificate."""
    key, certificate = tmp_path / "key.pem", tmp_path / "certificate.pem"
    command = "openssl req -x509 -newkey ec -pkeyopt ec_paramgen_curve:prime256v1 -nodes -days 2 -subj /CN=x -addext"
    try:
        await trio.run_process(
            [*command.split(), "subjectAltName=DNS:api.example.org", "-keyout", key, "-out", certificate],
            capture_stderr=True,
        )
    except FileNotFoundError:
        pytest.skip("there is no openssl to make a certificate with")
    theirs = ssl.create_default_context(ssl.Purpose.CLIENT_AUTH)
    theirs.load_cert_chain(certificate, key)
    ours = ssl.create_default_context(cafile=str(certificate))
    vm, _ = await start(system, ["api.example.org:*", "127.0.0.1:*"], Names(api_example_org=["127.0.0.1"]))

    async def answer() -> None:
        async with trio.SSLStream(await outside.accept(), theirs, server_side=True) as server:
            assert await server.receive_some() == b"question"
            await server.send_all(b"answer")

    async with trio.open_nursery() as nursery:
        nursery.start_soon(answer)
        stream = await dial(vm, "net", "api.example.org", outside.port)
        tls = trio.SSLStream(stream, ours, server_hostname="api.example.org")
        await tls.send_all(b"question")
        assert await tls.receive_some() == b"answer"
        assert await tls.receive_some() == b""
        await tls.aclose()


# -- datagrams ------------------------------------------------------------------------------------------------------


@pytest.fixture
async def echo() -> AsyncIterator[int]:
    """The port of a UDP server on 127.0.0.1 that sends everything back."""
    sock = trio.socket.socket(socket.AF_INET, socket.SOCK_DGRAM)
    await sock.bind(("127.0.0.1", 0))

    async def serve() -> None:
        while True:
            datagram, address = await sock.recvfrom(65536)
            await sock.sendto(datagram, address)

    async with trio.open_nursery() as nursery:
        nursery.start_soon(serve)
        yield sock.getsockname()[1]
        nursery.cancel_scope.cancel()
    sock.close()


async def test_datagrams_go_and_come_whole(system: System, echo: int) -> None:
    """Each datagram is one message, the empty one and the largest among them."""
    vm, _ = await start(system, [f"udp:127.0.0.1:{echo}"])
    async with await open_datagrams(vm, "net", "127.0.0.1", echo) as datagrams:
        assert datagrams.address == ("127.0.0.1", echo)
        for datagram in (b"x", b"", bytes(1500), bytes(65507)):
            await datagrams.send(datagram)
            assert await datagrams.receive() == datagram
        with pytest.raises(LimitExceeded):
            await datagrams.send(bytes(65508))
    with pytest.raises(trio.ClosedResourceError):
        await datagrams.receive()


async def test_rule_for_tcp_is_none_for_udp(system: System, echo: int) -> None:
    """The two are two, and the line says which."""
    vm, _ = await start(system, [f"127.0.0.1:{echo}"])
    with pytest.raises(AccessDenied, match=f'"udp:127.0.0.1:{echo}"'):
        await open_datagrams(vm, "net", "127.0.0.1", echo)


async def test_network_s_answer_to_a_datagram_is_told(system: System, outside: Outside) -> None:
    """Port unreachable comes as from a connected socket of one's own, and it goes on after that."""
    vm, _ = await start(system, ["udp:127.0.0.1:*"])
    with socket.socket(socket.AF_INET, socket.SOCK_DGRAM) as probe:
        probe.bind(("127.0.0.1", 0))
        port = probe.getsockname()[1]
    async with await open_datagrams(vm, "net", "127.0.0.1", port) as datagrams:
        for _ in range(2):
            await datagrams.send(b"anybody?")
            with pytest.raises(OutsideFailed, match="Connection refused") as no:
                await datagrams.receive()
            assert no.value.errno == errno.ECONNREFUSED


async def test_flood_of_datagrams_is_bounded_and_counted(system: System, caplog: Any) -> None:
    """A machine that does not read costs WINDOW bytes here; what finds no room is dropped, with its number."""
    server = trio.socket.socket(socket.AF_INET, socket.SOCK_DGRAM)
    await server.bind(("127.0.0.1", 0))
    with server:
        vm, running = await start(system, ["udp:127.0.0.1:*"])
        datagrams = await open_datagrams(vm, "net", *server.getsockname())
        await datagrams.send(b"hello")
        _, address = await server.recvfrom(10)
        for _ in range(300):
            await server.sendto(bytes(10_000), address)
            await trio.lowlevel.checkpoint()
        await trio.testing.wait_all_tasks_blocked(0.05)
        received = 0
        with trio.move_on_after(0.1):
            while True:
                assert len(await datagrams.receive()) == 10_000
                received += 1
        assert 0 < received <= 64
        running.machine.stop()
        await running.ended.wait()
        dropped = [record for record in caplog.records if "dropped from" in record.getMessage()]
        assert sum(record.count for record in dropped) + received <= 300
        assert sum(record.count for record in dropped) > 100
        with pytest.raises(trio.BrokenResourceError):
            await datagrams.receive()


async def test_datagrams_of_a_machine_that_floods_are_taken_at_once(system: System, echo: int) -> None:
    """A machine sends as fast as it can: nothing piles up, and it hears from the echo in between."""
    vm, _ = await start(system, ["udp:127.0.0.1:*"])
    async with await open_datagrams(vm, "net", "127.0.0.1", echo) as datagrams:
        for _ in range(1000):
            await datagrams.send(bytes(1000))
        assert datagrams.path.meter.high_water <= 64
        assert await datagrams.receive() == bytes(1000)


async def test_idle_datagrams_end(system: System, echo: int) -> None:
    """Without a datagram for udp_idle_time the socket is closed, and the machine is told."""
    vm, _ = await start(system, ["udp:127.0.0.1:*"], udp_idle_time=0.05)
    datagrams = await open_datagrams(vm, "net", "127.0.0.1", echo)
    await datagrams.send(b"x")
    assert await datagrams.receive() == b"x"
    with pytest.raises(trio.BrokenResourceError, match=r"no datagram for 0\.05 s"):
        await datagrams.receive()


@pytest.mark.parametrize("body", ["text", None, {"type": "udp.error"}])
async def test_what_is_no_datagram_ends_the_path(system: System, echo: int, body: Any) -> None:
    """Only bytes, one way."""
    vm, _ = await start(system, ["udp:127.0.0.1:*"])
    datagrams = await open_datagrams(vm, "net", "127.0.0.1", echo)
    await datagrams.path.send(body)
    with pytest.raises(trio.BrokenResourceError, match="one-way message of bytes"):
        await datagrams.receive()


async def test_only_tcpip_speaks_for_the_outside(system: System) -> None:
    """An edge to some other machine is an error that says so, not a stream."""

    async def other(vm: Machine[Any]) -> None:
        async def answer(message: Any) -> Any:
            return "hello"

        await vm.serve(answer)

    shop = Shop()
    await system.start("OTHER", other)
    await system.start("SHOP", shop.main, net="OTHER")
    with pytest.raises(Rejected, match="does not speak for the outside"):
        await dial(shop.vm, "net", "127.0.0.1", 1)
