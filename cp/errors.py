"""What can go wrong in the control program, cut by who is at fault.

=============================  ===============================================================
the topology                   :mod:`retinue.cp.directory.errors`, :class:`ConfigRejected`
the program of a machine       :class:`StartFailed`
the host                       :mod:`retinue.cp.host.errors`
the operator or a machine      :class:`~retinue.pipes.Rejected` with the codes of the reference
=============================  ===============================================================
"""

import attrs


class ControlProgramError(Exception):
    """Root of what the control program raises itself."""


class StartFailed(ControlProgramError):
    """A machine did not become ready at the first start of the system, which therefore does not start."""

    def __init__(self, machine: str, cause: str) -> None:
        self.machine, self.cause = machine, cause
        super().__init__(f"{machine}: {cause}")


@attrs.frozen
class Misfit:
    """One thing in a machine's ``config`` that its program does not take."""

    file: str
    line: int
    machine: str
    keys: tuple[str | int, ...]
    text: str

    def __str__(self) -> str:
        key = ".".join(("config", *map(str, self.keys)))
        return f"{self.file}:{self.line}: [machines.{self.machine}] {key}: {self.text}"


class ConfigRejected(ControlProgramError):
    """Programs do not take their configuration; ``misfits`` holds every mistake of every machine."""

    def __init__(self, misfits: tuple[Misfit, ...]) -> None:
        self.misfits = misfits
        super().__init__("\n".join(map(str, misfits)))
