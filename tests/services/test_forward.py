"""Sending records on: a real SYSLOG machine, a real TCPIP, real sockets, and a collector that can be killed."""

import logging
import pathlib
import random
import socket
from collections.abc import AsyncIterator, Callable
from typing import Any

import pytest
import trio
from tests.services.collectors import Collector, free_port, lines_of, needs_rsyslog, rsyslog
from tests.services.machines import Running, System
from tests.services.rfc5424_reader import Frames, read

from retinue.pipes import Path
from retinue.services import syslog, tcpip
from retinue.services.syslog import collector as collectors
from retinue.services.syslog import forward
from retinue.services.syslog.collector import parse_collector
from retinue.services.syslog.forward import PLACE, Forward
from retinue.svm import ConfigError, Machine
from retinue.svm.config import structure


@pytest.fixture(autouse=True)
def _short_times(monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture) -> None:
    monkeypatch.setattr(forward, "CONFIRM_AFTER", 0.05)
    monkeypatch.setattr(collectors, "ANSWER_TIME", 0.05)
    monkeypatch.setattr(forward, "SOONEST", 0.01)
    monkeypatch.setattr(forward, "LATEST", 0.05)
    caplog.set_level(logging.DEBUG, "retinue")


class Site:
    """A system with SYSLOG and TCPIP, and a collector outside; the test is its control program."""

    def __init__(self, system: System, folder: pathlib.Path, collector: Collector) -> None:
        self.system = system
        self.folder = folder
        self.collector = collector
        self.allow: list[str] | None = None
        self.settings: dict[str, Any] = {}
        self.config: dict[str, Any] = {}
        self._path: Path | None = None
        self.stored = 0

    @property
    def to(self) -> str:
        return f"tcp://127.0.0.1:{self.collector.port}"

    async def start_tcpip(self) -> Running:
        allow = [f"127.0.0.1:{self.collector.port}"] if self.allow is None else self.allow
        return await self.system.start("TCPIP", tcpip.main, tcpip.Config(allow={"SYSLOG": allow}))

    async def start_syslog(self) -> Running:
        """SYSLOG, and a path to it as the control program has one."""
        config = syslog.Config(forward=Forward(**{"to": self.to, "hostname": "SHOP"} | self.settings), **self.config)
        running = await self.system.start("SYSLOG", syslog.main, config, disks={"a": str(self.folder)}, out="TCPIP")
        machines: list[Machine[Any]] = []

        async def main(vm: Machine[Any]) -> None:
            machines.append(vm)
            await vm.ready()
            await vm.stopping.wait()

        await self.system.start("*LOG", main, syslog="SYSLOG")
        self._path = await machines[0].connect("syslog")
        return running

    async def start(self) -> None:
        await self.start_tcpip()
        await self.start_syslog()

    async def store(self, count: int, *, run: str = "run", **more: Any) -> None:
        """Store so many records of a run, and wait until they are."""
        assert self._path is not None
        first, self.stored = self.stored + 1, self.stored + count
        records = [
            {
                "seq": seq,
                "time": 1.5,
                "machine": "PRICES",
                "generation": 1,
                "severity": 6,
                "logger": "prices",
                "message": f"message {seq}",
                "fields": {"number": seq},
            }
            | more
            for seq in range(first, self.stored + 1)
        ]
        await self._path.call(["store", {"run": run, "records": records}])

    async def wait_place(self, seq: int) -> None:
        """Until SYSLOG has noted that the collector has everything up to a record."""
        store = syslog.Store(str(self.folder / "records.sqlite3"), syslog.Config().retention)
        try:
            await until(lambda: store.place(PLACE) & 0xFFFF == seq)
        finally:
            store.close()


@pytest.fixture
async def site(tmp_path: pathlib.Path) -> AsyncIterator[Site]:
    with trio.fail_after(20):
        async with trio.open_nursery() as nursery:
            system, collector = System(nursery), Collector(nursery)
            try:
                await collector.up()
                yield Site(system, tmp_path, collector)
                nursery.cancel_scope.cancel()
            finally:
                system.close()


async def until(condition: Callable[[], bool]) -> None:
    """Poll for what happens in a machine, which nothing tells the test."""
    while not condition():  # noqa: ASYNC110
        await trio.sleep(0.005)


def told(caplog: pytest.LogCaptureFixture) -> list[str]:
    """What SYSLOG has said of the collector, without the address and the times."""
    texts = [each.getMessage() for each in caplog.records if each.name == "retinue.syslog"]
    return ["down" if "takes no records" in text else "up" if "again" in text else text for text in texts]


async def test_records_go_to_the_collector_in_order(site: Site, caplog: pytest.LogCaptureFixture) -> None:
    """As messages of RFC 5424; those that were there before, and those that come; nothing is said about it."""
    site.settings = {"facility": "local3", "enterprise": 99}
    await site.start()
    await site.store(2)
    await site.store(250)
    assert await site.collector.wait(252) == list(range(1, 253))
    one = site.collector.messages[1]
    assert (one.facility, one.severity, one.host, one.app, one.proc) == (19, 6, "SHOP", "PRICES", "1")
    assert one.time == "1970-01-01T00:00:01.500000Z"
    assert one.data == {
        "retinue@99": [("run", "run"), ("seq", "2"), ("logger", "prices")],
        "fields@99": [("number", "2")],
    }
    assert one.text == "message 2"
    await site.wait_place(252)
    await site.store(1)
    assert await site.collector.wait(253) == list(range(1, 254))
    assert told(caplog) == []


async def test_successor_goes_on_where_the_last_one_was(site: Site) -> None:
    """What the collector had taken is not sent again; what was stored since is."""
    await site.start()
    await site.store(10)
    await site.wait_place(10)
    site.system.kill("SYSLOG")
    await site.start_syslog()
    await site.store(5)
    assert await site.collector.wait(15) == list(range(1, 16))


async def test_syslog_that_stops_waits_for_the_collectors_word(site: Site, monkeypatch: pytest.MonkeyPatch) -> None:
    """What was sent is not sent again by its successor, though it was just being sent."""
    monkeypatch.setattr(forward, "CONFIRM_AFTER", 60)
    monkeypatch.setattr(forward, "QUIET", 60)
    await site.start_tcpip()
    running = await site.start_syslog()
    await site.store(10)
    await site.collector.wait(10)
    running.machine.stop()
    await running.ended.wait()
    await site.start_syslog()
    await site.store(1)
    assert await site.collector.wait(11) == list(range(1, 12))


async def test_syslog_that_dies_sends_again_what_was_not_confirmed(site: Site, monkeypatch: pytest.MonkeyPatch) -> None:
    """At least once: the successor begins behind the last place."""
    monkeypatch.setattr(forward, "CONFIRM_AFTER", 60)
    monkeypatch.setattr(forward, "QUIET", 60)
    await site.start()
    await site.store(10)
    await site.collector.wait(10)
    site.system.kill("SYSLOG")
    await site.start_syslog()
    assert await site.collector.wait(20) == [*range(1, 11), *range(1, 11)]


async def test_collector_that_is_away(site: Site, caplog: pytest.LogCaptureFixture) -> None:
    """Storing goes on; one record when it goes, one when it is back, and everything comes in order."""
    site.collector.down()
    await site.start()
    for _ in range(5):
        await site.store(100)
    await until(lambda: told(caplog) == ["down"])
    await trio.sleep(0.1)  # some more attempts
    await site.collector.up()
    assert await site.collector.wait(500) == list(range(1, 501))
    await site.wait_place(500)
    assert told(caplog) == ["down", "up"]


async def test_records_of_an_earlier_run_that_are_stored_late(site: Site, caplog: pytest.LogCaptureFixture) -> None:
    """They had waited on the disk: each is sent once, in its order, also by a successor and when it comes again."""
    await site.start()
    await site.store(10, run="earlier")
    await site.store(5, run="later")
    await site.collector.wait(15)
    await site.store(3, run="earlier")
    await site.store(1, run="later")
    await site.wait_place(19)
    site.collector.down()
    site.stored = 15
    await site.store(3, run="earlier")  # once more: a file that could not be removed
    await site.store(2, run="earlier")
    site.system.kill("SYSLOG")
    await site.collector.up()
    await site.start_syslog()
    await site.store(1, run="later")
    await site.wait_place(21)
    sent = [(each.about["run"], int(each.about["seq"])) for each in site.collector.messages]
    assert len({*sent}) == len(sent) == 22
    for run, seqs in (("earlier", [*range(1, 11), *range(16, 21)]), ("later", [*range(11, 16), 19, 21])):
        assert [seq for its, seq in sent if its == run] == seqs
    assert [each for each in told(caplog) if each not in ("down", "up")] == []


@pytest.mark.parametrize("reading", [True, False])
async def test_collector_that_dies_in_the_middle(site: Site, caplog: pytest.LogCaptureFixture, reading: bool) -> None:
    """Whatever it had read: none is missing, and the first time each comes is in order."""
    await site.start()
    site.collector.reading = reading
    await site.store(100)
    if reading:
        await site.collector.wait(1)
    else:
        await until(lambda: site.collector.connections > 0)
    site.collector.down()
    await site.store(100)
    site.collector.resume()
    await until(lambda: told(caplog) == ["down"])
    await site.collector.up()
    await site.wait_place(200)
    assert list(dict.fromkeys(site.collector.seqs)) == list(range(1, 201))
    assert told(caplog) == ["down", "up"]


async def test_collector_and_tcpip_that_die_again_and_again(site: Site) -> None:
    """Whenever it happens: none is missing, and the first time each comes is in order."""
    chance = random.Random(5424)
    await site.start()
    for _ in range(12):
        for _ in range(chance.randrange(5)):
            await site.store(chance.randrange(1, 60))
            await trio.sleep(chance.choice([0, 0.001, 0.01, 0.07, 0.12]))
        if chance.random() < 0.3:
            site.system.kill("TCPIP")
            await site.start_tcpip()
        else:
            site.collector.down()
            await trio.sleep(chance.choice([0, 0.03]))
            await site.collector.up()
    await site.store(1)
    last = site.stored
    await site.wait_place(last)
    assert list(dict.fromkeys(site.collector.seqs)) == list(range(1, last + 1))


async def test_syslog_that_stops_does_not_wait_for_long(
    site: Site, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    """A collector that says nothing has LAST_WORD for it."""
    monkeypatch.setattr(forward, "LAST_WORD", 0.1)
    site.collector.reading = False
    await site.start_tcpip()
    running = await site.start_syslog()
    await site.store(10)
    await until(lambda: site.collector.connections > 0)
    running.machine.stop()
    with trio.fail_after(2):
        await running.ended.wait()
    assert told(caplog) == []


async def test_collector_that_closes_every_connection_at_once(site: Site, caplog: pytest.LogCaptureFixture) -> None:
    """Being let in is no word of having taken anything: it stays down, and one record says so."""
    site.collector.down()
    port = site.collector.port
    await site.start()
    (listener,) = await trio.open_tcp_listeners(port, host="127.0.0.1")
    async with listener:
        await site.store(10)
        for _ in range(5):
            stream = await listener.accept()
            await stream.aclose()
    assert told(caplog) == ["down"]
    await site.collector.up()
    await site.wait_place(10)
    assert told(caplog) == ["down", "up"]


async def test_collector_that_does_not_read_holds_up_nothing(site: Site) -> None:
    """Records are stored as ever, while sending waits; then they all come."""
    site.collector.reading = False
    await site.start()
    for _ in range(20):
        await site.store(50, message="x" * 7000)
    assert site.collector.messages == []
    site.collector.resume()
    assert await site.collector.wait(1000) == list(range(1, 1001))


async def test_collector_that_hangs_is_lost(
    site: Site, caplog: pytest.LogCaptureFixture, monkeypatch: pytest.MonkeyPatch
) -> None:
    """It accepts connections, as the kernel does for it, and never ends one: nothing it got counts."""
    monkeypatch.setattr(collectors, "CLOSE_TIME", 0.05)
    site.collector.reading = False
    await site.start()
    await site.store(10)
    await until(lambda: told(caplog) == ["down"])
    site.collector.resume()
    await site.wait_place(10)
    assert set(site.collector.seqs) == set(range(1, 11))
    assert told(caplog) == ["down", "up"]


async def test_tcpip_that_dies(site: Site) -> None:
    """Its successor carries on; none is missing."""
    await site.start()
    await site.store(10)
    await site.collector.wait(10)
    site.system.kill("TCPIP")
    await site.store(10)
    await site.start_tcpip()
    await site.wait_place(20)
    assert list(dict.fromkeys(site.collector.seqs)) == list(range(1, 21))


async def test_collector_that_the_policy_denies(site: Site, caplog: pytest.LogCaptureFixture) -> None:
    """One record, which says what would allow it; records are stored as ever."""
    site.allow = ["127.0.0.1:1"]
    await site.start()
    await site.store(10)
    await until(lambda: told(caplog) == ["down"])
    (text,) = [each.getMessage() for each in caplog.records if each.name == "retinue.syslog"]
    assert f'config.allow.SYSLOG = ["127.0.0.1:1", "127.0.0.1:{site.collector.port}"]' in text
    await site.store(10)
    await trio.sleep(0.1)  # some more attempts
    assert told(caplog) == ["down"]


async def test_only_severe_records_are_sent(site: Site) -> None:
    """Those that are not still move the place."""
    site.settings = {"severity": "warning"}
    await site.start()
    await site.store(300)
    await site.store(1, severity=4)
    await site.store(300, severity=5)
    await site.store(1, severity=0)
    assert await site.collector.wait(2) == [301, 602]
    await site.wait_place(602)


async def test_records_that_were_not_kept_until_they_could_be_sent(
    site: Site, caplog: pytest.LogCaptureFixture
) -> None:
    """Their number is told, once."""
    site.config = {"keep": 100}
    await site.start()
    await site.store(10)
    await site.wait_place(10)
    site.collector.down()
    await site.store(300)
    store = syslog.Store(str(site.folder / "records.sqlite3"), syslog.Config().retention)
    await until(lambda: len(store.after(0, 1000)) == 100)
    store.close()
    await site.collector.up()
    await site.wait_place(310)
    seqs = site.collector.seqs
    assert seqs == sorted(set(seqs))
    assert seqs[:10] + seqs[-100:] == [*range(1, 11), *range(211, 311)]
    (text,) = [each for each in told(caplog) if each not in ("down", "up")]
    # An attempt may have had some in its hand.
    assert text.startswith(f"{310 - len(seqs)} records were removed before they could be sent on")


async def test_datagrams(site: Site, caplog: pytest.LogCaptureFixture) -> None:
    """One for each record. A port where nobody listens is told by the network, and they come when somebody does."""
    with socket.socket(socket.AF_INET, socket.SOCK_DGRAM) as free:
        free.bind(("127.0.0.1", 0))
        port = free.getsockname()[1]
    site.settings = {"to": f"udp://127.0.0.1:{port}"}
    site.allow = [f"udp:127.0.0.1:{port}"]
    await site.start()
    await site.store(100)
    await until(lambda: told(caplog) == ["down"])
    with trio.socket.socket(socket.AF_INET, socket.SOCK_DGRAM) as server:
        await server.bind(("127.0.0.1", port))
        seqs = [int(read(await server.recv(65536)).about["seq"]) for _ in range(100)]
        assert seqs == list(range(1, 101))
        await site.wait_place(100)
        assert told(caplog) == ["down", "up"]
        await site.store(1, message="x" * 5000)
        assert 2000 < len(await server.recv(65536)) <= 2048


async def test_unix_datagrams(site: Site, caplog: pytest.LogCaptureFixture, monkeypatch: pytest.MonkeyPatch) -> None:
    """One for each record, in order; they wait while nobody is there, and while whoever is there does not read."""
    address = str(site.folder / "s")
    site.settings, site.allow = {"to": f"unix://{address}"}, [f"unix:{address}"]
    site.system.host_sockets = (address,)
    await site.start()
    await site.store(100)
    await until(lambda: told(caplog) == ["down"])
    with trio.socket.socket(socket.AF_UNIX, socket.SOCK_DGRAM) as reader:
        await reader.bind(address)
        seqs = [int(read(await reader.recv(65536)).about["seq"]) for _ in range(100)]
        await site.wait_place(100)
        assert (seqs, told(caplog)) == ([*range(1, 101)], ["down", "up"])
        # More than the kernel keeps for it, and longer than anybody waits.
        size = int(await trio.Path("/proc/sys/net/unix/max_dgram_qlen").read_text()) + 100
        monkeypatch.setattr(collectors, "SEND_TIME", 0.1)
        await site.store(size)
        await until(lambda: told(caplog) == ["down", "up", "down"])
        monkeypatch.setattr(collectors, "SEND_TIME", 30.0)
        seen: list[int] = []

        async def read_all() -> None:
            while True:
                seen.append(int(read(await reader.recv(65536)).about["seq"]))

        async with trio.open_nursery() as nursery:
            nursery.start_soon(read_all)
            await site.wait_place(100 + size)
            await until(lambda: told(caplog) == ["down", "up", "down", "up"])
            nursery.cancel_scope.cancel()
    assert list(dict.fromkeys(seen))[-size:] == list(range(101, 101 + size))


async def test_unix_stream(site: Site, caplog: pytest.LogCaptureFixture) -> None:
    """Octet-counted. What a collector closes unread is sent again, and its orderly end is its word."""
    address = str(site.folder / "s")
    site.settings, site.allow = {"to": f"unix-stream://{address}"}, [f"unix:{address}"]
    site.system.host_sockets = (address,)
    await site.start()
    with trio.socket.socket(socket.AF_UNIX, socket.SOCK_STREAM) as listener:
        await listener.bind(address)
        listener.listen()
        await site.store(10)
        with (await listener.accept())[0] as first:
            await trio.lowlevel.wait_readable(first)
        frames = Frames()
        seqs: list[int] = []
        while seqs[-1:] != [10]:
            with (await listener.accept())[0] as connection:
                while data := await connection.recv(65536):
                    seqs += [int(read(each).about["seq"]) for each in frames.feed(data)]
        await site.wait_place(10)
    assert seqs == list(range(1, 11))
    assert told(caplog) == ["down", "up"]


@needs_rsyslog
async def test_rsyslog_takes_datagrams(site: Site, tmp_path: pathlib.Path) -> None:
    """One for each record."""
    port = free_port()
    site.settings = {"to": f"udp://127.0.0.1:{port}"}
    site.allow = [f"udp:127.0.0.1:{port}"]
    with rsyslog(tmp_path / "rsyslog", port) as records:
        await site.start()
        await site.store(1)
        await until(lambda: len(lines_of(records)) > 0)  # it listens
        await site.store(99)
        await until(lambda: len(lines_of(records)) == 100)
    words = [line.split("|") for line in lines_of(records)]
    assert [each[-1] for each in words] == [f"message {seq}" for seq in range(1, 101)]
    assert words[0][1:5] == ["SHOP", "daemon", "info", "PRICES"]


async def test_edge_that_is_none(site: Site) -> None:
    """The program fails, and says what to declare."""
    site.settings = {"edge": "net"}
    await site.start_tcpip()
    failed: list[BaseException] = []

    async def main(vm: Machine[Any]) -> None:
        try:
            await syslog.main(vm)
        except* forward.UnknownEdge as group:
            failed.extend(group.exceptions)
        await vm.ready()

    config = syslog.Config(forward=Forward(to=site.to, edge="net"))
    await site.system.start("SYSLOG", main, config, disks={"a": str(site.folder)}, out="TCPIP")
    assert "'net', which is no edge of this machine (it has: out); declare it: uses.net" in str(failed[0])


@pytest.mark.parametrize(
    "text",
    [
        *("tcp://127.0.0.1:514", "udp://log.example.org:514", "tcp://[2001:db8::7]:65535"),
        *("unix:///dev/log", "unix://@collector", "unix-stream:///run/collector"),
    ],
)
def test_collector_is_written_as_it_is_read(text: str) -> None:
    """One spelling."""
    assert str(parse_collector(text)) == text


@pytest.mark.parametrize(
    ("table", "key", "text"),
    [
        ({"to": "unix:/dev/log"}, "to", 'write one of "tcp://HOST:PORT", "udp://HOST:PORT", "unix:///PATH"'),
        ({"to": "unix://dev/log"}, "to", 'write "unix:///PATH", the path without detours, or "unix://@NAME"'),
        ({"to": "unix-stream:///run/../x"}, "to", 'write "unix-stream:///PATH"'),
        ({"to": "unix://@"}, "to", "an abstract name"),
        ({"to": "unix:///" + "x" * 107}, "to", "107 bytes at most"),
        ({"to": "tls://log.example.org:6514"}, "to", 'write one of "tcp://HOST:PORT", "udp://HOST:PORT"'),
        ({"to": "log.example.org:514"}, "to", 'write one of "tcp://HOST:PORT", "udp://HOST:PORT"'),
        ({"to": "tcp://log.example.org"}, "to", "at its end is a port from 1 to 65535"),
        ({"to": "tcp://log.example.org:65536"}, "to", "at its end is a port from 1 to 65535"),
        ({"to": "tcp://[127.0.0.1]:514"}, "to", "in brackets is an IPv6 address"),
        ({"to": "tcp://2001:db8::7:514"}, "to", "an IPv6 address in brackets"),
        ({"to": "udp://:514"}, "to", "its host is a name"),
        ({"to": "tcp://h:1", "facility": "locale0"}, "facility", 'did you mean "local0"?'),
        ({"to": "tcp://h:1", "severity": "bad"}, "severity", "it is one of emergency, alert"),
        ({"to": "tcp://h:1", "hostname": "a b"}, "hostname", "is no name of a host"),
        ({"to": "tcp://h:1", "longest": 480}, "longest", "must be >= 1024"),
        ({"to": "tcp://h:1", "longest": "8K"}, "longest", "8K"),
        ({"to": "tcp://h:1", "host": "a"}, "host", "knows edge, enterprise, facility, hostname, longest, severity, to"),
        ({}, "to", "is missing"),
    ],
)
def test_mistake_in_the_config(table: dict[str, Any], key: str, text: str) -> None:
    """Each is told at its key, before anything starts."""
    with pytest.raises(ConfigError) as caught:
        structure({"forward": table}, syslog.Config, "retinue.services.syslog")
    (mistake,) = caught.value.mistakes
    assert text in mistake.text
    assert mistake.keys == ("forward", key)
