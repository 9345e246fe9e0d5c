"""Which running system a command is about. Needs no path: finding none must be quick."""

import time

from retinue.cp import runtime
from retinue.cp.cli.command import Selection
from retinue.cp.cli.errors import CannotCreate, NoSystem, SeveralSystems
from retinue.cp.places import FolderError, find_places


def find_system(chosen: Selection) -> runtime.Running:
    """The running system that the options mean. Raises NoSystem or SeveralSystems."""
    name = chosen.system
    places = find_places(chosen.state)
    try:
        running = runtime.running_systems(places)
    except FolderError as error:
        raise CannotCreate(str(error), error.cure) from error
    names = [each.system for each in running]
    for each in running:
        if name is not None and each.system == name:
            return each
    if name is not None or not running:
        try:
            end = runtime.last_end(places, name)
        except ValueError:  # no name that a system could have
            end = None
        last = None if end is None else describe_end(end, f"in {places.state}" if places.single else f"of {end.system}")
        raise NoSystem(name, names, places.runtime, last)
    if len(running) > 1:
        raise SeveralSystems(names)
    return running[0]


def describe_end(end: runtime.End, what: str) -> str:
    """The last run in one sentence; `what` says of which system."""
    when = time.strftime("%Y-%m-%d %H:%M:%S", time.localtime(end.time))
    how = {
        "down": "it was stopped in order",
        "terminated": "it was stopped in order, by a signal",
        "console-lost": "it was stopped in order, when its terminal was gone",
        "finished": "it had nothing left to run",
        "cp-died": "its control program died",
        "nucleus-died": "its nucleus was killed",
        "saved-system-died": "its saved system died",
        "failed": "it failed",
    }.get(end.how, end.how)
    return f"the last run {what} ended at {when}: {how}" + (f" ({end.text})" if end.text else "")
