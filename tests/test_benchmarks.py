"""The benchmarks' form, what they read out of other programs, and that nothing they start is left behind."""

import importlib.util
import json
import os
import pathlib
import select
import signal
import subprocess
import sys
from typing import Any

import pytest
from tests.command import run_here

ROOT = pathlib.Path(__file__).resolve().parent.parent


def _find_benchmarks() -> None:
    # By its place: with the top folder on sys.path, `import pipes` would mean something as well.
    folder = ROOT / "benchmarks"
    spec = importlib.util.spec_from_file_location(
        "benchmarks", folder / "__init__.py", submodule_search_locations=[str(folder)]
    )
    assert spec is not None
    assert spec.loader is not None
    package = importlib.util.module_from_spec(spec)
    sys.modules["benchmarks"] = package
    spec.loader.exec_module(package)


_find_benchmarks()

from benchmarks import http, paging, peers, pipes, pipes_pair, processes, rebind, report, syslog, web, wrk  # noqa: E402  (found now)

GOOD = "Running 1s test @ http://127.0.0.1:1/\nWRK-SUMMARY [2000,1000500,1,2,3,4,5,13910,25240,75660]\n"


def check_form(printed: Any) -> None:
    """That a report has the form which every benchmark shares."""
    assert set(printed) == {"machine", "results"}
    assert {"cpu", "cores", "memory", "kernel", "python", "date"} <= set(printed["machine"])
    names = [result["name"] for result in printed["results"]]
    assert names
    assert len(set(names)) == len(names)
    for result in printed["results"]:
        assert list(result)[:5] == ["name", "value", "unit", "target", "met"]
        assert set(result) <= {"name", "value", "unit", "target", "met", "why", "rounds"}
        assert isinstance(result["name"], str)
        assert isinstance(result["unit"], str)
        assert result["value"] is None or isinstance(result["value"], int | float)
        assert (result["value"] is None) == ("why" in result)
        assert (result["target"] is None) == (result["met"] is None)


def report_of(
    script: str, *options: str, folder: pathlib.Path, within: float = 120, statuses: tuple[int, ...] = (0,)
) -> Any:
    """What a benchmark prints as JSON when it has run to its end; it has the form. Status 1: it missed a target."""
    run = subprocess.run(
        [sys.executable, str(ROOT / "benchmarks" / f"{script}.py"), *options, "--json"],
        cwd=folder,
        capture_output=True,
        text=True,
        timeout=within,
    )
    assert run.returncode in statuses, run.stderr
    printed = json.loads(run.stdout)
    check_form(printed)
    return printed


# -- the form ------------------------------------------------------------------------------------------------------


def results() -> list[report.Result]:
    return [
        report.median("ours: requests", [1810.123, 1750.0, 1999.4567], "1/s"),
        report.Result("ours: calls", 50_000.5, "1/s", target=45_000),
        report.Result("ours: start", 0.25, "s", target=0.2, at_most=True),
        report.Result("theirs", None, "1/s", why="not installed: theirs"),
    ]


def test_report_has_the_form(capsys: pytest.CaptureFixture[str]) -> None:
    report.show(report.form(report.machine({"wrk": "4.1"}), results()), as_json=True)
    printed = json.loads(capsys.readouterr().out)
    check_form(printed)
    assert printed["results"][0]["value"] == 1810
    assert printed["results"][0]["rounds"] == [1810, 1750, 1999]
    assert [result["met"] for result in printed["results"]] == [None, True, False, None]


def test_table_shows_every_result(capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("COLUMNS", "200")
    whole = report.form(report.machine({"wrk": "4.1"}), results())
    report.show(whole, as_json=False)
    for text in (capsys.readouterr().out, report.plain(whole)):
        for word in ("ours: requests", "1,750 to 1,999", "50,000", "45,000 met", "0.2 MISSED", "not installed: theirs"):
            assert word in text


def test_unmeasured_result_keeps_no_promise() -> None:
    assert report.Result("calls", None, "1/s", target=1, why="it broke").met is False


@pytest.mark.parametrize(
    ("value", "shown"),
    [(3, 3), (12_345.6, 12_346), (1771.04, 1771), (16.7449, 16.74), (0.00123456, 0.001235), (-2.0, -2)],
)
def test_rounded_keeps_four_figures(value: float, shown: float) -> None:
    assert report.rounded(value) == shown
    assert isinstance(report.rounded(value), type(shown))


# -- wrk -----------------------------------------------------------------------------------------------------------


def test_wrk_summary_is_read() -> None:
    summary = wrk.parse(GOOD)
    assert (summary.requests, summary.seconds, summary.status) == (2000, 1.0005, 5)
    assert (summary.p50, summary.p99, summary.longest) == (13.91, 25.24, 75.66)
    assert summary.rate == pytest.approx(1999.0, abs=0.01)
    assert summary.socket_errors == 10
    assert summary.errors == 15


@pytest.mark.parametrize(
    "output",
    [
        "",
        "unable to connect to 127.0.0.1:1 Connection refused",
        "WRK-SUMMARY [1,2]",
        "WRK-SUMMARY [nan]",
        "WRK-SUMMARY 1",
    ],
)
def test_wrk_output_without_summary_is_an_error(output: str) -> None:
    with pytest.raises(wrk.WrkFailed, match=r"wrk failed"):
        wrk.parse(output)


def test_errors_of_requests_are_counted_over_all_rounds() -> None:
    rounds = [http.Round(wrk.parse(GOOD), {"HTTPD": 0.5, "nucleus": 0.0})] * 2
    found = {result.name: result for result in http.figures("plain route", rounds)}
    assert found["plain route: errors"].value == 30
    assert found["plain route: CPU, HTTPD"].value == pytest.approx(250)
    assert "plain route: CPU, nucleus" not in found


# -- what is measured ----------------------------------------------------------------------------------------------


@pytest.mark.parametrize("access_log", [True, False])
def test_example_is_copied_with_another_port(tmp_path: pathlib.Path, access_log: bool) -> None:
    file = web.copy_example(tmp_path / "web", 4711, access_log=access_log)
    text = file.read_text()
    assert "8080" not in text
    assert f"config.access_log = {str(access_log).lower()}" in text
    checked = run_here(("check", str(file)), os.environ, 60)
    assert checked.returncode == 0, checked.stdout + checked.stderr


def test_changed_example_is_noticed() -> None:
    with pytest.raises(ValueError, match="has changed"):
        web.topology("[machines.TCPIP]\n", 4711, access_log=True)


def test_nginx_writes_only_into_its_folder(tmp_path: pathlib.Path) -> None:
    config = peers.nginx_config(tmp_path, tmp_path / "socket", 4711, as_root=False)
    assert "user " not in config
    for line in config.splitlines():
        if "_path " in line or line.startswith("pid "):
            assert str(tmp_path) in line


# -- other people's programs ---------------------------------------------------------------------------------------

# A server with a child that does not heed SIGTERM; it is ready when the child is.
FAMILY = """
import pathlib, subprocess, sys, time
child = subprocess.Popen([sys.executable, "-c", '''
import signal, time
signal.signal(signal.SIGTERM, signal.SIG_IGN)
print(flush=True)
time.sleep(600)
'''], stdout=subprocess.PIPE)
child.stdout.readline()
pathlib.Path("new").write_text(str(child.pid))
pathlib.Path("new").rename("child")
time.sleep(600)
"""


def test_programs_end_with_their_children_when_the_block_fails(tmp_path: pathlib.Path) -> None:
    ends: list[int] = []  # readable when the process has ended, pidfd_open(2)

    def fail() -> None:
        with processes.running([sys.executable, "-c", FAMILY], (tmp_path / "child").exists, tmp_path) as process:
            family = {process.pid, int((tmp_path / "child").read_text())}
            assert set(processes.descendants(process.pid)) == family
            for kept in map(processes.storage, family):
                assert kept is not None
                assert 0 < kept.anonymous < kept.all
            ends.extend(map(os.pidfd_open, family))
            raise KeyError

    with pytest.raises(KeyError):
        fail()
    for end in ends:
        assert select.select([end], [], [], 10)[0]
        os.close(end)
    assert len(ends) == 2


def test_program_that_ends_at_once_tells_why(tmp_path: pathlib.Path) -> None:
    command = [sys.executable, "-c", "raise SystemExit('no such module: shop')"]
    with (
        pytest.raises(processes.NotStarted, match=r"status 1\n.*no such module: shop"),
        processes.running(command, lambda: False, tmp_path),
    ):
        pass


def test_process_that_is_gone_uses_nothing() -> None:
    with subprocess.Popen([sys.executable, "-c", ""]) as process:
        process.wait()
    assert processes.cpu_time(process.pid) == 0
    assert processes.storage(process.pid) is None
    assert processes.descendants(process.pid) == {}


# -- two processes that measure between them -------------------------------------------------------------------------

EVERYWHERE = os.sched_getaffinity(0)


def test_experiment_that_fails_tells_why() -> None:
    with (
        pipes_pair.Pair() as pair,
        pytest.raises(pipes_pair.ExperimentFailed, match=r"^KeyError: 'no such'\nTraceback"),
    ):
        pair.run(pipes.ENDS_MODULE, "no such", {}, cores=EVERYWHERE)


def test_process_that_dies_is_noticed_and_the_other_one_ends() -> None:
    ends = []
    with pipes_pair.Pair() as pair:
        for worker in pair.workers:
            ends.append(os.pidfd_open(worker.pid))
        os.kill(pair.workers[0].pid, signal.SIGKILL)
        with pytest.raises(pipes_pair.ExperimentFailed, match=r"died|cannot be told"):
            pair.run(pipes.ENDS_MODULE, "calls", {}, cores=EVERYWHERE)
    for end in ends:
        assert select.select([end], [], [], 10)[0]  # killed by the block; reaped by whoever is its parent then
        os.close(end)


def test_messages_that_are_lost_are_noticed() -> None:
    class Losing(pipes_pair.Pair):
        def run(self, *_: Any, **__: Any) -> tuple[dict[str, Any], dict[str, Any]]:
            return {"rate": 1.0, "messages": 3}, {"messages": 2}

    experiment = pipes.Experiment("", "one way", {}, [])
    with Losing() as pair, pytest.raises(pipes_pair.ExperimentFailed, match="3 messages were sent and 2 received"):
        pipes.run(pair, experiment, EVERYWHERE)


def test_targets_of_rates_are_for_all_cores() -> None:
    rate = pipes.Figure("calls", "1/s", pipes.field("rate"), target=10)
    ratio = pipes.Figure("ratio", "x", pipes.field("deep", "rate", factor=2), target=1, at_most=True, everywhere=True)
    found = [{"rate": 9.0, "deep": {"rate": 0.25}}] * 3
    assert rate.result(found, "", False).met is False
    assert rate.result(found, ", one core", True) == report.Result("calls, one core", 9.0, "1/s", rounds=(9.0,) * 3)
    assert ratio.result(found, ", one core", True).met is True
    assert ratio.missing(", one core", True, "it broke").met is False


def test_quick_run_has_every_row(tmp_path: pathlib.Path) -> None:
    printed = report_of("pipes", "--quick", "--no-peers", folder=tmp_path, within=60)
    assert {"trio", "msgpack"} <= set(printed["machine"]["software"])
    assert all(result["value"] is not None for result in printed["results"])
    targets = {result["name"]: result["target"] for result in printed["results"] if result["target"] is not None}
    assert targets == {
        "path, call: p50 over bare trio": 1.5,
        "path, calls, 256 at a time": 100_000,
        "path, one way, 64 B": 400_000,
        "path, one way, 64 KiB": 2.5,
        "path, 1 MiB, over plain copy": 0.7,
        "path, 16 MiB, over plain copy": 0.7,
        "path, 16 MiB drafts, over plain copy": 0.7,
        "path, call: p50 over bare trio, one core": 1.5,
        "open path, idle": 8,
        "open path, after a call": 8,
    }


# -- kills -----------------------------------------------------------------------------------------------------------


def test_what_was_handled_is_counted() -> None:
    first, second, third = 10, 20, 30
    counted = rebind.count(
        [
            rebind.Handled(1, first, False),
            rebind.Handled(2, first, False),  # the answer was lost
            rebind.Handled(2, second, True),
            rebind.Handled(3, second, True),  # never got to the first
            rebind.Handled(4, second, False),
            rebind.Handled(4, second, True),  # never: the same generation twice
            rebind.Handled(5, second, False),
            rebind.Handled(5, third, False),  # never: the second time without a mark
        ]
    )
    assert counted == rebind.Count(handled=5, redelivered=3, by_several=2, twice_by_one=1, unmarked=1)


def test_broken_promises_are_not_met() -> None:
    found = {"sent": 5, "answered": 4, "twice": 1, "strange": 1, "longest": 0.05}
    counted = rebind.Count(handled=5, redelivered=3, by_several=2, twice_by_one=1, unmarked=1)
    rows = rebind.results(found, counted, rebind.Kills(2, 0))
    assert [row.name for row in rows if row.met is False] == [
        "never answered",
        "answered twice",
        "answered with another number",
        "handled twice by one generation",
        "redelivered without a mark",
    ]


def test_kills_break_no_promise(tmp_path: pathlib.Path) -> None:
    printed = report_of("rebind", "--seconds", "1", folder=tmp_path)
    values = {result["name"]: result["value"] for result in printed["results"]}
    assert values["sent"] == values["answered"] == 1000
    assert values["kills"] > 0
    assert values["redelivered, marked"] > 0


# -- shares ----------------------------------------------------------------------------------------------------------


def test_shares_are_measured(tmp_path: pathlib.Path) -> None:
    printed = report_of("shares", "--seconds", "0.3", "--machines", "3", folder=tmp_path)
    found = {result["name"]: result for result in printed["results"]}
    assert {name for name, result in found.items() if result["target"] is not None} == {
        "off the ratio of 1:2",
        "alone, of what nobody else used",
        "off the cap of 30 %",
        "control program, 3 idle machines",
    }
    assert found["alone on a processor"]["value"] > 0
    cap = found["off the cap of 30 %"]
    assert cap["value"] is not None or "not enforced" in cap["why"]


# -- machines --------------------------------------------------------------------------------------------------------


def test_cost_of_machines_is_measured(tmp_path: pathlib.Path) -> None:
    printed = report_of("machines", "--quick", "--no-peers", folder=tmp_path)
    values = {result["name"]: result["value"] for result in printed["results"]}
    assert 0 < values["sealed machine: start to ready, p50"] <= values["sealed machine: start to ready, p99"]
    assert 0 < values["1 machine: private storage of each"] < values["1 machine: proportional storage of each"]


# -- the script ----------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("script", "option"),
    [
        ("http", "--soak"),
        ("replace", "--only"),
    ],
)
def test_script_finds_the_standard_library(tmp_path: pathlib.Path, script: str, option: str) -> None:
    # Names in their folder are those of packages of the standard library. Other scripts are run by other tests.
    helped = subprocess.run(
        [sys.executable, str(ROOT / "benchmarks" / f"{script}.py"), "--help"],
        cwd=tmp_path,
        capture_output=True,
        text=True,
    )
    assert helped.returncode == 0, helped.stderr
    assert option in helped.stdout


def test_wrk_that_is_missing_is_told(tmp_path: pathlib.Path) -> None:
    told = subprocess.run(
        [sys.executable, str(ROOT / "benchmarks" / "http.py")],
        env={"PATH": str(tmp_path)},
        capture_output=True,
        text=True,
    )
    assert told.returncode == 2
    assert "needs wrk" in told.stderr


def test_starts_and_applies_are_measured(tmp_path: pathlib.Path) -> None:
    """Small: what is promised of order and of who is touched holds for few machines as well."""
    started = report_of("starts", "--starts", "1", "--machines", "6", folder=tmp_path)
    applied = report_of("apply", "--machines", "3", "--rounds", "1", folder=tmp_path)
    assert [each["met"] for each in started["results"]][:1] == [True]
    assert {each["name"]: each["met"] for each in applied["results"] if each["unit"] == "machines"} == {
        "3 machines, config of one: touched": True,
        "3 machines, share of one: touched": True,
    }


def test_flood_of_records(tmp_path: pathlib.Path) -> None:
    """Every record of it is stored, and what it has cost is told."""
    found = syslog.flood(tmp_path / "flood", 2, 300, "extra", "block")
    assert found["rate"] > 0
    assert (found["lost"], found["uncounted"]) == (0.0, 0.0)
    assert min(found["sender"], found["CP"], found["SYSLOG"]) >= 0


def test_segments_beyond_real_storage_are_measured(tmp_path: pathlib.Path) -> None:
    """Every page holds what it should; how well the limit is kept is no matter of so few seconds."""
    printed = report_of("paging", "--quick", "--only", "segments", folder=tmp_path, within=60, statuses=(0, 1))
    found = {result["name"]: result for result in printed["results"]}
    assert found["segments of 4 x the real storage, Zipf: pages looked at"]["value"] > 0
    assert found["Zipf: pages that did not hold what they should"]["met"]


def test_median_lies_with_confidence_between_values_that_binomial_tables_tell() -> None:
    for number, (first, last) in {3: (0, 2), 6: (0, 5), 9: (1, 7), 20: (5, 14)}.items():
        assert paging.interval([*reversed(range(number))]) == (first, last)
