"""The reference page about topology files tells the truth."""

import pathlib
import re

import pytest

from retinue.cp.directory import DirectoryErrors, load
from retinue.cp.directory.disks import DISK_KEYS, LINK_KEYS
from retinue.cp.directory.edges import EDGE_KEYS
from retinue.cp.directory.entries import MACHINE_KEYS, SYSTEM_KEYS
from retinue.cp.directory.groups import GROUP_KEYS
from retinue.cp.directory.lives import BUDGET_KEYS, PAUSE_KEYS
from retinue.cp.directory.logs import LOG_KEYS
from retinue.cp.directory.programs import ALREADY_IMPORTED
from retinue.cp.directory.secrets import SECRET_KEYS

PAGE = (pathlib.Path(__file__).parents[3] / "docs" / "reference" / "topology.md").read_text()
EXAMPLE = PAGE.split("```toml\n", 1)[1].split("```", 1)[0]


@pytest.fixture
def folder(tmp_path: pathlib.Path, monkeypatch: pytest.MonkeyPatch) -> pathlib.Path:
    monkeypatch.chdir(tmp_path)
    (tmp_path / "shop.py").write_text("app = object()\n")
    (tmp_path / "sync-prices").touch(mode=0o755)
    return tmp_path


def test_example_of_the_page_is_correct(folder: pathlib.Path) -> None:
    (folder / "shop.toml").write_text(EXAMPLE)
    assert [machine.name for machine in load("shop.toml").machines] == ["TCPIP", "HTTPD", "SHOP", "FILES", "SYSLOG"]


def test_mistakes_of_the_page_are_told_as_it_says(folder: pathlib.Path) -> None:
    wrong = EXAMPLE.replace('web = "HTTPD"', 'web = "HTPD"').replace('storage = "64M"', 'storge = "64M"')
    (folder / "shop.toml").write_text(wrong.replace("stock = { size", "stock = { path"))
    with pytest.raises(DirectoryErrors) as caught:
        load("shop.toml")
    assert f"```\n{caught.value}\n```" in PAGE


def test_page_has_a_row_for_every_key_and_no_other() -> None:
    rows = re.findall(r"^\| `([a-z_]+)(?:\.[A-Z]+)?` \|", PAGE, re.MULTILINE)
    assert rows == [
        *(*SYSTEM_KEYS, *MACHINE_KEYS, *EDGE_KEYS, *PAUSE_KEYS, *BUDGET_KEYS, *LOG_KEYS, *DISK_KEYS, *LINK_KEYS),
        *(*SECRET_KEYS, *GROUP_KEYS),
    ]


def test_page_names_the_modules_that_a_program_cannot_be_called() -> None:
    assert all(f"`{name}`" in PAGE for name in ALREADY_IMPORTED)
