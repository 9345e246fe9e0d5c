"""Which chunks of a segment go first."""

import itertools
import random

from hypothesis import given
from hypothesis import strategies as st

from retinue.cp.recency import CHUNK, MOST_CHUNKS, Recency, chunk_of, runs

PAGES = 4


def every_page(chunks: set[int], of: int) -> bytes:
    return b"".join((b"\1" if chunk in chunks else b"\0") * PAGES for chunk in range(of))


def oldest(recency: Recency, resident: set[int], touched: set[int] | None, of: int = 8) -> list[int]:
    seen = None if touched is None else every_page(touched, of)
    counts = recency.look(every_page(resident, of), seen)
    return [chunk for _, _, chunk in recency.oldest(counts)]


def test_a_segment_has_a_bounded_number_of_chunks() -> None:
    assert chunk_of(1) == chunk_of(CHUNK * MOST_CHUNKS) == CHUNK
    assert chunk_of(CHUNK * MOST_CHUNKS + 1) == 2 * CHUNK
    assert chunk_of(1 << 47) * MOST_CHUNKS == 1 << 47


def test_who_did_not_come_back_goes_before_who_did() -> None:
    recency = Recency(PAGES)
    oldest(recency, {0, 1, 2, 3}, {0, 1, 2, 3})
    assert oldest(recency, {0, 1, 2, 3}, {1, 3}) == [0, 2, 1, 3]
    assert oldest(recency, {0, 1, 2, 3}, {0}) == [2, 1, 3, 0]


def test_what_was_used_often_outlives_what_was_used_once_and_is_forgotten_in_time() -> None:
    recency = Recency(PAGES)
    for _ in range(5):
        oldest(recency, {0}, {0})
    oldest(recency, {0, 1}, {0, 1})
    assert oldest(recency, {0, 1}, set()) == [1, 0]
    for _ in range(16):
        oldest(recency, {0, 1}, set())
    assert oldest(recency, {0, 1}, {1}) == [0, 1]


def test_without_a_look_at_the_machine_the_lot_decides() -> None:
    recency = Recency(PAGES)
    everybody = set(range(8))
    orders = {tuple(oldest(recency, everybody, None)) for _ in range(50)}
    assert len(orders) > 10
    assert all(set(order) == everybody for order in orders)


def test_what_is_not_in_real_storage_is_no_victim_and_one_page_is_enough() -> None:
    recency = Recency(PAGES)
    counts = recency.look(b"\0\0\1\0" + b"\0" * 4 + b"\1" * 3, b"\0\0\1\0" + b"\0" * 4 + b"\0" * 3)
    assert counts == [1, 0, 3]
    assert [chunk for _, _, chunk in recency.oldest(counts)] == [2, 0]


@given(st.sets(st.integers(0, 63)), st.integers(1, 64 * CHUNK))
def test_runs_are_the_chunks_in_order_and_end_where_the_segment_does(chunks: set[int], size: int) -> None:
    chunks = {chunk for chunk in chunks if chunk * CHUNK < size}
    found = list(runs(list(chunks), CHUNK, size))
    covered = {at for offset, length in found for at in range(offset // CHUNK, -(-(offset + length) // CHUNK))}
    assert covered == chunks
    assert all(offset % CHUNK == 0 and length > 0 and offset + length <= size for offset, length in found)
    assert all(first[0] + first[1] < second[0] for first, second in itertools.pairwise(found))


def test_skewed_access_faults_far_less_than_if_victims_were_drawn_by_lot() -> None:
    """Room for a quarter of the chunks, a round after every 64 accesses, Zipf of exponent 1; the best would be 0.6."""
    of, room = 256, 64
    numbers = random.Random(1)
    wanted = numbers.choices(range(of), [1 / (rank + 1) for rank in range(of)], k=8000)

    def faults(*, by_lot: bool) -> int:
        recency, resident, touched, total = Recency(PAGES), set[int](), set[int](), 0
        for at, chunk in enumerate(wanted):
            total += chunk not in resident
            resident.add(chunk)
            touched.add(chunk)
            if at % 64 == 63:
                order = oldest(recency, resident, touched, of)
                touched.clear()
                if by_lot:
                    numbers.shuffle(order)
                resident -= set(order[: max(0, len(resident) - room)])
        return total

    assert faults(by_lot=False) < 0.8 * faults(by_lot=True)
