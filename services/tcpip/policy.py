"""Who may go where: the table ``config.allow``, by machine. What it does not name is denied."""

import json
import re
from collections.abc import Mapping, Sequence
from typing import Any, Final

import attrs

from retinue.pipes import AccessDenied
from retinue.services.tcpip.destination import Destination, IPAddress
from retinue.services.tcpip.rule import BadRule, Rule, parse_rule
from retinue.svm.errors import ConfigError, ConfigMistake

# The key of those rules that are every machine's.
EVERYBODY: Final = "*"
# As the topology has it for a machine (cp/directory).
_MACHINE: Final = re.compile(r"[A-Z][A-Z0-9]*", re.ASCII)
# A line to add is told whole up to here; above, the rules that are there already are left out of it.
_LONGEST_LINE: Final = 1500


class OutsideDenied(AccessDenied):
    """A machine may not go there. Fields: ``machine``, ``destination``, ``line`` (what would allow it)."""

    def __init__(self, machine: str, destination: Destination, why: str, line: str, owner: str) -> None:
        self.machine, self.destination, self.line = machine, destination, line
        super().__init__(f"{machine} may not reach {destination}: {why}; to allow it, put  {line}  under {owner}")


def validate_allow(_: object, attribute: "attrs.Attribute[Any]", allow: Mapping[str, Sequence[str]]) -> None:
    """Raise :exc:`~retinue.svm.errors.ConfigError` with everything that is wrong in a table of rules."""
    mistakes = []
    for machine, rules in allow.items():
        keys = attribute.name, machine
        if machine != EVERYBODY and not _MACHINE.fullmatch(machine):
            known = machine.upper()
            hint = f', such as "{known}"' if _MACHINE.fullmatch(known) else ""
            mistakes.append(ConfigMistake(keys, f'not the name of a machine{hint}; "*" stands for every machine'))
        for number, text in enumerate(rules):
            try:
                parse_rule(text)
            except BadRule as exc:
                mistakes.append(ConfigMistake((*keys, number), str(exc)))
    if mistakes:
        raise ConfigError(tuple(mistakes))


class Policy:
    """``allow`` of the machine ``owner``: name of a machine, or ``*``, -> its rules as text."""

    def __init__(self, owner: str, allow: Mapping[str, Sequence[str]]) -> None:
        self._owner = owner
        self._texts = allow
        self._rules = {machine: tuple(map(parse_rule, texts)) for machine, texts in allow.items()}

    def check(self, machine: str, destination: Destination) -> None:
        """Raise :exc:`OutsideDenied` unless a rule allows the destination as it is: its name or its address.

        Of a name this is all that may be decided before it is looked up; each address that it has then needs
        :meth:`covers`, or to be a public one.
        """
        if not any(rule.names(destination) or rule.covers(destination) for rule in self._rules_of(machine)):
            raise self._denied(machine, destination, f"no rule in {self._owner}'s config.allow lets it")

    def covers(self, machine: str, destination: Destination) -> bool:
        """Whether a rule for addresses allows the destination's address."""
        return any(rule.covers(destination) for rule in self._rules_of(machine))

    def inside(self, machine: str, destination: Destination, address: IPAddress) -> OutsideDenied:
        """That the name of a destination leads to an address inside, for which there is no rule."""
        why = f"the name leads to {address}, which is not of the public internet or is this host's own"
        return self._denied(machine, destination.at(address), f"{destination.host} is allowed, but {why}")

    def line(self, machine: str, destination: Destination) -> str:
        """The line of a topology that would allow it, with what is allowed already."""
        texts = json.dumps([*self._texts.get(machine, ()), str(destination)], ensure_ascii=False)
        if len(texts) > _LONGEST_LINE:
            texts = f"[..., {json.dumps(str(destination))}]"
        return f"config.allow.{machine} = {texts}"

    def _denied(self, machine: str, destination: Destination, why: str) -> OutsideDenied:
        line = self.line(machine, destination)
        return OutsideDenied(machine, destination, why, line, f"[machines.{self._owner}]")

    def _rules_of(self, machine: str) -> tuple[Rule, ...]:
        return self._rules.get(machine, ()) + self._rules.get(EVERYBODY, ())
