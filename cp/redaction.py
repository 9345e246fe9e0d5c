"""What nobody may read who looks at other people's messages: the values of secret keys, and secrets."""

from collections.abc import Iterable
from typing import Any, Final

import attrs

from retinue.cp.secrets import NO_SECRETS, Secrets

# What stands in the place of a secret value.
REDACTED: Final = "[redacted]"
# Credentials of HTTP: secret whether the topology says so or not.
ALWAYS: Final = ("authorization", "proxy-authorization", "cookie", "set-cookie")

_NESTED: Final = frozenset({dict, list})


@attrs.frozen
class Redacted:
    """A value without its secrets: how many there were, and how many levels of arrays and maps the value has."""

    value: Any
    count: int
    depth: int


class Redaction:
    """Takes the values of secret keys out of messages, and the secrets of machines wherever they stand.

    A key is a string or bytes, and its case does not count. Its value is what stands under it in a map, at any depth,
    or behind it in an array of exactly two elements, as in a list of HTTP headers.
    """

    def __init__(self, keys: Iterable[str] = (), secrets: Secrets = NO_SECRETS) -> None:
        self._secrets = secrets
        self._keys = frozenset(key.casefold() for key in (*ALWAYS, *keys))

    def apply(self, value: Any) -> Redacted:
        """Redact a decoded body, which is changed in place as far as it can be."""
        root = [value]
        level: list[Any] = [root]
        found = depth = 0
        while level:
            below: list[Any] = []
            for each in level:
                if type(each) is dict:
                    for key, inner in each.items():
                        if self._secret(key):
                            each[key] = REDACTED
                            found += 1
                        elif type(inner) in _NESTED:
                            below.append(inner)
                elif len(each) == 2 and self._secret(each[0]):
                    each[1] = REDACTED
                    found += 1
                else:
                    below += [inner for inner in each if type(inner) in _NESTED]
            depth += 1
            level = below
        hidden, count = self._secrets.hide_in(root[0])
        return Redacted(hidden, found + count, depth - 1)

    def text(self, text: str) -> str:
        """Redact a text that comes with a message."""
        return self._secrets.hide(text)

    def _secret(self, key: Any) -> bool:
        if type(key) is bytes:
            key = key.decode(errors="replace")
        return type(key) is str and key.casefold() in self._keys
