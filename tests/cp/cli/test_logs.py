"""`retinue logs`: what it refuses, how it prints gaps, and what it finds in a real system."""

import json
import pathlib
import time
from collections.abc import Iterator
from typing import Any

import pytest
from tests.systems import Bench, open_bench, read_until, wait_for

from retinue.cp.cli import errors, main
from retinue.cp.cli.logs import Printer
from retinue.cp.cli.records import RecordFormat

# More than one answer has.
MANY = 10_500
TRACE = "4bf92f3577b34da6a3ce929d0e0e4736"

SHOP = f"""\
import logging
from retinue.svm import Machine

async def main(vm: Machine[None]) -> None:
    await vm.ready()
    till = logging.getLogger("shop.till")
    for number in range({MANY}):
        till.info("sold %d", number, extra={{"status": 500 if number % 5_000 == 4_321 else 200}})
    till.info("one request", extra={{"trace": "{TRACE}"}})
    logging.getLogger("shop.door").warning("Tür \\x1b[2J klemmt\\nsehr")
    logging.getLogger("shop.door").error("the door is BROKEN")
    await vm.stopping.wait()
    logging.getLogger("shop.door").error("closed")
"""

WATCH = """\
from retinue.pipes import AccessDenied, Rejected
from retinue.svm import Machine

async def main(vm: Machine[None]) -> None:
    await vm.ready()
    log = await vm.connect("log")
    await log.call(["follow", {"machine": ["SHOP"], "severity": 3, "after": 0}])
    async for message in log:
        kind, record = message.body
        if kind == "record":
            break
    answer = await log.call(["logs", {"machine": "SHOP", "logger": "shop.door", "fields": {}, "text": "kLEMMT"}])
    print("followed", repr(record["message"]), "found", len(answer["records"]), answer["kept"], answer["more"])
    for request in (["logs", {"sevrity": 3}], ["down", {}]):
        try:
            await log.call(request)
        except (AccessDenied, Rejected) as exc:
            print("refused:", exc)
    await vm.stopping.wait()
"""


# -- without a system --------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("args", "complaint"),
    [
        (["--since", "soon"], "'soon' is no time such as 10m, 1h30m, 09:30, today, yesterday, 2026-11-21"),
        (["-s", "waring"], "'waring' is no severity: emergency, alert, critical, error, warning, notice, info, debug"),
        (["-s", "waring"], "did you mean warning?"),
        (["-s", "8"], "'8' is no severity"),
        (["-s", "e"], "'e' is no severity"),
        (["-g", "(a"], "'(a' is no regular expression: missing ), unterminated subpattern at position 0"),
        (["-g", "(a"], "(for plain text: --text)"),
        (["--field", "status"], "'status' is not NAME=VALUE"),
        (["--trace", "4bf"], "'4bf' is no trace id: 32 hexadecimal characters, or the first 4 or more"),
        (["--times", "swatch"], "'swatch' is not one of 'local', 'iso', 'utc', 'epoch', 'none'"),
        (["-f", "--until", "now"], "--until is the end, and --follow has none: leave one of them out"),
        (["--gerp", "x"], "--grep"),
    ],
)
def test_wrong_usage_says_what_is_right(args: list[str], complaint: str, capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["logs", *args]) == errors.USAGE
    out, err = capsys.readouterr()
    problem, cure = err.splitlines()
    assert (out, cure) == ("", "  see: retinue logs --help")
    assert complaint in problem


@pytest.mark.parametrize("severity", ["warning", "WARN", "4", "err", "crit", "emerg", "inf", "debug", "0"])
def test_severity_has_many_names(severity: str, tmp_path: pathlib.Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("XDG_RUNTIME_DIR", str(tmp_path))
    monkeypatch.setenv("XDG_STATE_HOME", str(tmp_path))
    assert main(["logs", "-s", severity]) == errors.NO_SYSTEM


def test_help_teaches_by_examples(capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["logs", "--help"]) == 0
    out = capsys.readouterr().out
    for example in (
        "logs SHOP -f",
        "--since 10m -s warning",
        "--field status=500",
        "--trace 4bf92f35",
        "-n all --json",
    ):
        assert f"  retinue {example}" in out or example in out


def record(message: str, **fields: Any) -> dict[str, Any]:
    logger = "retinue.cp" if "lost" in fields else "x"
    return {"machine": "SHOP", "severity": 6, "logger": logger, "message": message, "fields": fields, "time": 0.5}


def test_gaps_with_nothing_between_are_one_line(capsys: pytest.CaptureFixture[str]) -> None:
    """Of one machine and one cause; each where it is."""
    printer = Printer(RecordFormat(["SHOP"]), as_json=False)
    gap, other = record("-- lost --", lost=5, cause="rate"), record("-- lost --", lost=1, cause="buffer")
    for each in (gap, record("a"), gap, gap, other, {**gap, "machine": "WEB"}, record("b"), gap):
        printer.take(each)
    printer.flush()
    printer.flush()
    assert capsys.readouterr().out.splitlines() == [
        "-- 5 lines of SHOP lost: rate --",
        "SHOP | a",
        "-- 10 lines of SHOP lost: rate --",
        "-- 1 line of SHOP lost: buffer --",
        "-- 5 lines of WEB lost: rate --",
        "SHOP | b",
        "-- 5 lines of SHOP lost: rate --",
    ]
    assert gap["fields"]["lost"] == 5


def test_gap_is_a_record_in_json(capsys: pytest.CaptureFixture[str]) -> None:
    printer = Printer(RecordFormat(), as_json=True)
    for _ in range(2):
        printer.take(record("-- lost --", lost=5, cause="rate"))
    assert [json.loads(line)["fields"] for line in capsys.readouterr().out.splitlines()] == [
        {"lost": 5, "cause": "rate"},
        {"lost": 5, "cause": "rate"},
    ]


# -- a real system -----------------------------------------------------------------------------------------------------


@pytest.fixture(scope="module", params=["kept", "in-memory"])
def shop(request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory) -> Iterator[Bench]:
    """A shop that has sold much, with SYSLOG and without."""
    with open_bench(tmp_path_factory.mktemp(request.param)) as bench:
        up_with(bench, kept=request.param == "kept")
        yield bench
        bench.run("down")


def up_with(bench: Bench, *, kept: bool) -> None:
    bench.write(shop=SHOP, watch=WATCH)
    text = bench.file.read_text() + 'uses.log = "*LOG"\n'  # the last one is WATCH
    text = text.replace('program = "shop"', 'program = "shop"\nlog.policy = "block"')  # not one record is lost
    if kept:
        text = text.replace("\n[machines", '\nsyslog = "SYSLOG"\n[machines', 1)
        text += '[machines.SYSLOG]\nprogram = "retinue.services.syslog"\ndisks.a = {}\n'
    bench.file.write_text(text)
    bench.up()
    wait_for(lambda: sum("refused: " in each["message"] for each in bench.records("WATCH")) == 2)


def test_logs_finds_what_is_asked_for(shop: Bench) -> None:
    def logs(*args: str) -> list[str]:
        done = shop.run("logs", *args)
        assert (done.returncode, done.stderr) == (0, "")
        return done.stdout.splitlines()

    door = ["SHOP | warning: Tür \\x1b[2J klemmt", "SHOP | sehr", "SHOP | error: the door is BROKEN"]
    assert logs("SHOP", "-s", "warn", "--times", "none") == door
    assert logs("SHOP", "-n", "1", "--times", "none") == door[-1:]
    assert logs("CP", "SHOP", "-t", "broken", "-n", "1", "--times", "none") == door[-1:]
    assert logs("SHOP", "-l", "shop.door", "-t", "TÜR", "--times", "none") == door[:2]
    assert logs("SHOP", "--field", "status=500", "--field", "status=500", "--times", "none") == [
        "SHOP | sold 4321  status=500",
        "SHOP | sold 9321  status=500",
    ]
    assert logs("SHOP", "--trace", TRACE[:6], "--times", "none") == [f"SHOP | one request  trace={TRACE[:8]}"]
    numbers = [json.loads(line)["message"] for line in logs("-g", r"^sold \d*77$", "-n", "3", "--json")]
    assert numbers == ["sold 10277", "sold 10377", "sold 10477"]
    assert logs("SHOP", "--since", "1h", "-s", "err", "--times", "none") == door[-1:]
    assert logs("SHOP", "--until", "1h") == []
    (iso,) = logs("SHOP", "-n", "1", "--times", "utc")
    assert iso.startswith(time.strftime("%Y-%m-", time.gmtime()))
    assert iso.split()[0].endswith("Z")


def test_logs_of_all_are_more_than_one_answer_has(shop: Bench, tmp_path: pathlib.Path) -> None:
    """From the first to the last, each once."""
    done = shop.run("logs", "SHOP", "-n", "all", "--json")
    assert done.returncode == 0
    sold = [json.loads(line)["message"] for line in done.stdout.splitlines()]
    assert [text for text in sold if text.startswith("sold")] == [f"sold {number}" for number in range(MANY)]
    newest = shop.run("logs", "SHOP", "-n", str(MANY - 100), "--json").stdout.splitlines()
    assert [json.loads(line)["message"] for line in newest] == sold[-(MANY - 100) :]


def test_unknown_machine_is_told_among_several_names(shop: Bench) -> None:
    done = shop.run("logs", "SHOP", "WACH", "-t", "x")
    assert done.returncode == errors.USAGE
    assert done.stderr.startswith(f"retinue: {shop.name} has no machine WACH; did you mean WATCH?\n")


def test_machine_with_an_edge_to_the_log_asks_the_same(shop: Bench) -> None:
    """And is told what it may, and what it could have meant."""
    kept = "SYSLOG" in shop.run("ps").stdout
    told = shop.run("logs", "WATCH", "--times", "none").stdout.splitlines()
    assert told[0] == f"WATCH | followed 'the door is BROKEN' found 1 {kept or None} None"
    assert "unknown argument 'sevrity'; did you mean 'severity'?" in told[1]
    assert "may not down" in told[2]


def test_logs_follow_what_matches_to_the_end(bench: Bench) -> None:
    up_with(bench, kept=True)
    process = bench.start("logs", "SHOP", "-f", "-s", "error", "-g", "closed|BROKEN", "--times", "none")
    first = read_until(process.stdout, lambda line: "BROKEN" in line)
    assert bench.run("down").returncode == 0
    out, err = process.communicate(timeout=60)
    assert [*map(str.strip, first), *out.splitlines()] == ["SHOP | error: the door is BROKEN", "SHOP | error: closed"]
    assert (process.returncode, err) == (0, f"-- {bench.name} has ended --\n")
    bench.assert_gone()
