"""What there is to fuzz: functions of bytes that raise only for a bug."""

from collections.abc import Callable
from pathlib import Path
from typing import Final

import attrs
from tests.fuzz.bulks import bulk_target
from tests.fuzz.paths import path_target
from tests.fuzz.sessions import session_target
from tests.fuzz.wires import wire_target

FOLDER: Final = Path(__file__).resolve().parent


@attrs.frozen
class Target:
    """One of them, and where its inputs lie."""

    name: str
    run: Callable[[bytes], None]

    @property
    def corpus(self) -> Path:
        """Small valid and interesting inputs to begin with."""
        return FOLDER / "corpus" / self.name

    @property
    def regressions(self) -> Path:
        """Inputs that have found a bug."""
        return FOLDER / "regressions" / self.name


TARGETS: Final = {
    each.name: each
    for each in (
        Target("wire", wire_target),
        Target("session", session_target),
        Target("bulk", bulk_target),
        Target("path", path_target),
    )
}
