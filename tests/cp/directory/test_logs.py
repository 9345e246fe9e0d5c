"""What becomes of records: whose word counts, key by key."""

import pathlib
from typing import Any

import pytest

from retinue.cp.changes import with_settings
from retinue.cp.directory import DirectoryErrors, load
from retinue.cp.directory.model import LogPolicy, LogRate
from retinue.cp.log_policy import LogPolicies

K = 1024
FILE = """\
[system]
name = "T"
syslog = "KEEPER"
log = { policy = "block", buffer = "64K", rate = "5/h" }
[machines.KEEPER]
program = "clerk"
[machines.A]
program = "clerk"
[machines.B]
program = "clerk"
instances = 2
log = { policy = "drop", rate = "off" }
[machines.C]
program = "clerk"
log.spill = "1M"
"""


@pytest.fixture
def file(tmp_path: pathlib.Path) -> pathlib.Path:
    (tmp_path / "clerk.py").write_text("async def main(vm): ...\n")
    made = tmp_path / "it.toml"
    made.write_text(FILE)
    return made


def test_each_key_is_the_machines_or_the_systems(file: pathlib.Path) -> None:
    """The machine that stores the records never waits for itself; the control program never waits."""
    rate = LogRate(5, 3600.0)
    policies = LogPolicies(load(file))
    assert policies.of("A") == LogPolicy("block", 64 * K, rate=rate)
    assert policies.of("B@2") == LogPolicy("drop", 64 * K)
    assert policies.of("C") == LogPolicy("block", 64 * K, 1024 * K, rate)
    assert policies.of("KEEPER") == LogPolicy("spill", 64 * K, rate=rate)
    assert policies.of("CP") == LogPolicy("spill", 64 * K)


def test_settings_are_of_one_key_or_of_all(file: pathlib.Path) -> None:
    """What is said later counts; a table takes the place of all that was said of its keys."""
    said: dict[str, Any] = {}
    for settings, expected in (
        ({"log.policy": "drop"}, LogPolicy("drop", 64 * K, 1024 * K, LogRate(5, 3600.0))),
        ({"log.rate": "7/s", "log.buffer": "1M"}, LogPolicy("drop", 1024 * K, 1024 * K, LogRate(7))),
        ({"log": {"policy": "spill"}}, LogPolicy("spill", 64 * K, rate=LogRate(5, 3600.0))),
        ({"log.rate": "off"}, LogPolicy("spill", 64 * K)),
    ):
        said = with_settings(said, settings)
        assert load(file, settings={"C": said}).machine("C").log == expected
    with pytest.raises(DirectoryErrors, match="unknown key 'polcy'"):
        load(file, settings={"C": {"log.polcy": "drop"}})
