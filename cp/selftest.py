"""The start-up self-test: a scratch machine of each profile tries what it must not be able to, before any other starts.

What it tries is in :mod:`retinue.svm.selftest`. One attempt that succeeds, or a scratch machine that does not answer,
and the system does not start.
"""

import signal
import time
from collections.abc import Collection, Mapping, Sequence
from typing import Any, Final

import attrs
import trio

from retinue.cp.directory import MachineEntry
from retinue.cp.host.errors import SpawnFailed
from retinue.cp.host.interface import Birth, Host
from retinue.cp.syslog import Syslog
from retinue.cp.users import SCRATCH
from retinue.pipes import Path, PathError, SocketTransport, socket_pair

# No machine can have this name, which is in small letters.
NAME: Final = "self-test"
# Seconds a scratch machine may take; a hundredth of it is what it takes on a small host.
LIMIT: Final = 20.0
# Seconds to read why a scratch machine has died.
LAST_WORDS: Final = 1.0


@attrs.frozen
class Outcome:
    """What the scratch machine of one profile found: ``succeeded`` should be empty. ``trouble``: it did not answer.

    ``unavailable``: this host makes no machines of the profile at all.
    """

    profile: str
    attempts: int = 0
    succeeded: tuple[str, ...] = ()
    trouble: str = ""
    unavailable: bool = False

    @property
    def passed(self) -> bool:
        """Whether every attempt was refused."""
        return self.attempts > 0 and not self.succeeded and not self.trouble


@attrs.frozen
class Report:
    """The outcomes of all profiles, and how long they took together, in seconds."""

    outcomes: tuple[Outcome, ...]
    seconds: float

    @property
    def passed(self) -> bool:
        """Whether the system may start."""
        return all(outcome.passed for outcome in self.outcomes)

    @property
    def text(self) -> str:
        """In one sentence."""
        bad = []
        for outcome in self.outcomes:
            if outcome.trouble:
                bad.append(f"the scratch machine ({outcome.profile}) did not answer: {outcome.trouble}")
            elif outcome.succeeded:
                bad.append(f"a sealed machine ({outcome.profile}) could {', '.join(outcome.succeeded)}")
        if bad:
            return "the seal does not hold: " + "; ".join(bad)
        tried = ", ".join(f"{outcome.profile}: {outcome.attempts}" for outcome in self.outcomes)
        return f"the seal holds: every attempt was refused ({tried}) in {self.seconds * 1000:.0f} ms"

    def as_dict(self) -> dict[str, Any]:
        """For the verb ``status`` and for JSON."""
        return {
            "passed": self.passed,
            "seconds": round(self.seconds, 4),
            "profiles": [attrs.asdict(outcome) | {"passed": outcome.passed} for outcome in self.outcomes],
        }

    @classmethod
    def from_dict(cls, told: Mapping[str, Any]) -> "Report":
        """What :meth:`as_dict` has made."""
        found = [{key: value for key, value in each.items() if key != "passed"} for each in told["profiles"]]
        outcomes = [Outcome(**each | {"succeeded": tuple(each["succeeded"])}) for each in found]
        return cls(tuple(outcomes), told["seconds"])


def profiles(machines: Sequence[MachineEntry]) -> list[str]:
    """The profiles that these machines have between them."""
    return sorted({_profile(machine) for machine in machines})


def _profile(machine: MachineEntry) -> str:
    if machine.network:
        return "network"
    return "exec" if machine.kind == "exec" else "program"


async def self_test(host: Host, syslog: Syslog, wanted: Collection[str], *, storage: int) -> Report:
    """Run a scratch machine of each profile; ``storage`` in bytes is what each may use.

    Their ends show in ``host.exits``, under :data:`NAME`. :raises HostLost: the host is gone.
    """
    own = {layer.system for layer in host.seal_report() if layer.layer == "own-uid" and layer.present}
    outcomes: dict[str, Outcome] = {}
    begun = time.perf_counter()

    async def test(number: int, profile: str) -> None:
        system = "network" if profile == "network" else "sealed"
        birth = Birth(
            machine=NAME,
            generation=number,
            network=profile == "network",
            storage=storage,
            disks=(),
            code=(),
            kind="exec" if profile == "exec" else "program",
            uid=SCRATCH if system in own else -1,
        )
        outcomes[profile] = await _scratch(host, syslog, birth, profile)

    async with trio.open_nursery() as nursery:
        for number, profile in enumerate(wanted, start=1):
            nursery.start_soon(test, number, profile)
    return Report(tuple(outcomes[profile] for profile in wanted), time.perf_counter() - begun)


async def test_until(
    over: trio.Event, host: Host, syslog: Syslog, wanted: Collection[str], *, storage: int
) -> Report | None:
    """:func:`self_test`; None when it is over before, for then a scratch machine may never be born."""
    found: Report | None = None
    async with trio.open_nursery() as nursery:

        async def test() -> None:
            nonlocal found
            found = await self_test(host, syslog, wanted, storage=storage)
            nursery.cancel_scope.cancel()

        nursery.start_soon(test)
        await over.wait()
        nursery.cancel_scope.cancel()
    return found


async def _scratch(host: Host, syslog: Syslog, birth: Birth, profile: str) -> Outcome:
    control_ours, control_theirs = socket_pair()
    log_ours, log_theirs = socket_pair()
    with control_ours, log_ours:
        with control_theirs, log_theirs:
            try:
                await host.spawn(birth, (control_theirs.fileno(), log_theirs.fileno()))
            except SpawnFailed as exc:
                return Outcome(profile, trouble=str(exc), unavailable=exc.step.startswith("exec"))
        try:
            with trio.fail_after(LIMIT):
                async with trio.open_nursery() as nursery:
                    path = Path(SocketTransport(control_ours), name=NAME, peer=NAME)
                    await nursery.start(path.run)
                    untrusted = await path.call(["self-test", {"profile": profile}])
                    nursery.cancel_scope.cancel()
            return _outcome(profile, untrusted)
        except* (PathError, trio.TooSlowError) as group:
            trouble = str(group.exceptions[0])
        finally:
            host.signal(birth.machine, birth.generation, signal.SIGKILL)
        # Why it died is in its log, which ends with it.
        with trio.move_on_after(LAST_WORDS):
            await syslog.read(birth.machine, birth.generation, log_ours.dup())
    last = [record["message"] for record in syslog.recent(NAME, 8) if record["generation"] == birth.generation]
    return Outcome(profile, trouble=last[-1] if last else trouble)


def _outcome(profile: str, untrusted: Any) -> Outcome:
    match untrusted:
        case {"attempts": int(attempts), "succeeded": [*succeeded]} if all(type(each) is str for each in succeeded):
            return Outcome(profile, attempts, tuple(succeeded))
    return Outcome(profile, trouble="its answer cannot be read")
