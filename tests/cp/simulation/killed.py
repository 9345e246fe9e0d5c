"""Control programs that are killed in the process of their test."""

from typing import Final

import pytest

# What a control program that is killed in this process has open, the collector closes.
control_programs_are_killed: Final = pytest.mark.filterwarnings(
    "ignore:Exception ignored in. <socket:pytest.PytestUnraisableExceptionWarning"
)
