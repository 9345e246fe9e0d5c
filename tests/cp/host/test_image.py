"""What a saved system holds ready."""

import subprocess
import sys

WARM_UP = """
import sys

for name in {missing!r}:
    sys.modules[name] = None
from retinue.cp.host import image, saved
image.warm_up(saved._HOUSE, [], "retinue.svm.boot:boot")
print(*sorted(name for name in sys.modules if name.startswith("retinue.pipes")))
"""


def warmed(*missing: str) -> list[str]:
    """The modules of the pipes in a process that was warmed up, and has none of some other modules."""
    done = subprocess.run(
        [sys.executable, "-c", WARM_UP.format(missing=missing)], capture_output=True, text=True, check=False, timeout=60
    )
    assert done.returncode == 0, done.stderr
    return done.stdout.split()


def test_nothing_is_needed_that_only_tests_need() -> None:
    """Whoever installs the product has no pytest, and machines do not carry it if he has."""
    modules = warmed("pytest", "pytest_trio", "hypothesis", "atheris", "_pytest")
    assert "retinue.pipes.path" in modules
    assert "retinue.pipes.testing" not in modules
