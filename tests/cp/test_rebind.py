"""Paths whose machines die, in real systems: what is kept, what ends, and what everybody is told."""

import json
import os
import re
import signal
import socket
from collections.abc import Callable, Iterator
from functools import partial
from typing import Any

import pytest
from tests.systems import Bench, open_bench, read_until, wait_for

# Calls that are outstanding when a machine dies.
HELD = 20

SHOP = """\
import trio
from retinue.svm import Machine

async def main(vm: Machine) -> None:
    async def handle(message):
        match message.body:
            case ["hold", number]:
                if message.redelivered:
                    return [number, True]
                print("holding", number)
                try:
                    await trio.sleep_forever()
                finally:
                    print("let go of", number)
            case ["slow"]:
                await trio.sleep(0.05)
            case other:
                return [other, message.redelivered]

    async def watch(path):
        await path.wait_severed()
        print("severed:", path.peer, path.severed.code, path.severed.text)

    await vm.serve(handle)
"""

# What the one end says: plain calls, calls that are held, then plain calls again; it ends when it is told to.
WEB = """\
import json
import trio
from retinue.pipes import PathError, PathSevered
from retinue.svm import Machine

async def main(vm: Machine) -> None:
    path = await vm.connect("shop")
    for number in range(7):
        assert await path.call(number) == [number, False]
    await vm.ready()
    print("ready")
    answers, ends = [], []

    async def hold(number):
        try:
            answers.append(await path.call(["hold", number]))
        except PathSevered as exc:
            ends.append([exc.code, exc.text])

    async with trio.open_nursery() as nursery:
        for number in range(HELD):
            nursery.start_soon(hold, number)
    print("answers", json.dumps(sorted(answers)))
    print("ends", json.dumps(ends))
    try:
        if path.severed is not None:
            path = await vm.connect("shop")
        for number in range(5):
            assert await path.call(number) == [number, False]
        print("done")
    except PathError as exc:
        print("failed", exc)
    await vm.stopping.wait()
""".replace("HELD", str(HELD))


FAILING = """\
from retinue.svm import Machine

async def main(vm: Machine) -> None:
    incoming = vm.listen()
    await vm.ready()
    path = await anext(incoming)
    async for message in path:
        if not message.redelivered:
            raise ValueError("no such luck")
        await message.reply("better now")
"""

BRAVE = """\
from retinue.pipes import PathSevered
from retinue.svm import Machine

async def main(vm: Machine) -> None:
    path = await vm.connect("shop")
    await vm.ready()
    try:
        print("answer", await path.call("fail"))
    except PathSevered as exc:
        print("answer", exc.code, exc.text)
    await vm.stopping.wait()
"""

STREAMING = """\
import trio
from retinue.svm import Machine

async def main(vm: Machine) -> None:
    path = await vm.connect("shop")
    await path.call("bytes follow")
    stream = path.stream()
    await stream.send_all(b"x" * 100_000)
    await vm.ready()
    try:
        async for piece in stream:
            pass
        print("ended", None)
    except trio.BrokenResourceError as exc:
        print("broken", exc)
    await vm.stopping.wait()
"""

SINK = """\
import trio
from retinue.svm import Machine

async def main(vm: Machine) -> None:
    incoming = vm.listen()
    await vm.ready()
    async for path in incoming:
        await (await path.receive()).reply()
        async for piece in path.stream():
            pass
"""

FLOOD = """\
import trio
from retinue.svm import Machine

async def main(vm: Machine) -> None:
    path = await vm.connect("shop")
    await vm.ready()
    async with trio.open_nursery() as nursery:
        for _ in range(3):
            for _ in range(100):
                nursery.start_soon(path.send, ["slow"])
            await trio.sleep(0.6)
    print("sent")
    await vm.stopping.wait()
"""


def write(bench: Bench, edge: str, web: str = WEB, shop: str = SHOP, more: str = "", system: str = "") -> None:
    """SHOP, and WEB with the edge ``shop``."""
    for name, source in (("web", web), ("shop", shop)):
        (bench.folder / f"{name}.py").write_text(source)
    bench.file.write_text(
        f'[system]\nname = "{bench.name}"\n{system}'
        f'[machines.SHOP]\nprogram = "shop"\n{more}'
        f'[machines.WEB]\nprogram = "web"\nuses.shop = {{ to = "SHOP", {edge} }}\n'
    )


class Pair:
    """WEB and SHOP of a test, in a system with those of other tests: there they have a number."""

    def __init__(self, bench: Bench, word: str) -> None:
        self.bench = bench
        self._number = [*PAIRS].index(word)

    def named(self, name: str) -> str:
        return f"{name}{self._number}"

    def machine(self, name: str) -> dict[str, Any]:
        found = self.bench.machine(self.named(name))
        return found | {"cause": self._plain(found["cause"] or "")}

    def edge(self) -> dict[str, Any]:
        (found,) = [each for each in self.bench.ask("edges")["edges"] if each["from"] == self.named("WEB")]
        return dict(found)

    def records(self, name: str) -> list[dict[str, Any]]:
        found = self.bench.records(self.named(name))
        return [each | {"message": self._plain(each["message"])} for each in found]

    def _plain(self, text: str) -> str:
        return text.replace(self.named("WEB"), "WEB").replace(self.named("SHOP"), "SHOP")


# The edge of WEB, both programs, and what else there is about SHOP.
ORIGIN = SHOP.replace(
    "    await vm.serve(handle)\n",
    "    await vm.ready()\n"
    "    async with trio.open_nursery() as nursery:\n"
    "        async for path in vm.listen():\n"
    "            nursery.start_soon(path.serve, handle)\n"
    "            nursery.start_soon(watch, path)\n",
)
PAIRS = {
    "KEEP": ('on_restart = "keep"', WEB, SHOP, ""),
    "RECONNECT": ('on_restart = "reconnect"', WEB, SHOP, ""),
    "RESTART": ('on_restart = "restart"', WEB, SHOP, 'pause = "100ms"\n'),
    "NEVER": ('on_restart = "keep"', WEB, SHOP, 'restart = "never"\n'),
    "ORIGIN": ('on_restart = "keep"', WEB, ORIGIN, ""),
    "FAILKEPT": ('on_restart = "keep"', BRAVE, FAILING, ""),
    "FAILLOST": ('on_restart = "reconnect"', BRAVE, FAILING, ""),
    "STREAM": ('on_restart = "keep"', STREAMING, SINK, ""),
    "DROP": ('limit = 4, overflow = "drop-oldest"', FLOOD, SHOP, ""),
}


@pytest.fixture(scope="module")
def pairs(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Callable[[str], Pair]]:
    """``pairs(word)``: each test has its own two machines in one system."""
    with open_bench(tmp_path_factory.mktemp("pairs")) as bench:
        text = f'[system]\nname = "{bench.name}"\n'
        for number, (edge, web, shop, more) in enumerate(PAIRS.values()):
            for name, source in (("web", web), ("shop", shop)):
                (bench.folder / f"{name}{number}.py").write_text(source)
            text += (
                f'[machines.SHOP{number}]\nprogram = "shop{number}"\n{more}'
                f'[machines.WEB{number}]\nprogram = "web{number}"\n'
                f'uses.shop = {{ to = "SHOP{number}", {edge} }}\n'
            )
        bench.file.write_text(text)
        bench.up()
        yield partial(Pair, bench)


def lines(bench: Bench | Pair, machine: str, start: str) -> list[str]:
    """What the machine has said that begins so, without the beginning."""
    texts = [record["message"] for record in bench.records(machine)]
    return [text.removeprefix(start).strip() for text in texts if text.startswith(start)]


def line(bench: Bench | Pair, machine: str, start: str) -> str:
    """The one line that begins so; waits for it."""
    wait_for(lambda: lines(bench, machine, start))
    (found,) = lines(bench, machine, start)
    return found


def kill(bench: Bench | Pair, name: str) -> None:
    os.kill(bench.machine(name)["pid"], signal.SIGKILL)


def wait_held(bench: Bench | Pair) -> None:
    wait_for(lambda: len(lines(bench, "SHOP", "holding")) == HELD)


def test_kept_path_outlives_its_target(pairs: Callable[[str], Pair]) -> None:
    """Every call is answered, those of before marked as redelivered; and the meters of both ends agree."""
    pair = pairs("KEEP")
    wait_held(pair)
    before = pair.edge()
    assert (before["from"], before["to"]) == (pair.named("WEB"), pair.named("SHOP"))
    assert (before["on_restart"], before["overflow"]) == ("keep", "block")
    assert (before["limit"], before["paths"]) == (64, 1)
    web, shop = before["meters"]["from"], before["meters"]["to"]
    assert (web["sent"], shop["received"]) == (7 + HELD, 7 + HELD)
    assert (web["bytes_sent"], web["bytes_received"]) == (shop["bytes_received"], shop["bytes_sent"])
    assert (web["outstanding"], web["high_water"], shop["outstanding"]) == (HELD, HELD, 0)
    assert sum(web["latency"]) == 7

    kill(pair, "SHOP")
    assert json.loads(line(pair, "WEB", "answers")) == [[number, True] for number in range(HELD)]
    assert line(pair, "WEB", "ends") == "[]"
    assert line(pair, "WEB", "done") == ""
    assert pair.machine("SHOP")["generation"] == 2
    assert pair.machine("WEB")["generation"] == 1
    after = pair.edge()
    web, shop = after["meters"]["from"], after["meters"]["to"]
    assert (web["sent"], web["redelivered"], web["outstanding"]) == (7 + HELD + 5, HELD, 0)
    # The successor has received what the first one had not answered, and what came after.
    assert shop["received"] == HELD + 5
    assert sum(web["latency"]) == 7 + HELD + 5
    assert after["paths"] == 1
    table = pair.bench.run("ps", "--edges").stdout.splitlines()
    assert table[0].split()[:4] == ["FROM", "EDGE", "TO", "PATHS"]
    (row,) = [words for words in map(str.split, table) if words[0] == pair.named("WEB")]
    assert row[:5] == [pair.named("WEB"), "shop", pair.named("SHOP"), "1", str(7 + HELD + 5)]


@pytest.mark.parametrize(
    ("word", "answer"),
    [("FAILKEPT", "better now"), ("FAILLOST", "lost SHOP died: exit status 70: ValueError: no such luck")],
)
def test_exception_that_nobody_catches_is_a_death_like_another(
    pairs: Callable[[str], Pair], word: str, answer: str
) -> None:
    """Its successor gets what it had not answered, or its users the cause."""
    pair = pairs(word)
    assert line(pair, "WEB", "answer") == answer
    wait_for(lambda: pair.machine("SHOP")["generation"] == 2)


def test_path_that_is_to_be_connected_again_ends_with_the_cause(pairs: Callable[[str], Pair]) -> None:
    """All its calls do; a new path leads to the successor."""
    pair = pairs("RECONNECT")
    wait_held(pair)
    kill(pair, "SHOP")
    assert line(pair, "WEB", "answers") == "[]"
    ends = json.loads(line(pair, "WEB", "ends"))
    assert ends == [["lost", "SHOP died: killed by SIGKILL"]] * HELD
    assert line(pair, "WEB", "done") == ""
    assert pair.machine("WEB")["generation"] == 1
    assert pair.edge()["meters"]["to"]["received"] == 5


def test_machine_dies_with_its_target_and_starts_after_it(pairs: Callable[[str], Pair]) -> None:
    """With on_restart = "restart", without a pause of its own, and its last end says why."""
    pair = pairs("RESTART")

    def stands(generation: int) -> bool:
        web = pair.machine("WEB")
        return (web["generation"], web["state"]) == (generation, "READY")

    def held(times: int) -> bool:
        return len(lines(pair, "SHOP", "holding")) == HELD * times

    for generation in 2, 3, 4:
        wait_for(partial(held, generation - 1))
        kill(pair, "SHOP")
        wait_for(partial(stands, generation))
        line_of_web = pair.machine("WEB")
        assert line_of_web["restarts"] == generation - 1
        assert line_of_web["cause"] == 'SHOP died (killed by SIGKILL), and the edge shop says on_restart = "restart"'
        assert pair.machine("SHOP")["generation"] == generation
    told = [record["fields"] for record in pair.bench.records("CP") if "event" in record["fields"]]
    states = [(each["of"], each["generation"], each["event"]) for each in told]
    shop, web = pair.named("SHOP"), pair.named("WEB")
    for generation in 2, 3, 4:
        assert states.index((shop, generation, "READY")) < states.index((web, generation, "READY"))


def test_death_of_the_originator_is_told_to_the_target(pairs: Callable[[str], Pair]) -> None:
    """Its path ends with the cause, what was handled for it is cancelled, and its successor has a path of its own."""
    pair = pairs("ORIGIN")
    wait_held(pair)
    kill(pair, "WEB")
    assert line(pair, "SHOP", "severed:") == "WEB lost WEB died: killed by SIGKILL"
    wait_for(lambda: len(lines(pair, "SHOP", "let go of")) == HELD)
    wait_for(lambda: len(lines(pair, "SHOP", "holding")) == 2 * HELD)
    assert pair.edge()["paths"] == 1
    assert pair.machine("SHOP")["generation"] == 1


def test_target_that_is_not_started_again(pairs: Callable[[str], Pair]) -> None:
    """Kept calls fail with the reason instead of waiting for ever, and so does the next connection."""
    pair = pairs("NEVER")
    wait_held(pair)
    kill(pair, "SHOP")
    ends = json.loads(line(pair, "WEB", "ends"))
    assert ends == [["lost", "SHOP is BROKEN: killed by SIGKILL"]] * HELD
    assert "SHOP is BROKEN: killed by SIGKILL" in line(pair, "WEB", "failed")
    assert pair.edge()["meters"]["to"] is None


def test_byte_stream_is_not_kept(pairs: Callable[[str], Pair]) -> None:
    """Nobody knows which bytes the dead machine had read."""
    pair = pairs("STREAM")
    kill(pair, "SHOP")
    assert "SHOP died: killed by SIGKILL" in line(pair, "WEB", "broken")


def test_dropped_messages_are_recorded_and_counted(pairs: Callable[[str], Pair]) -> None:
    """At once and then once a second, with the exact number; the meter says the same."""
    pair = pairs("DROP")
    assert line(pair, "WEB", "sent") == ""

    def told() -> list[dict[str, Any]]:
        return [record for record in pair.records("WEB") if record["fields"].get("policy") == "drop-oldest"]

    wait_for(lambda: sum(record["fields"]["count"] for record in told()) == pair.edge()["meters"]["from"]["dropped"])
    records = told()
    meters = pair.edge()["meters"]
    assert records[0]["fields"] == {"edge": "shop", "count": 1, "policy": "drop-oldest"}
    assert 2 <= len(records) <= 4
    assert {record["severity"] for record in records} == {4}
    assert meters["from"]["dropped"] > 200
    assert meters["from"]["sent"] == meters["to"]["received"] == 300 - meters["from"]["dropped"]


APP = """\
import trio

async def app(scope, receive, send):
    if scope["type"] == "lifespan":
        while True:
            event = await receive()
            await send({"type": event["type"] + ".complete"})
            if event["type"] == "lifespan.shutdown":
                return
    again = scope["extensions"]["retinue"].get("redelivered", False)
    start = {"type": "http.response.start", "status": 200, "headers": []}
    if scope["path"] == "/body":
        await receive()
        await receive()
    if scope["path"] == "/begun" and not again:
        await send(start)
        await send({"type": "http.response.body", "body": b"begin", "more_body": True})
    if scope["path"] != "/" and not again:
        print("holding", scope["method"], scope["path"])
        await trio.sleep_forever()
    await send(start)
    await send({"type": "http.response.body", "body": b"again %d" % again})
"""


def ask(port: int, request: str) -> socket.socket:
    client = socket.create_connection(("127.0.0.1", port), timeout=60)
    client.sendall(request.replace("\n", "\r\n").encode())
    return client


def answer(client: socket.socket) -> bytes:
    """All that comes; an error of the connection is an end that nobody can take for a whole."""
    parts = []
    with client:
        try:
            while part := client.recv(65536):
                parts.append(part)
        except ConnectionResetError:
            parts.append(b"(reset)")
    return b"".join(parts)


def test_requests_of_a_dead_application(bench: Bench) -> None:
    """Safe ones are run again by its successor; others, and those it had begun to answer, are not."""
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        port = free.getsockname()[1]
    (bench.folder / "app.py").write_text(APP)
    bench.file.write_text(
        f'[system]\nname = "{bench.name}"\n'
        '[machines.TCPIP]\nprogram = "retinue.services.tcpip"\nnetwork = true\nuses.web = "HTTPD"\n'
        f'config.listen = {{ "127.0.0.1:{port}" = "web" }}\n'
        '[machines.HTTPD]\nprogram = "retinue.services.httpd"\nuses.app = "APP"\nconfig.routes = { "/" = "app" }\n'
        '[machines.APP]\nasgi = "app:app"\n'
    )
    bench.up()
    head = "Host: a\nConnection: close\n"
    requests = {
        "get": f"GET /get HTTP/1.1\n{head}\n",
        "post": f"POST /post HTTP/1.1\n{head}Content-Length: 1\n\nx",
        "begun": f"GET /begun HTTP/1.1\n{head}\n",
        "body": f"GET /body HTTP/1.1\n{head}Content-Length: 100000\n\n{'x' * 100_000}",
    }
    clients = {name: ask(port, request) for name, request in requests.items()}
    wait_for(lambda: len(lines(bench, "APP", "holding")) == len(requests))
    kill(bench, "APP")
    answers = {name: answer(client) for name, client in clients.items()}
    assert answers["get"].startswith(b"HTTP/1.1 200 ")
    assert answers["get"].endswith(b"\r\n\r\nagain 1")
    assert answers["post"].startswith(b"HTTP/1.1 502 ")
    assert b"begin" in answers["begun"]
    assert b"again" not in answers["begun"]
    assert not answers["begun"].endswith(b"0\r\n\r\n")
    assert answers["body"].startswith(b"HTTP/1.1 502 ")
    assert answer(ask(port, f"GET / HTTP/1.1\n{head}\n")).endswith(b"\r\n\r\nagain 0")
    assert bench.machine("APP")["generation"] == 2
    assert bench.machine("HTTPD")["generation"] == 1


HOSTILE = """\
import trio
from retinue.pipes import Rejected
from retinue.svm import Machine

async def main(vm: Machine) -> None:
    await vm.ready()
    await vm.connect("shop")
    codes = {}

    async def ask(body):
        try:
            await vm._control.call(body)
        except Rejected as exc:
            codes[exc.code] = codes.get(exc.code, 0) + 1

    for _ in range(20):
        async with trio.open_nursery() as nursery:
            for path in range(-5, 95):
                nursery.start_soon(ask, ["rebind", {"path": path, "stream": False, "wanted": True}])
    print("codes", sorted(codes.items()))
    for body in (
        ["rebind", {}],
        ["rebind", {"path": "1", "stream": False, "wanted": True}],
        ["rebind", {"path": 1, "stream": 1, "wanted": True}],
    ):
        codes.clear()
        await ask(body)
        print("malformed", codes)
    await vm.stopping.wait()
"""

BUSY = """\
import trio
from retinue.svm import Machine

async def main(vm: Machine) -> None:
    path = await vm.connect("shop")
    await vm.ready()
    count = 0
    while not vm.stopping.is_set():
        assert await path.call(count) == [count, False]
        count += 1
    print("calls", count, path.severed)
"""


def test_forged_asks_for_paths_hurt_nobody(bench: Bench) -> None:
    """Thousands of them, for numbers that are unknown or others': refused, and the paths of others go on."""
    write(bench, 'on_restart = "keep"', BUSY)
    (bench.folder / "hostile.py").write_text(HOSTILE)
    with bench.file.open("a") as file:
        file.write('[machines.HOSTILE]\nprogram = "hostile"\nuses.shop = "SHOP"\n')
    bench.up()
    # Its own path lives, so that one ask in each round is a violation; the other 99 are for nobody's path.
    assert line(bench, "HOSTILE", "codes") == "[('lost', 1980), ('violation', 20)]"
    wait_for(lambda: len(lines(bench, "HOSTILE", "malformed")) == 3)
    assert set(lines(bench, "HOSTILE", "malformed")) == {"{'unknown-verb': 1}"}
    assert {bench.machine(name)["generation"] for name in ("WEB", "SHOP", "HOSTILE")} == {1}
    meters = json.loads(bench.run("ps", "--edges", "--json").stdout)["edges"][0]["meters"]
    assert meters["from"]["redelivered"] == 0
    process = bench.start("logs", "-f", "-n", "all")
    read_until(process.stdout, lambda line: "HOSTILE" in line)  # it follows now
    assert bench.run("down").returncode == 0
    assert process.stdout is not None
    said_last = process.stdout.read()
    assert re.search(r"calls \d{3,} None", said_last)


SLOW = """\
import trio
from retinue.svm import Machine

async def main(vm: Machine) -> None:
    mark = vm.disk("a") / "mark"
    if mark.exists():
        await trio.sleep_forever()
    mark.touch()

    async def handle(message):
        if message.body != ["hold", 0]:
            return [message.body, False]
        print("holding")
        await trio.sleep_forever()

    await vm.serve(handle)
"""


def test_system_goes_down_while_paths_wait_for_a_successor(bench: Bench) -> None:
    """In order, without the use of force."""
    write(bench, 'on_restart = "keep"', WEB.replace(f"range({HELD})", "range(1)"), SLOW, "disks.a = {}\n")
    bench.up()
    wait_for(lambda: lines(bench, "SHOP", "holding"))
    kill(bench, "SHOP")
    wait_for(lambda: bench.machine("SHOP")["generation"] == 2)
    wait_for(lambda: bench.ask("edges")["edges"][0]["paths"] == 0)
    assert bench.ask("edges")["edges"][0]["meters"]["from"]["outstanding"] == 1
    down = bench.run("down")
    assert down.returncode == 0
    assert "force" not in down.stderr
    bench.assert_gone()
