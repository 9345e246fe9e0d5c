"""``retinue tap`` and ``retinue replay`` against real systems whose machines must not notice them."""

import json
import os
import pathlib
import re
import signal
import socket
import subprocess
from collections.abc import Callable, Iterator
from functools import partial
from typing import Any

import pytest
import trio
from tests.cp.cli.control import control_program
from tests.leaks import count_of
from tests.systems import LIMIT, Bench, open_bench, read_until, wait_for

from retinue.cp.cli import errors
from retinue.cp.operator_socket import connect_operator
from retinue.pipes import Path, SocketTransport, open_path

TIMES = 20

# Eight tasks that each call and send in turn, some thousand times a second: a number is taken at the very moment its
# message is queued.
CALLER = """\
import logging
import trio
from retinue.svm import Machine

async def main(vm: Machine) -> None:
    path = await vm.connect("server")
    last = answered = 0

    def body():
        nonlocal last
        last += 1
        return {"n": last, "Password": "sesame-open"}

    async def load():
        nonlocal answered
        while not vm.stopping.is_set():
            for _ in range(5):
                sent = body()
                if await path.call(sent) != {"n": sent["n"], "token": b"sesame-shut"}:
                    logging.error("a wrong answer to %s", sent["n"])
                answered += 1
                await path.send(body())
            await trio.sleep(0.005)

    await vm.ready()
    async with trio.open_nursery() as nursery:
        for _ in range(8):
            nursery.start_soon(load)
    logging.info("sent %s, answered %s", last, answered)
"""

# Counts on its disk, so that a successor goes on; what it had done before it died it does not do again.
COUNTER = """\
import os
from retinue.svm import Machine

async def main(vm: Machine) -> None:
    file = vm.disk("a") / "count"
    async def count(message):
        number = int(file.read_text()) if file.exists() else 0
        if message.body["n"] == number + 1:
            new = file.with_suffix(".new")
            new.write_text(str(number + 1))
            os.replace(new, file)
        elif not (message.redelivered and message.body["n"] <= number):
            raise ValueError(f"{message.body['n']} came after {number}")
        return message.body["n"]
    await vm.serve(count)
"""

CUSTOMER = """\
import logging
from retinue.svm import Machine

async def main(vm: Machine) -> None:
    path = await vm.connect("counter")
    await vm.ready()
    last = 0
    while not vm.stopping.is_set():
        last += 1
        if await path.call({"n": last}) != last:
            logging.error("a wrong answer to %s", last)
"""

CHECKER = """\
import logging
from retinue.svm import Machine

async def main(vm: Machine) -> None:
    paths = vm.listen()
    await vm.ready()
    async for path in paths:
        last = 0
        async for message in path:
            if message.body["n"] != last + 1 or message.redelivered:
                logging.error("%s came after %s", message.body["n"], last)
            last = message.body["n"]
            if message.wants_reply:
                await message.reply({"n": last, "token": b"sesame-shut"})
        logging.info("received %s", last)
        if vm.stopping.is_set():
            break
"""

# A shop whose prices follow a file on its disk.
PRICES = """\
from retinue.pipes import Rejected
from retinue.svm import Machine

async def main(vm: Machine) -> None:
    async def answer(message):
        match message.body:
            case ["price", article]:
                prices = (vm.disk("a") / "prices").read_text().split()
                if article not in prices:
                    raise Rejected("unknown", f"no {article}", {"article": article})
                return {"article": article, "price": int(prices[prices.index(article) + 1])}
            case ["login", {"password": "sesame"}]:
                return {"token": "abracadabra", "welcome": "ali"}
            case ["large", n]:
                return b"x" * n
            case ["note", *_]:
                return None
        raise Rejected("bad", "what?")
    await vm.serve(answer)
"""

BUYER = """\
from retinue.pipes import Rejected
from retinue.svm import Machine

async def main(vm: Machine) -> None:
    path = await vm.connect("prices")
    await vm.ready()
    async def serve(message):
        for request in (["price", "tea"], ["login", {"password": "sesame"}], ["price", "gold"], ["large", 200_000]):
            try:
                await path.call(request)
            except Rejected:
                pass
        await path.send(["note", "\\x1b[2Jevil", b"\\xff"])
        await path.call(["price", "milk"])
    await vm.serve(serve)
"""


def write(bench: Bench, programs: dict[str, str], text: str) -> None:
    for name, source in programs.items():
        (bench.folder / f"{name}.py").write_text(source)
    bench.file.write_text(f'[system]\nname = "{bench.name}"\nsecret = ["password", "TOKEN"]\n{text}')


def write_load(bench: Bench) -> None:
    write(
        bench,
        {"caller": CALLER, "checker": CHECKER},
        """
        [machines.CALLER]
        program = "caller"
        uses.server = "CHECKER"
        uses.about = "*CP"
        [machines.CHECKER]
        program = "checker"
        """,
    )


def write_shop(bench: Bench) -> None:
    write(
        bench,
        {"prices": PRICES, "buyer": BUYER},
        """
        [machines.BUYER]
        program = "buyer"
        uses.prices = "PRICES"
        [machines.PRICES]
        program = "prices"
        disks.a = {}
        """,
    )


def price_list(bench: Bench, text: str) -> None:
    (bench.folder / "state" / "retinue" / bench.name / "disks" / "PRICES" / "a" / "prices").write_text(text)


def finish(process: "subprocess.Popen[str]") -> tuple[list[str], str]:
    """The lines that a process whose output was read up to now has yet to print, and its errors."""
    assert process.stdout is not None
    assert process.stderr is not None
    lines, err = process.stdout.read().splitlines(), process.stderr.read()
    process.wait(LIMIT)
    return lines, err


def cp_descriptors(bench: Bench) -> int:
    return count_of(control_program(bench))


def converse(bench: Bench, what: Callable[[Path], Any]) -> Any:
    """Run an async function with an operator's path."""

    async def run() -> Any:
        with trio.fail_after(LIMIT):
            async with open_path(SocketTransport(connect_operator(bench.runtime / bench.name))) as path:
                return await what(path)

    return trio.run(run)


def check_numbers(items: list[dict[str, Any]]) -> None:
    """The requests that were seen, and the answers likewise, are in order without a gap."""
    assert all("lost" not in item for item in items)
    for kinds in (("call", "send"), ("reply",)):
        numbers = [item["body"]["n"] for item in items if item["kind"] in kinds]
        if kinds[0] == "call":
            assert numbers == list(range(numbers[0], numbers[0] + len(numbers)))
        assert numbers == sorted(set(numbers))
    assert {item["kind"] for item in items} <= {"call", "send", "reply", "ack"}


def test_taps_come_and_go_under_load_and_nobody_notices(bench: Bench) -> None:
    """Nothing is lost, repeated or reordered at either end, whatever moment a tap comes or goes."""
    write_load(bench)
    bench.up()
    log = bench.start("logs", "-f", "-n", "all", "--json")

    async def tap_for_a_while(path: Path) -> list[dict[str, Any]]:
        await path.call(["tap", {"edge": "CALLER.server"}])
        items: list[dict[str, Any]] = []
        while len(items) < 200:
            kind, content = (await path.receive()).body
            assert kind == "messages"
            items += content["items"]
        return items

    for _ in range(TIMES):
        items = converse(bench, tap_for_a_while)
        check_numbers(items)
        assert "sesame" not in repr(items)
        assert {"call", "send", "reply", "ack"} == {item["kind"] for item in items}
        assert all(item["latency_us"] > 0 for item in items if item["kind"] == "reply" and "latency_us" in item)
        assert {item["body"]["Password"] for item in items if item["kind"] == "call"} == {"[redacted]"}
    process = bench.start("tap", "CALLER.server", "--json")  # one that stays
    read_until(process.stdout, lambda line: "reply" in line)
    assert bench.run("down").returncode == 0
    _, err = finish(process)
    assert process.returncode == 0
    assert f"-- {bench.name} has ended --\n" in err
    out, _ = log.communicate(timeout=LIMIT)
    records = [json.loads(line) for line in out.splitlines()]
    told = [record["message"] for record in records if record["machine"] in ("CALLER", "CHECKER")]
    # What this host does not enforce is told at the start, and nothing is said after it.
    warned = [record["message"] for record in records if record["severity"] < 6]
    assert [message for message in warned if "is not enforced" not in message and "the seal of" not in message] == []
    (sent,) = [match for each in told if (match := re.fullmatch(r"sent (\d+), answered (\d+)", each))]
    assert int(sent[1]) == 2 * int(sent[2]) > TIMES * 50
    assert f"received {sent[1]}" in told
    bench.assert_gone()


@pytest.fixture(scope="module")
def loaded(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Bench]:
    """A system under load, for tests that only tap."""
    with open_bench(tmp_path_factory.mktemp("loaded")) as bench:
        write_load(bench)
        bench.up()
        yield bench
        assert bench.run("down").returncode == 0
        bench.assert_gone()


def test_the_command_prints_and_stops(loaded: Bench) -> None:
    """After N lines, at Ctrl-C, and when it is killed."""
    before = cp_descriptors(loaded)
    done = loaded.run("tap", "CALLER.server", "--json", "-n", "50")
    assert done.returncode == 0, done.stderr
    check_numbers(items := [json.loads(line) for line in done.stdout.splitlines()])
    assert len(items) == 50
    assert done.stderr == "-- CALLER.server: 1 path open; Ctrl-C ends the tap --\n-- 50 lines --\n"

    process = loaded.start("tap", "CALLER.server")
    lines = read_until(process.stdout, lambda line: "reply" in line)
    process.send_signal(signal.SIGINT)
    rest, err = finish(process)
    assert process.returncode == 0, err
    lines += rest
    assert lines[0].split() == ["TIME", "PATH", "KIND", "ID", "TOOK", "MESSAGE"]
    assert (
        re.fullmatch(
            r'\d\d:\d\d:\d\d\.\d{6} +\d+  -> {2}(call|send) +\d+ +\{"n": \d+, "Password": "\[redacted\]"\}', lines[1]
        )
        or "<-" in lines[1]
    )
    count = re.search(r"-- (\d+) lines", err)
    assert count is not None
    assert int(count[1]) == sum("lost" not in line for line in lines[1:])

    process = loaded.start("tap", "CALLER.server", "--json")
    read_until(process.stdout, lambda line: "reply" in line)
    assert cp_descriptors(loaded) > before or not before
    process.kill()
    process.communicate(timeout=LIMIT)
    wait_for(lambda: cp_descriptors(loaded) <= before)


def _is_ready(bench: Bench, name: str, generation: int) -> bool:
    found = bench.machine(name)
    return (found["state"], found["generation"]) == ("READY", generation)


def _is_after(ident: int, line: str) -> bool:
    return bool(json.loads(line)["id"] > ident)


def test_a_tap_outlives_the_machine_at_the_other_end(bench: Bench) -> None:
    """Its successor is tapped as well, and what is redelivered to it is marked."""
    write(
        bench,
        {"customer": CUSTOMER, "counter": COUNTER},
        """
        [machines.CUSTOMER]
        program = "customer"
        uses.counter = "COUNTER"
        [machines.COUNTER]
        program = "counter"
        disks.a = {}
        """,
    )
    bench.up()
    process = bench.start("tap", "CUSTOMER.counter", "--json")
    items = [json.loads(line) for line in read_until(process.stdout, lambda line: "reply" in line)]
    for deaths in (1, 2, 3):
        os.kill(bench.pid_of("COUNTER"), signal.SIGKILL)
        wait_for(partial(_is_ready, bench, "COUNTER", deaths + 1))
        now = json.loads(bench.run("tap", "CUSTOMER.counter", "-n", "1", "--json").stdout)["id"]  # two taps at once
        items += map(json.loads, read_until(process.stdout, partial(_is_after, now)))
    process.send_signal(signal.SIGINT)
    items += map(json.loads, finish(process)[0])
    calls = [item for item in items if item["kind"] == "call"]
    assert 1 <= sum("redelivered" in item for item in calls) <= 3  # a death may come between two calls
    # One that was on its way to the tap when the machine died is seen when it is redelivered, and not before.
    numbers = list(dict.fromkeys(item["body"]["n"] for item in calls))
    assert numbers == list(range(numbers[0], numbers[0] + len(numbers)))
    first = [item["body"]["n"] for item in calls if "redelivered" not in item]
    assert first == sorted(set(first))
    answers = [item["body"] for item in items if item["kind"] == "reply"]
    assert sorted(set(answers)) == answers
    records = [json.loads(line) for line in bench.run("logs", "-n", "all", "--json").stdout.splitlines()]
    assert [each["message"] for each in records if each["logger"] != "retinue.cp" and each["severity"] < 6] == []
    assert bench.run("down").returncode == 0
    bench.assert_gone()


def test_an_edge_that_cannot_be_tapped_is_told(loaded: Bench) -> None:
    unknown = loaded.run("tap", "CALLER.sever")
    assert unknown.returncode == errors.USAGE
    assert unknown.stderr == (
        f"retinue: {loaded.name}: there is no edge 'CALLER.sever'; did you mean CALLER.server?\n"
        "  there are: CALLER.server\n"
    )
    star = loaded.run("tap", "CALLER.about")
    assert star.returncode == errors.USAGE
    assert "CALLER.about leads to *CP, a service of the control program, and cannot be tapped" in star.stderr
    nobody = loaded.run("replay", os.devnull, "CHEKER")
    assert (nobody.returncode, nobody.stdout) == (errors.FAILED, "")
    assert nobody.stderr.startswith("retinue: /dev/null: byte 0: not a recording")
    missing = loaded.run("replay", str(loaded.folder / "none"), "CHECKER")
    assert missing.stderr.startswith(f"retinue: cannot read {loaded.folder / 'none'}: No such file")
    taken = loaded.run("tap", "CALLER.server", "--record", str(loaded.file))
    assert taken.returncode == errors.CANNOT_CREATE
    assert f"retinue: {loaded.file} is there already\n" in taken.stderr


def test_what_was_recorded_is_replayed(bench: Bench, tmp_path: pathlib.Path) -> None:
    """All equal at first; then with another price; secrets are neither in the recording nor on the screen."""
    write_shop(bench)
    bench.up()
    price_list(bench, "tea 1000 milk 90")
    file = tmp_path / "monday.tap"
    tap = bench.start("tap", "BUYER.prices", "--record", str(file), "--json")
    read_until(tap.stderr, lambda line: "Ctrl-C ends the tap" in line)

    async def trigger(path: Path) -> None:
        reply = await path.call_reply(["connect", {"machine": "BUYER"}])
        async with open_path(SocketTransport(socket.socket(fileno=reply.descriptors[0]))) as buyer:
            await buyer.call("go")

    converse(bench, trigger)
    lines = read_until(tap.stdout, lambda line: '"milk", "price": 90' in line)
    tap.send_signal(signal.SIGINT)
    rest, err = finish(tap)
    lines += rest
    assert (tap.returncode, err) == (0, f"-- {len(lines)} lines recorded --\n")
    assert file.stat().st_mode & 0o777 == 0o600
    content = file.read_bytes() + "".join(lines).encode()
    assert b"sesame" not in content
    assert b"abracadabra" not in content
    assert b"[redacted]" in content
    items = [json.loads(line) for line in lines]
    assert [item["id"] for item in items if item["kind"] == "call"] == [1, 2, 3, 4, 6]
    (large,) = [item for item in items if "bulk" in item]
    assert (large["kind"], len(large["body"])) == ("reply", 200_000)

    equal = bench.run("replay", str(file), "PRICES")
    assert equal.returncode == 0, equal.stdout + equal.stderr
    assert equal.stdout.splitlines() == [
        'not compared: call 2 of path 1  ["login", {"password": "[redacted]"}]',
        "  not sent: 1 of its values is redacted",
        "4 calls and 1 one-way sent: 4 equal, 0 different, 1 not compared",
    ]
    price_list(bench, "tea 1200 gold 5 milk 90")
    differs = bench.run("replay", str(file), "PRICES", "--json")
    assert differs.returncode == 1, differs.stderr
    found = json.loads(differs.stdout)
    assert [(each["id"], each["differences"]) for each in found["different"]] == [
        (1, ["body.price: 1000 -> 1200"]),
        (3, ['refused, unknown: no gold -> a reply, {"article": "gold", "price": 5}']),
    ]
    assert (found["equal"], found["calls"], found["sends"]) == (2, 4, 1)

    (tmp_path / "cut.tap").write_bytes(file.read_bytes()[:-1])
    cut = bench.run("replay", str(tmp_path / "cut.tap"), "PRICES")
    assert cut.returncode == errors.FAILED
    assert re.search(
        r"retinue: .*cut\.tap: byte \d+: the last item is cut off: the file ends at byte \d+\n", cut.stderr
    )
    wrong = bench.run("replay", str(file), "PRICE")
    assert wrong.returncode == errors.USAGE
    assert "has no machine PRICE; did you mean PRICES?" in wrong.stderr
    assert bench.run("down").returncode == 0
    bench.assert_gone()
