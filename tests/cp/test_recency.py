"""Which chunks of a segment go first."""

import itertools
import random

from hypothesis import given
from hypothesis import strategies as st

from retinue.cp.host.file_pages import PAGE
from retinue.cp.recency import MOST_CHUNKS, Recency, chunk_of, coldest, runs


def every(chunks: set[int], of: int) -> bytes:
    return bytes(chunk in chunks for chunk in range(of))


def oldest(recency: Recency, resident: set[int], touched: set[int] | None, of: int = 8) -> list[int]:
    """A round; who goes first, one by one, and nobody is put out."""
    recency.look(every(resident, of), None if touched is None else every(touched, of))
    return [next_one(recency) for _ in resident]


def next_one(recency: Recency) -> int:
    (chosen,) = coldest([recency], PAGE)
    assert chosen.count(1) == 1
    return chosen.index(1)


def test_a_segment_has_a_bounded_number_of_chunks() -> None:
    assert chunk_of(1) == chunk_of(PAGE * MOST_CHUNKS) == PAGE
    assert chunk_of(PAGE * MOST_CHUNKS + 1) == 2 * PAGE
    assert chunk_of(1 << 47) * MOST_CHUNKS == 1 << 47


def test_who_did_not_come_back_goes_before_who_did() -> None:
    recency = Recency(8 * PAGE)
    oldest(recency, {0, 1, 2, 3}, {0, 1, 2, 3})
    assert set(oldest(recency, {0, 1, 2, 3}, {1, 3})[:2]) == {0, 2}
    assert oldest(recency, {0, 1, 2, 3}, {0})[0] == 2


def test_what_was_used_often_outlives_what_was_used_once_and_is_forgotten_in_time() -> None:
    recency = Recency(8 * PAGE)
    for _ in range(10):
        oldest(recency, {0}, {0})
    oldest(recency, {0, 1}, {0, 1})
    assert oldest(recency, {0, 1}, set()) == [1, 0]
    for _ in range(100):
        oldest(recency, {0, 1}, set())
    for _ in range(5):
        oldest(recency, {0, 1}, {1})
    assert oldest(recency, {0, 1}, {1}) == [0, 1]


def test_what_came_back_counts_more_than_what_was_touched() -> None:
    recency = Recency(8 * PAGE)
    oldest(recency, {0, 1}, {0, 1})
    assert recency.dropped(every({0}, 8), every({1}, 8)) == bytes(8)
    assert oldest(recency, {0, 1}, {0, 1}) == [1, 0]


def test_what_could_not_be_dropped_has_not_come_back() -> None:
    recency = Recency(8 * PAGE)
    oldest(recency, {0, 1}, {0, 1})
    assert recency.dropped(every({0}, 8), every({0, 1}, 8)) == every({0}, 8)
    assert recency.dropped(every({1}, 8), every({0}, 8)) == bytes(8)
    assert oldest(recency, {0, 1}, {0, 1}) == [0, 1]


def test_without_a_look_at_the_machine_the_lot_decides() -> None:
    recency = Recency(8 * PAGE)
    everybody = set(range(8))
    orders = {tuple(oldest(recency, everybody, None)) for _ in range(50)}
    assert len(orders) > 10
    assert all(set(order) == everybody for order in orders)


def test_a_chunk_of_several_pages_is_there_when_one_of_them_is() -> None:
    recency = Recency(2 * PAGE * MOST_CHUNKS)
    assert recency.chunk == 2 * PAGE
    pages = bytearray(2 * MOST_CHUNKS)
    pages[5] = pages[9] = pages[8] = 1
    recency.look(bytes(pages), bytes(2 * MOST_CHUNKS))
    assert recency.left == 4 * PAGE
    (chosen,) = coldest([recency], recency.left)
    assert recency.ranges(chosen) == [(4 * PAGE, 2 * PAGE), (8 * PAGE, 2 * PAGE)]
    assert recency.left == 0


@given(
    st.lists(st.lists(st.tuples(st.booleans(), st.booleans()), min_size=1, max_size=30), min_size=1, max_size=3),
    st.integers(0, 100),
)
def test_so_many_go_as_are_wanted_and_none_that_has_less_claim_stays(
    pages: list[list[tuple[bool, bool]]], most: int
) -> None:
    """Of several segments together, and each but once."""
    several = [Recency(len(each) * PAGE) for each in pages]
    for recency, each in zip(several, pages, strict=True):
        recency.look(bytes(here for here, _ in each), bytes(here and touched for here, touched in each))
        recency.look(bytes(here for here, _ in each), bytes(here and touched for here, touched in each))
    there = sum(here for each in pages for here, _ in each)
    scores = sorted(score for recency in several for score in recency.scores())
    assert [each.count(1) for each in coldest(several, most * PAGE, keep=True)] == [
        each.count(1) for each in coldest(several, most * PAGE)
    ]
    rest = sorted(score for recency in several for score in recency.scores())
    assert rest == scores[min(most, there) :]


@given(st.sets(st.integers(0, 63)), st.integers(1, 64 * PAGE))
def test_runs_are_the_chunks_in_order_and_end_where_the_segment_does(chunks: set[int], size: int) -> None:
    chunks = {chunk for chunk in chunks if chunk * PAGE < size}
    found = list(runs(every(chunks, 64), PAGE, size))
    covered = {at for offset, length in found for at in range(offset // PAGE, -(-(offset + length) // PAGE))}
    assert covered == chunks
    assert all(offset % PAGE == 0 and length > 0 and offset + length <= size for offset, length in found)
    assert all(first[0] + first[1] < second[0] for first, second in itertools.pairwise(found))


def faults(wanted: list[int], of: int, room: int, around: int = 16) -> int:
    """Of a reader with room for so many pages, who stands in for the kernel: a fault reads one page and brings all its
    neighbours into the tables that are in real storage; what is touched after a round is not dropped before the next.
    """
    recency, resident, tables = Recency(of * PAGE), bytearray(of), bytearray(of)
    total = 0
    for page in wanted:
        if not tables[page]:
            total += not resident[page]
            resident[page] = 1
            first = page - page % around
            tables[first : first + around] = resident[first : first + around]
        if resident.count(1) <= room:
            continue
        if recency.left < room * PAGE // 2:
            recency.look(bytes(resident), bytes(tables))
            tables[:] = bytes(of)
        (chosen,) = coldest([recency], room // 16 * PAGE)
        for at in (at for at in range(of) if chosen[at] and not tables[at]):
            resident[at] = 0
        recency.dropped(chosen, bytes(resident))
    return total


def least_recently_used(wanted: list[int], room: int) -> int:
    """Faults of a reader of whom every single access is known."""
    total, order = 0, dict[int, None]()
    for page in wanted:
        total += page not in order
        order.pop(page, None)
        order[page] = None
        if len(order) > room:
            del order[next(iter(order))]
    return total


def test_skewed_access_faults_hardly_more_than_if_every_access_was_known() -> None:
    """Zipf's law, room for an eighth of the pages; by chunks of sixteen pages it was a sixth more than that."""
    of, room = 2048, 256
    numbers = random.Random(1)
    places = numbers.sample(range(of), of)
    wanted = [places[rank] for rank in numbers.choices(range(of), [1 / (rank + 1) for rank in range(of)], k=12_000)]
    found, known = faults(wanted, of, room), least_recently_used(wanted, room)
    assert found < 1.05 * known, (found, known)
