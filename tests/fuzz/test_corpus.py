"""Every input that is kept goes through its target, and some thousand more that were made of them."""

import random
from pathlib import Path
from typing import Final

import pytest
from tests.fuzz.seeds import SEEDS
from tests.fuzz.targets import TARGETS, Target

# How many mutated inputs each target gets: a path and a memfd take milliseconds, a packet next to nothing.
MUTATED: Final = {"wire": 3000, "session": 1500, "bulk": 250, "path": 250}
# Kept small, so that a reader sees what they are about, and a clone stays light.
MOST_FILES: Final = 200
MOST_BYTES: Final = 4096


def _kept(target: Target) -> list[Path]:
    folders = (target.corpus, target.regressions)
    return sorted(file for folder in folders if folder.is_dir() for file in folder.iterdir())


FILES: Final = [(target, file) for target in TARGETS.values() for file in _kept(target)]


@pytest.mark.parametrize(("target", "file"), FILES, ids=[f"{target.name}-{file.name}" for target, file in FILES])
def test_kept_input_finds_nothing(target: Target, file: Path) -> None:
    """Neither a seed nor what has found a bug once finds one."""
    target.run(file.read_bytes())


@pytest.mark.parametrize("name", TARGETS)
def test_mutated_inputs_find_nothing(name: str) -> None:
    """Inputs made of the seeds by changing, cutting and joining them find no bug; the same ones every time."""
    target = TARGETS[name]
    seeds = list(SEEDS[name]().values())
    rng = random.Random(f"retinue {name}")
    for _ in range(MUTATED[name]):
        data = mutated(rng, seeds)
        try:
            target.run(data)
        except BaseException as exc:
            exc.add_note(f"the input: bytes.fromhex({data.hex()!r})")
            raise


def mutated(rng: random.Random, seeds: list[bytes]) -> bytes:
    """One or two seeds with some bytes changed."""
    data = bytearray(rng.choice(seeds))
    if rng.random() < 0.3:
        data[rng.randint(0, len(data)) :] = rng.choice(seeds)
    for _ in range(rng.randint(1, 6)):
        place = rng.randint(0, len(data))
        match rng.randrange(4):
            case 0:
                data[place : place + 1] = rng.randbytes(1)
            case 1:
                data[place:place] = rng.randbytes(rng.randint(1, 8))
            case 2:
                del data[place : place + rng.randint(1, 8)]
            case _:
                data[place:place] = data[place : place + rng.randint(1, 32)]
    return bytes(data)


def test_seeds_are_what_their_module_makes() -> None:
    """The corpus in the repository has every seed as it is made now: python -m tests.fuzz.seeds writes them."""
    for name, seeds in SEEDS.items():
        made = seeds()
        assert {title: (TARGETS[name].corpus / title).read_bytes() for title in made} == made


def test_kept_inputs_are_few_and_small() -> None:
    """They are there to be read and to start from, not to be the fuzzer's memory."""
    assert len(FILES) < MOST_FILES
    assert [file.name for _, file in FILES if file.stat().st_size > MOST_BYTES] == []
