"""`retinue doctor`: what it finds is what a system gets; and it finds holes where there is no seal."""

import json
import pathlib
from typing import Any

import pytest
from tests.systems import Bench

from retinue.cp.cli.doctor import LEVEL_CODES, examine, lines
from retinue.cp.cli.output import Paint
from retinue.cp.host.levels import LEVELS


def test_a_host_is_examined(bench: Bench) -> None:
    done = bench.run("doctor", "--json")
    findings = json.loads(done.stdout)
    assert findings["level"] in LEVELS
    assert done.returncode == LEVEL_CODES[findings["level"]], done.stderr
    assert findings["self_test"]["passed"]
    assert [each["profile"] for each in findings["self_test"]["profiles"]] == ["program", "network", "exec"]
    assert all(each["attempts"] > 40 for each in findings["self_test"]["profiles"] if not each["trouble"])
    told = {(each["system"], each["layer"]) for each in findings["seal"]}
    assert {("sealed", layer) for layer in LEVELS["full"]} <= told
    bench.assert_gone()


def test_findings_are_shown_layer_by_layer(bench: Bench) -> None:
    shown = bench.run("doctor").stdout
    assert shown.startswith("seal       ")
    for layer in LEVELS["full"]:
        assert f"\n{layer} " in shown
    assert "self-test  program: " in shown
    assert "all refused" in shown


def test_a_boot_without_a_seal_is_found_out(monkeypatch: pytest.MonkeyPatch) -> None:
    """The self-test is no formality: where a machine is not sealed it says what is open."""
    monkeypatch.syspath_prepend(str(pathlib.Path(__file__).parents[1]))
    findings = examine(boot_entry="unsealed:boot")
    assert findings["level"] is None
    assert not findings["self_test"]["passed"]
    open_things = {each["profile"]: set(each["succeeded"]) for each in findings["self_test"]["profiles"]}
    assert {"make a process", "open a socket (internet)", "change the personality"} <= open_things["program"]
    assert any("could " in line for line in lines(findings, Paint(False)))


@pytest.mark.parametrize("trouble", ["", "a saved system failed\x1b[2J"])
def test_what_could_not_be_looked_at_is_no_seal(trouble: str) -> None:
    findings: dict[str, Any] = {
        "level": None,
        "root": False,
        "kernel": "Linux",
        "seal": [],
        "self_test": None,
        "trouble": trouble,
    }
    shown = "\n".join(lines(findings, Paint(False)))
    assert "seal       none" in shown
    assert "\x1b" not in shown
