"""A process without a seal that makes the attempts: what succeeds there is refused in a machine by the seal."""

import json
import pathlib
import subprocess
import sys
from typing import Any

from tests.escapes.inside.attempt import World
from tests.escapes.leash import leashed
from tests.escapes.prison import Outside, copy_inside


class Unsealed:
    """The process, and a place of its own with all that a system has."""

    def __init__(self, folder: pathlib.Path, outside: Outside, *more: str) -> None:
        self._outside = outside
        self._folder = folder
        self._answers: dict[str, Any] = {}
        for path in ("own", "other", "state/disks", "runtime", "topology/data", "topology/empty"):
            (folder / path).mkdir(parents=True, exist_ok=True)
        for path in ("other/mine", "state/nucleus.log", "runtime/system.json", "topology/it.toml"):
            (folder / path).write_text("something")
        for path in ("topology/secret.key", "topology/data/secret", "topology/data/long", "other/spare"):
            (folder / path).write_text("something")
        if not (folder / "own" / "laid").is_symlink():
            (folder / "own" / "laid").symlink_to(outside.folder)
            copy_inside(folder / "topology")
        self._process = subprocess.Popen(
            leashed([sys.executable, str(folder / "topology/tests/escapes/inside/native.py"), *more]),
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            text=True,
            start_new_session=True,
        )

    def world(self, *, other: bool = False) -> dict[str, Any]:
        """As of a machine; ``other`` as of the second one of two."""
        disks = [str(self._folder / "own"), str(self._folder / "other")]
        return World(
            profile="none",
            disk=disks[other],
            other_disk=disks[not other],
            outside=str(self._outside.folder),
            topology=str(self._folder / "topology"),
            state=str(self._folder / "state"),
            runtime=str(self._folder / "runtime"),
            home=str(pathlib.Path.home()),
            operator=self._outside.packet,
            unix=self._outside.unix,
            datagram=self._outside.datagram,
            abstract=self._outside.abstract,
            port=self._outside.port,
            cp=self._outside.victim.pid,
            nucleus=self._outside.victim.pid,
            other=self._outside.victim.pid,
            victim=self._outside.victim.pid,
        )._asdict()

    def ask(self, order: Any) -> Any:
        """Have it do something."""
        assert self._process.stdin is not None
        assert self._process.stdout is not None
        print(json.dumps(order), file=self._process.stdin, flush=True)
        return json.loads(self._process.stdout.readline())

    def answer(self, name: str, names: list[str]) -> dict[str, Any]:
        """What came of an attempt; all ``names`` are made when the first is asked for."""
        if not self._answers:
            self._answers = self.ask(["perform-all", names, self.world()])
        return dict(self._answers[name])

    def close(self) -> None:
        """End it, with all it has started."""
        self._process.kill()
        self._process.communicate()
