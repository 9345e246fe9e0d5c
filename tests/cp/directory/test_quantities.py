"""Sizes and times, read from a file and written as they would stand there."""

from hypothesis import example, given
from hypothesis import strategies as st

from retinue.cp.directory.positions import Positions
from retinue.cp.directory.quantities import as_duration, as_size, read_duration, read_size
from retinue.cp.directory.table import Mistakes, Table


def table(value: object) -> Table:
    return Table(Mistakes("a.toml", Positions()), (), {"key": value}, None)


@given(st.integers(0, 10**6), st.sampled_from(["ms", "s", "m", "h"]))
@example(0, "h")
def test_time_is_written_as_it_is_read(number: int, unit: str) -> None:
    seconds = read_duration(table(f"{number}{unit}"), "key")
    assert seconds is not None
    assert read_duration(table(as_duration(seconds)), "key") == seconds


def test_time_is_written_in_the_largest_unit_that_fits() -> None:
    written = [as_duration(seconds) for seconds in (0.0, 0.001, 0.1, 1.5, 60.0, 90.0, 3600.0, 5400.0, 86_400.0)]
    assert written == ["0s", "1ms", "100ms", "1500ms", "1m", "90s", "1h", "90m", "24h"]


@given(st.integers(1, 10**6), st.sampled_from(["K", "M", "G"]))
def test_size_is_written_as_it_is_read(number: int, unit: str) -> None:
    size = read_size(table(f"{number}{unit}"), "key")
    assert size is not None
    assert read_size(table(as_size(size)), "key") == size


def test_fraction_of_a_second_is_told_in_milliseconds() -> None:
    for value, meant in (("0.1s", "100ms"), (".25 sec", "250ms"), ("2.5s", "2500ms"), ("1.005S", "1005ms")):
        wrong = table(value)
        assert read_duration(wrong, "key") is None
        assert [error.hint for error in wrong.mistakes.found] == [f'did you mean "{meant}"?']
