"""Death certificates: what is known of the end of a machine's process, kept where a post-mortem looks for it.

The newest of each machine are lines of ``deaths/NAME.jsonl`` in the state folder of the system, so that they outlive
the control program and the system; deaths that somebody wanted make room for others. Whatever a machine says has a
bounded place in them, and no secret.
"""

import contextlib
import json
import os
import pathlib
import re
import time
from collections.abc import Iterable, Mapping, Sequence
from typing import Any, Final

import attrs
import trio

from retinue.cp.checking import OURS
from retinue.cp.death import Cause
from retinue.cp.host.interface import Exit
from retinue.cp.postmortem import MESSAGES, checked_message, shortened, trace
from retinue.cp.records import Record
from retinue.cp.secrets import NO_SECRETS, Secrets
from retinue.cp.syslog import WARNING, Syslog

__all__ = ["Certificate", "Certificates", "kept_names", "read"]

FOLDER: Final = "deaths"
# Certificates kept of one machine: enough to see whether it always dies in the same way.
KEPT: Final = 10
# Records of the machine in a certificate, and edges with messages.
LOG_LINES: Final = 20
EDGES: Final = 32
TOLD: Final = 64
NEXT: Final = 20
# Records looked through for a traceback.
LOOKED: Final = 500
# Characters of the text and of a record, of what was told or done, and of a traceback.
TEXT: Final = 2_000
SHORT: Final = 300
TRACE: Final = 32_000
# Characters of a secret at the end of such a head that are taken for its beginning: fewer stand there by chance.
LEAST: Final = 4
# Bytes of a certificate as a line; one that is longer loses messages, log lines, the traceback, what was told.
LINE: Final = 128 * 1024

_WANTED: Final = frozenset({Cause.ASKED, Cause.REPLACED, Cause.IDLE})
_NAME: Final = re.compile(r"[A-Z][A-Z0-9]{0,7}(@[0-9]{1,3})?", re.ASCII)


@attrs.frozen
class Certificate:
    """One death. Times in seconds; ``ready`` is how long it was READY, ``lived`` how long it had a process.

    ``told`` has ``[machine, edge, what]`` of each neighbour, ``last_log`` its newest records, ``last_messages`` by edge
    those of its neighbours that it has not answered, ``[id, kind, bytes, age, head]``, and ``next`` what the control
    program did afterwards.
    """

    time: float
    system: str
    machine: str
    generation: int
    cause: str
    text: str
    pid: int = 0
    exit_code: int | None = None
    signal: int | None = None
    ready: float = 0.0
    lived: float = 0.0
    user_s: float = 0.0
    system_s: float = 0.0
    peak_kib: int = 0
    peak_storage: int = 0
    storage: int = 0
    told: tuple[tuple[str, str, str], ...] = ()
    last_log: tuple[Record, ...] = ()
    last_messages: dict[str, list[list[Any]]] = attrs.field(factory=dict)
    traceback: str | None = None
    next: tuple[str, ...] = ()

    def as_dict(self) -> dict[str, Any]:
        """Plain values, for messages and JSON."""
        return attrs.asdict(self) | {"told": [list(each) for each in self.told]}

    @classmethod
    def from_dict(cls, untrusted: Any) -> "Certificate | None":
        """The certificate that :meth:`as_dict` told, or None if it did not; of another version, what is known."""
        if type(untrusted) is not dict:
            return None
        found: dict[str, Any] = {}
        for field in attrs.fields(cls):
            value = untrusted.get(field.name)
            if field.name in _TYPES and type(value) in _TYPES[field.name]:
                found[field.name] = value
        if not found.keys() >= _NEEDED:
            return None
        told = [tuple(each) for each in found.pop("told", ()) if _is_told(each)]
        log = tuple(each for each in found.pop("last_log", ()) if type(each) is dict)
        after = tuple(each for each in found.pop("next", ()) if type(each) is str)
        return cls(**found, told=tuple(told), last_log=log, next=after)


_NUMBER: Final = (int, float)
_TYPES: Final[dict[str, tuple[type, ...]]] = {
    **dict.fromkeys(("system", "machine", "cause", "text"), (str,)),
    **dict.fromkeys(("time", "ready", "lived", "user_s", "system_s"), _NUMBER),
    **dict.fromkeys(("generation", "pid", "peak_kib", "peak_storage", "storage"), (int,)),
    **dict.fromkeys(("exit_code", "signal"), (int, type(None))),
    **dict.fromkeys(("told", "last_log", "next"), (list, tuple)),
    "last_messages": (dict,),
    "traceback": (str, type(None)),
}
_NEEDED: Final = frozenset({"time", "machine", "generation", "cause", "text"}) | {"system"}


def _is_told(untrusted: Any) -> bool:
    return type(untrusted) in (list, tuple) and [type(each) for each in untrusted] == [str] * 3


class Certificates:
    """The certificates of one system. Without a folder (in a simulation) they are kept in memory alone.

    What is written is there at once for whoever asks, and on the disk soon, when :meth:`run` runs; :meth:`settle` waits
    for that.
    """

    def __init__(
        self, state_folder: pathlib.Path | None, syslog: Syslog, system: str = "", secrets: Secrets = NO_SECRETS
    ) -> None:
        self.secrets = secrets
        self._folder = None if state_folder is None else state_folder / FOLDER
        self._syslog = syslog
        self._system = system
        self._known: dict[str, list[Certificate]] = {}
        self._unstored: set[str] = set()
        self._changed = trio.Event()
        self._storing = trio.Lock()

    # -- writing -------------------------------------------------------------------------------------------------------

    def issue(
        self,
        *,
        machine: str,
        generation: int,
        cause: str,
        text: str,
        exit: Exit | None = None,
        ready: float = 0.0,
        lived: float = 0.0,
        storage: int = 0,
        told: Iterable[tuple[str, str, str]] = (),
        messages: Mapping[str, Sequence[Sequence[Any]]] | None = None,
    ) -> Certificate:
        """Write the certificate of a generation that has ended, with what its records say of it."""
        records = [each for each in self._syslog.recent(machine, LOOKED) if each["generation"] == generation]
        code = None if exit is None else os.waitstatus_to_exitcode(exit.status)
        certificate = Certificate(
            time=time.time(),
            system=self._system,
            machine=machine,
            generation=generation,
            cause=Cause(cause).value,
            text=self._cut(text),
            exit_code=code if code is not None and code >= 0 else None,
            signal=-code if code is not None and code < 0 else None,
            ready=round(ready, 6),
            lived=round(lived, 6),
            storage=storage,
            told=tuple((each, edge, self._cut(what, SHORT)) for each, edge, what in list(told)[:TOLD]),
            last_log=tuple(_brief(each) for each in records if each["logger"] != OURS)[-LOG_LINES:],
            last_messages=self._messages(machine, messages or {}),
            traceback=self._hidden_trace(records),
        )
        if exit is not None:
            certificate = attrs.evolve(
                certificate,
                pid=exit.pid,
                user_s=round(exit.user_s, 6),
                system_s=round(exit.system_s, 6),
                peak_kib=exit.peak_kib,
                peak_storage=exit.peak_storage,
            )
        self.write(certificate)
        return certificate

    def write(self, certificate: Certificate) -> None:
        """Keep a certificate; if there are too many of its machine, one goes."""
        self._file(certificate.machine)
        known = self._of(certificate.machine)
        known.append(certificate)
        if len(known) > KEPT:
            # What somebody wanted does not drive out what nobody did.
            wanted = (index for index, each in enumerate(known[:-1]) if each.cause in _WANTED)
            del known[next(wanted, 0)]
        self._touch(certificate.machine)

    def then(self, machine: str, generation: int, text: str) -> None:
        """Add to the newest certificate of that generation what was done next; nothing if it has none."""
        known = self._of(machine)
        for index, each in enumerate(known):
            if each is self._newest(machine, generation) and len(each.next) < NEXT:
                known[index] = attrs.evolve(each, next=(*each.next, self._cut(text, SHORT)))
                self._touch(machine)

    def heard(self, machine: str, generation: int, messages: Mapping[str, Sequence[Sequence[Any]]]) -> None:
        """Add to it the messages that were not answered, by edge, once the neighbours have told them."""
        known = self._of(machine)
        for index, each in enumerate(known):
            if each is self._newest(machine, generation):
                known[index] = attrs.evolve(each, last_messages=self._messages(machine, messages))
                self._touch(machine)

    def _newest(self, machine: str, generation: int) -> Certificate | None:
        return next((each for each in reversed(self._of(machine)) if each.generation == generation), None)

    def _touch(self, machine: str) -> None:
        self._unstored.add(machine)
        self._changed.set()

    def _cut(self, text: str, most: int = TEXT) -> str:
        return shortened(self.secrets.hide(text), most)

    def _hidden_trace(self, records: Sequence[Record]) -> str | None:
        found = trace(records)
        return None if found is None else shortened(self.secrets.hide(found), TRACE)

    def _messages(self, machine: str, untrusted: Mapping[str, Sequence[Sequence[Any]]]) -> dict[str, list[list[Any]]]:
        found = {}
        for edge, items in list(untrusted.items())[:EDGES]:
            checked = [each for each in map(checked_message, items) if each is not None][-MESSAGES:]
            ends = (machine, edge.partition(".")[0])
            if checked:
                found[edge] = [[*each[:4], self._hide_head(each[4], ends)] for each in checked]
        return found

    def _hide_head(self, head: str, ends: Iterable[str]) -> str:
        """What a message began with, without secrets; at its end one may have been cut off."""
        hidden = self.secrets.hide(head)
        for name, value in (pair for machine in ends for pair in self.secrets.of(machine).items()):
            secret = value.decode(errors="backslashreplace")
            for length in range(len(secret) - 1, LEAST - 1, -1):
                if hidden.endswith(secret[:length]):
                    return f"{hidden[:-length]}[secret {name}]"
        return hidden

    # -- reading -------------------------------------------------------------------------------------------------------

    def latest(self, machine: str) -> Certificate | None:
        """The newest of a machine, or of the machines behind a name (``SHOP@1``, ``SHOP@2``); None without one."""
        return next(iter(self.all(machine)), None)

    def all(self, machine: str) -> list[Certificate]:
        """Those that are kept of a machine, or of the machines behind a name, the newest first."""
        names = {name for name in (*self._known, *_names_in(self._folder)) if name.partition("@")[0] == machine}
        found = [each for name in {machine, *names} for each in self._of(name)]
        return sorted(found, key=lambda each: -each.time)

    def _of(self, machine: str) -> list[Certificate]:
        if machine not in self._known:
            self._known[machine] = [] if self._folder is None else _read_file(self._folder / f"{machine}.jsonl")
        return self._known[machine]

    def _file(self, machine: str) -> str:
        if not _NAME.fullmatch(machine):
            raise ValueError(f"not the name of a machine: {machine!r}")
        return f"{machine}.jsonl"

    # -- the disk ------------------------------------------------------------------------------------------------------

    async def run(self) -> None:
        """Store what is written; runs until it is cancelled, and leaves nothing unstored."""
        try:
            while True:
                await self._changed.wait()
                await self.settle()
        finally:
            for machine in list(self._unstored):
                self._store(machine, self._taken(machine))

    async def settle(self) -> None:
        """Until everything that was written before is on the disk, or could not be stored."""
        async with self._storing:
            self._changed = trio.Event()
            for machine in list(self._unstored):
                await trio.to_thread.run_sync(self._store, machine, self._taken(machine))

    def _taken(self, machine: str) -> list[Certificate]:
        self._unstored.discard(machine)
        return list(self._known[machine])

    def _store(self, machine: str, certificates: Sequence[Certificate]) -> None:
        """Replace the file of a machine: whoever reads it finds the old one or the new one, whole."""
        if self._folder is None:
            return
        contents = b"".join(_line(each) for each in certificates)
        file = self._folder / self._file(machine)
        new = file.with_name(f".{file.name}.new")
        try:
            self._folder.mkdir(mode=0o700, exist_ok=True)
            new.write_bytes(contents)
            os.replace(new, file)
        except OSError as exc:
            self._tell(f"the certificates of {machine} cannot be stored: {exc.strerror}")

    def _tell(self, text: str) -> None:
        try:
            trio.from_thread.run_sync(self._syslog.write, WARNING, text)
        except RuntimeError:  # not in a thread of trio's
            self._syslog.write(WARNING, text)


def read(state_folder: pathlib.Path, machine: str) -> list[Certificate]:
    """The certificates of a machine, or of those behind a name, the newest first; needs no running system."""
    folder = state_folder / FOLDER
    names = [name for name in kept_names(state_folder) if machine in (name, name.partition("@")[0])]
    return sorted(
        (each for name in names for each in _read_file(folder / f"{name}.jsonl")), key=lambda each: -each.time
    )


def kept_names(state_folder: pathlib.Path) -> list[str]:
    """The machines that have certificates."""
    return _names_in(state_folder / FOLDER)


def _names_in(folder: pathlib.Path | None) -> list[str]:
    try:
        files = [] if folder is None else sorted(os.listdir(folder))
    except OSError:
        return []
    names = (name.removesuffix(".jsonl") for name in files if name.endswith(".jsonl"))
    return [name for name in names if _NAME.fullmatch(name)]


def _read_file(file: pathlib.Path) -> list[Certificate]:
    """The certificates in a file, the oldest first; what is none is left out."""
    try:
        with file.open("rb") as stream:
            lines = stream.read(KEPT * LINE * 2).splitlines()
    except OSError:
        return []
    found = []
    for line in lines:
        with contextlib.suppress(ValueError, RecursionError):
            if (certificate := Certificate.from_dict(json.loads(line))) is not None:
                found.append(certificate)
    return found[-KEPT:]


def _line(certificate: Certificate) -> bytes:
    less: tuple[dict[str, Any], ...] = (
        {},
        {"last_messages": {}},
        {"last_log": certificate.last_log[-3:]},
        {"last_log": ()},
        {"traceback": None},
        {"told": certificate.told[:5]},
    )
    for each in less:
        certificate = attrs.evolve(certificate, **each)
        line = json.dumps(certificate.as_dict(), default=repr).encode() + b"\n"
        if len(line) <= LINE:
            break
    return line


def _brief(record: Record) -> Record:
    """A record cut to what a certificate has room for."""
    fields = record["fields"]
    if len(repr(fields)) > TEXT:
        fields = {"cut": f"{len(fields)} fields"}
    return {**record, "message": shortened(str(record["message"]), TEXT), "fields": fields}
