"""The command line from outside: what it prints where, and its exit codes."""

import json
import os
import pathlib
import subprocess
import sys

import pytest

from retinue import __version__
from retinue.cp.cli import errors, main
from retinue.cp.cli.command import COMMANDS

TOPOLOGY = """\
[system]
name = "PAIR"

[machines.ASKER]
program = "asker"
uses.server = "SERVER"

[machines.SERVER]
program = "server"
"""


@pytest.fixture(autouse=True)
def _elsewhere(tmp_path: pathlib.Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """No test sees a system of the person who runs the tests."""
    (tmp_path / "run").mkdir(mode=0o700)
    monkeypatch.setenv("XDG_RUNTIME_DIR", str(tmp_path / "run"))
    monkeypatch.setenv("XDG_STATE_HOME", str(tmp_path / "state"))
    for name in ("RETINUE_SYSTEM", "RETINUE_STATE", "FORCE_COLOR", "COLUMNS"):
        monkeypatch.delenv(name, raising=False)


@pytest.fixture
def topology(tmp_path: pathlib.Path) -> pathlib.Path:
    for name in ("asker", "server"):
        (tmp_path / f"{name}.py").write_text("async def main(vm): ...\n")
    file = tmp_path / "pair.toml"
    file.write_text(TOPOLOGY)
    return file


def command(*args: str, **environ: str) -> subprocess.CompletedProcess[str]:
    return subprocess.run(
        [sys.executable, "-c", "import sys; from retinue.cp.cli import main; sys.exit(main())", *args],
        capture_output=True,
        text=True,
        timeout=60,
        env={**os.environ, **environ},
    )


def test_alone_it_prints_help_that_teaches(capsys: pytest.CaptureFixture[str]) -> None:
    assert main([]) == 0
    out, err = capsys.readouterr()
    assert err == ""
    assert "retinue up shop.toml" in out
    assert {name: out.count(f"\n  {name} ") for name in COMMANDS} == dict.fromkeys(COMMANDS, 1)


@pytest.mark.parametrize("name", COMMANDS)
@pytest.mark.parametrize("option", ["-h", "--help"])
def test_every_command_has_help(name: str, option: str, capsys: pytest.CaptureFixture[str]) -> None:
    assert main([name, option]) == 0
    assert f"Usage: retinue {name}" in capsys.readouterr().out


@pytest.mark.parametrize(
    ("args", "complaint"),
    [
        (["verson"], "no such command: verson; did you mean version?"),
        (["xyzzy"], "no such command: xyzzy"),
        (["ps", "--jsn"], "--json"),
        (["--sytem", "A", "ps"], "--system"),
        (["check"], "missing argument 'FILE'"),
        (["logs", "-n", "many"], "'many' is neither a number nor 'all'"),
        (["logs", "-n", "-1"], "'-1' is neither a number nor 'all'"),
        (["completion", "tcsh"], "'tcsh' is not one of 'bash', 'zsh', 'fish'"),
    ],
)
def test_wrong_usage_is_told_in_one_style(args: list[str], complaint: str, capsys: pytest.CaptureFixture[str]) -> None:
    assert main(args) == errors.USAGE
    out, err = capsys.readouterr()
    assert out == ""
    problem, cure = err.splitlines()
    assert problem.startswith("retinue: ")
    assert complaint in problem
    assert cure.startswith("  see: retinue")
    assert cure.endswith(" --help")


@pytest.mark.parametrize("args", [["version"], ["--version"]])
def test_version(args: list[str], capsys: pytest.CaptureFixture[str]) -> None:
    assert main(args) == 0
    assert capsys.readouterr().out == f"retinue {__version__}\n"


def test_version_json(capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["version", "--json"]) == 0
    assert json.loads(capsys.readouterr().out)["retinue"] == __version__


def test_version_needs_no_library_that_it_does_not_use() -> None:
    code = (
        "import sys; from retinue.cp.cli import main; main(['version']);"
        "print(sorted({'trio', 'rich', 'attr', 'cattrs', 'msgpack'} & set(sys.modules)))"
    )
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True, timeout=60)
    assert done.stdout.splitlines()[-1] == "[]"


@pytest.mark.parametrize("shell", ["bash", "zsh", "fish"])
def test_completion_prints_the_script(shell: str, capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["completion", shell]) == 0
    assert "_RETINUE_COMPLETE" in capsys.readouterr().out


def test_shell_completes_commands() -> None:
    done = command(_RETINUE_COMPLETE="bash_complete", COMP_WORDS="retinue che", COMP_CWORD="1")
    assert done.stdout == "plain,check\n"


@pytest.mark.parametrize(
    "args",
    [["ps"], ["ps", "--json"], ["logs"], ["down"], ["--system", "SHOP", "ps"], ["ps", "--system", "SHOP"]],
)
def test_no_system_is_running(args: list[str], capsys: pytest.CaptureFixture[str]) -> None:
    assert main(args) == errors.NO_SYSTEM
    out, err = capsys.readouterr()
    assert out == ""
    named = " SHOP" if "SHOP" in args else ""
    assert err.startswith(f"retinue: no system{named} is running\n  ")


def test_no_system_is_running_tells_how_the_last_one_ended(
    tmp_path: pathlib.Path, capsys: pytest.CaptureFixture[str]
) -> None:
    state = tmp_path / "state" / "retinue" / "SHOP"
    state.mkdir(parents=True)
    end = {"time": 1e9, "how": "cp-died", "text": "signal 9 \x1b[2J"}
    (state / "end.json").write_text(json.dumps(end))
    assert main(["ps"]) == errors.NO_SYSTEM
    assert r"its control program died (signal 9 \x1b[2J)" in capsys.readouterr().err


def test_state_folder_comes_from_option_or_environment(
    tmp_path: pathlib.Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    main(["ps", "--state", str(tmp_path / "one")])
    main(["--state", str(tmp_path / "two"), "ps"])
    monkeypatch.setenv("RETINUE_STATE", str(tmp_path / "three"))
    main(["ps"])
    main(["ps", "--state", str(tmp_path / "four")])
    err = capsys.readouterr().err
    assert [name for name in ("one", "two", "three", "four") if f"looked in {tmp_path / name})" in err] == [
        "one",
        "two",
        "three",
        "four",
    ]


def test_check_counts(topology: pathlib.Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["check", str(topology)]) == 0
    assert capsys.readouterr().out == "ok: PAIR, 2 machines, 1 edge\n"
    assert main(["check", str(topology), "--json"]) == 0
    found = json.loads(capsys.readouterr().out)
    assert (found["ok"], found["system"], found["machines"], found["edges"]) == (True, "PAIR", 2, 1)


def test_check_prints_every_mistake(topology: pathlib.Path, capsys: pytest.CaptureFixture[str]) -> None:
    topology.write_text(TOPOLOGY.replace('"SERVER"', '"SEVER"').replace('"server"', "7"))
    assert main(["check", str(topology)]) == errors.WRONG_TOPOLOGY
    out, err = capsys.readouterr()
    assert out == ""
    assert f"{topology}:6: [machines.ASKER" in err
    assert f"{topology}:9: [machines.SERVER" in err
    assert err.splitlines()[-1] == f"retinue: 2 mistakes in {topology}"

    assert main(["check", str(topology), "--json"]) == errors.WRONG_TOPOLOGY
    out, err = capsys.readouterr()
    assert err == ""
    found = json.loads(out)
    assert found["ok"] is False
    assert [error["line"] for error in found["errors"]] == [6, 9]
    assert "SERVER" in found["errors"][0]["hint"] + found["errors"][0]["message"]


@pytest.mark.parametrize("name", ["check", "graph", "up"])
def test_a_missing_topology_is_told_with_the_one_that_was_meant(
    name: str, topology: pathlib.Path, capsys: pytest.CaptureFixture[str]
) -> None:
    assert main([name, str(topology.with_name("pear.toml"))]) == errors.WRONG_TOPOLOGY
    err = capsys.readouterr().err
    assert err.startswith(f"retinue: {topology.with_name('pear.toml')}: there is no such file\n  ")
    assert "pair.toml" in err


@pytest.mark.parametrize(
    ("form", "part"), [("text", "SERVER"), ("mermaid", "flowchart"), ("dot", "digraph"), ("json", '"PAIR"')]
)
def test_graph_has_four_formats(
    form: str, part: str, topology: pathlib.Path, capsys: pytest.CaptureFixture[str]
) -> None:
    assert main(["graph", str(topology), "--format", form]) == 0
    out = capsys.readouterr().out
    assert part in out
    if form == "json":
        assert main(["graph", str(topology), "--json"]) == 0
        assert json.loads(capsys.readouterr().out) == json.loads(out)


def test_up_refuses_a_name_that_the_file_does_not_declare(
    topology: pathlib.Path, capsys: pytest.CaptureFixture[str]
) -> None:
    assert main(["--system", "OTHER", "up", str(topology)]) == errors.USAGE
    assert "declares the system PAIR, not OTHER" in capsys.readouterr().err


def test_up_where_no_folder_can_be_made_names_folder_and_cure(
    topology: pathlib.Path, capsys: pytest.CaptureFixture[str]
) -> None:
    assert main(["up", str(topology), "--state", "/proc/nowhere"]) == errors.CANNOT_CREATE
    problem, cure = capsys.readouterr().err.splitlines()
    assert problem.startswith("retinue: cannot use the folder /proc/nowhere: it cannot be created (")
    assert "--state DIR" in cure


def test_a_reader_that_leaves_early_is_no_error(topology: pathlib.Path) -> None:
    read, write = os.pipe()
    os.close(read)
    done = subprocess.run(
        [
            sys.executable,
            "-c",
            f"import sys; from retinue.cp.cli import main; sys.exit(main(['graph', {str(topology)!r}]))",
        ],
        stdout=write,
        stderr=subprocess.PIPE,
        text=True,
        timeout=60,
    )
    os.close(write)
    assert (done.returncode, done.stderr) == (errors.BROKEN_PIPE, "")


def test_output_in_a_poor_locale_is_escaped_and_no_error(topology: pathlib.Path) -> None:
    done = command(
        "graph", str(topology), LC_ALL="C", PYTHONUTF8="0", PYTHONCOERCECLOCALE="0", PYTHONIOENCODING="ascii"
    )
    assert done.returncode == 0
    assert "\\u2514" in done.stdout


def test_errors_are_coloured_only_where_wanted(topology: pathlib.Path) -> None:
    assert "\x1b" not in command("ps").stderr
    assert "\x1b[1;31mretinue:\x1b[0m" in command("ps", FORCE_COLOR="1").stderr
    assert "\x1b" not in command("ps", FORCE_COLOR="1", NO_COLOR="1").stderr
