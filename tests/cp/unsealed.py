"""A machine's boot without its seal: shows that whatever looks for holes in a seal finds them where there is none."""

from collections.abc import Mapping
from typing import Any, NoReturn

from retinue.svm import boot as sealed


class NoSeal:
    """Every step of a seal, done by doing nothing; but it dies with its parent like any other."""

    def __init__(self, seal: Any) -> None:
        self.parent = seal.parent

    def __getattr__(self, step: str) -> Any:
        return lambda *_: None


def boot(birth: Mapping[str, Any], seal: Any, control: int, log: int) -> NoReturn:
    """The boot of a machine, unsealed."""
    unsealed: Any = NoSeal(seal)
    sealed.boot(birth, unsealed, control, log)
