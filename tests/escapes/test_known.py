"""What is known to pass stands in the threat model, under the heading that the table says."""

import pathlib
import re

import pytest
from tests.escapes.inside import files, kernel, processes, sockets
from tests.escapes.inside.attempt import ATTEMPTS
from tests.escapes.inside.channels import CHANNELS
from tests.escapes.inside.control import CONTROL
from tests.escapes.known import KNOWN
from tests.escapes.test_bombs import DISKS, MOST

assert files
assert kernel
assert processes
assert sockets

PAGE = pathlib.Path(__file__).parents[2] / "docs" / "explanation" / "security.md"


def section(heading: str) -> str:
    """What stands between a heading of the page and the next one."""
    parts = re.split(r"^#{2,} +(.+?) *$", PAGE.read_text(), flags=re.MULTILINE)
    return dict(zip(parts[1::2], parts[2::2], strict=True))[heading]


@pytest.mark.parametrize(("heading", "name"), [(known.heading, name) for known in KNOWN for name in known.names])
def test_what_is_known_to_pass_is_told(heading: str, name: str) -> None:
    assert f"`{name}`" in section(heading)


def test_what_is_known_to_pass_is_tried() -> None:
    tried = {*ATTEMPTS, *CHANNELS, *CONTROL, *MOST, *DISKS}
    assert {name for known in KNOWN for name in known.names} <= tried


def test_what_a_level_does_not_refuse_is_told() -> None:
    """Attempts that are possible without a layer."""
    told = section("What remains at each level")
    needy = [name for name, each in ATTEMPTS.items() if each.needs]
    needy += [name for name, each in CONTROL.items() if each.needs]
    assert [name for name in needy if f"`{name}`" not in told] == []
