"""The archivist: leaves word of where the records are, for whoever asks when the system does not run."""

import errno
import pathlib

from retinue.cp.archive import NAME, Archive, read_archive
from retinue.cp.directory import Directory
from retinue.cp.syslog import WARNING, Syslog


class Archivist:
    """Writes the note of a run. It is a convenience: without it the system is as good."""

    def __init__(self, state: pathlib.Path, runtime: pathlib.Path | None, syslog: Syslog) -> None:
        self._state = state
        self._runtime = "" if runtime is None else str(runtime)
        self._syslog = syslog
        self._told = False

    def note(self, topology: Directory, since: float) -> None:
        """Write down what is in a topology with an entry for each machine, in a run that began then."""
        last = read_archive(self._state)
        archive = Archive.of(topology, since, self._runtime).after(last, self._state)
        if archive == last:
            return
        try:
            archive.write(self._state)
        except OSError as exc:
            self._tell(exc)
        else:
            self._told = False

    def _tell(self, exc: OSError) -> None:
        if self._told:
            return
        self._told = True
        path = self._state / NAME
        full = exc.errno in {errno.ENOSPC, errno.EDQUOT}
        cure = "make room there" if full else f"look at it: ls -ld {exc.filename or path}"
        what = "retinue logs may not find the records while the system is down"
        self._syslog.write(WARNING, f"{path} cannot be written ({exc.strerror}), and {what}; {cure}")
