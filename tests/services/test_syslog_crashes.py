"""A syslog machine that dies, whose disk is full, whose machines die: nothing is lost, and nothing comes twice."""

import json
import pathlib
import subprocess
import sys

PROGRAM = pathlib.Path(__file__).with_name("crashed_syslog.py")
# Of each kind two: hundreds of them are for benchmarks/syslog.py --crashes.
ROUNDS = 6


def test_what_befalls_a_syslog_machine(tmp_path: pathlib.Path) -> None:
    """Every record is in the store that anybody has logged, once and in order; what is not is counted by a gap."""
    command = [sys.executable, str(PROGRAM), str(tmp_path / "system"), str(ROUNDS), "1"]
    done = subprocess.run(command, capture_output=True, text=True, timeout=120, check=False)
    assert done.returncode == 0, done.stderr
    found = json.loads(done.stdout)
    assert found["done"] == {"syslog": 2, "disk": 2, "victim": 2}
    assert found["down"] == 0
    assert found["in order"]
    assert found["generations"] == 1 + 3
    assert found["records"] > 1000
    lost = found["lost"]
    assert found["steady stored"] + lost.get("STEADY", 0) == found["steady said"] > 0
    assert found["missing"] == {name: lost.get(name, 0) for name in ("STEADY", "VICTIM")}
    assert found["numbers not stored"] == 0
    # One complaint for each time that the disk takes nothing, however many batches it refuses.
    assert 1 <= found["complaints"] <= 2
