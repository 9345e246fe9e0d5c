"""Which test files take long, measured: they are run first, so that the end of a run is made of short ones.

And which of them are run by one worker, because they share what takes long to start.
"""

import pathlib
from typing import Final

TESTS: Final = pathlib.Path(__file__).resolve().parent
# Seconds and more, the longest first. A file that is not here comes later, which is right for most.
LONGEST: Final = (
    "cp/cli/test_operating.py",
    "cp/cli/test_tap_command.py",
    "cp/host/test_seal.py",
    "cp/test_log_policy_live.py",
    "cp/test_rebind.py",
    "cp/test_outliving.py",
    "cp/cli/test_end_to_end.py",
    "cp/host/test_nucleus.py",
    "test_benchmarks.py",
    "escapes/test_hostile_machine.py",
    "cp/pager/test_real_storage.py",
    "examples/test_examples.py",
    "escapes/test_gallery.py",
    "services/test_forward_live.py",
    "services/test_forward_unix_live.py",
    "cp/cli/test_logs.py",
    "cp/host/test_takeover.py",
    "examples/test_outside.py",
    "cp/simulation/test_cold_starts.py",
    "cp/test_journal.py",
    "cp/test_watch.py",
    "services/test_tcpip_sealed.py",
    "cp/host/test_levels.py",
    "cp/test_resting.py",
    "svm/test_native.py",
    "services/test_resumption_live.py",
    "pipes/test_wire.py",
    "escapes/test_bombs.py",
    "services/test_resumption.py",
    "cp/test_segments_real.py",
    "services/test_syslog_crashes.py",
    "svm/test_wsgi_system.py",
    "cp/test_secrets.py",
    "escapes/test_channels.py",
    "cp/test_campaign.py",
    "cp/simulation/test_pager.py",
    "cp/simulation/test_pacing.py",
    "cp/test_hand_overs.py",
    "services/test_syslog_query.py",
    "cp/host/test_cgroups.py",
    "escapes/test_control.py",
    "cp/cli/test_doctor.py",
    "services/test_closing_live.py",
    "cp/simulation/test_policy.py",
    "test_testing.py",
    "cp/test_disks.py",
    "test_layers.py",
    "cp/test_changes.py",
    "cp/test_spill.py",
    "services/test_forward.py",
    "pipes/test_transport.py",
    "cp/test_groups.py",
    "cp/test_cp_syslog.py",
    "svm/test_drain.py",
    "test_layout.py",
    "cp/test_segments.py",
    "cp/directory/test_positions.py",
)
# The prisons of tests/escapes: three systems for all of these.
PRISONS: Final = frozenset(
    f"tests/escapes/test_{name}.py" for name in ("bombs", "channels", "control", "gallery", "rungs")
)
# Those that give the host swap, and those that look whether it has any: one after another.
SWAPPING: Final = frozenset(
    f"tests/{name}.py"
    for name in (
        "cp/host/test_figures",
        "cp/host/test_reclaim",
        "cp/host/test_swap",
        "cp/pager/test_real_storage",
        "cp/test_resting",
        "examples/test_overcommit",
    )
)
_PLACES: Final = {TESTS / name: place for place, name in enumerate(LONGEST)}


def place_of(file: pathlib.Path) -> int:
    """Its place among the files of a run."""
    return _PLACES.get(file, len(LONGEST))


def worker_of(nodeid: str) -> str:
    """Tests for which this is the same are one worker's: those of a file, and of files that share more."""
    file = nodeid.split("::", 1)[0]
    return "prisons" if file in PRISONS else "swapping" if file in SWAPPING else file
