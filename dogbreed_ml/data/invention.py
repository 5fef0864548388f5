"""Breeds that do not exist, invented by seed; imports nothing that a serving container lacks."""

from dataclasses import replace

import numpy as np

from dogbreed_ml.data.drawing import EARS, PATTERNS, TAILS, Breed, Colour

# Another number, another data set: raise it with every change to what is drawn.
EDITION = 1

_COATS: tuple[Colour, ...] = (
    (38, 34, 34), (92, 58, 38), (176, 128, 78), (150, 76, 40), (222, 200, 164), (132, 132, 138), (232, 230, 226),
    (84, 92, 106),
)  # fmt: skip
_ONSETS = ("b", "br", "d", "dr", "f", "g", "h", "k", "kl", "l", "m", "n", "p", "r", "s", "sk", "t", "tr", "v", "w", "z")
_VOWELS = ("a", "e", "i", "o", "u", "ai", "ei", "au")
_CODAS = ("", "l", "n", "r", "s", "m", "ck", "rn", "nd", "x")
_KINDS = ("hound", "terrier", "spaniel", "shepherd", "pinscher", "mastiff", "spitz", "pointer", "griffon", "retriever")


def invent_breeds(num_breeds: int, *, seed: int) -> tuple[Breed, ...]:
    """Breeds with different names; every third is a near twin of the one before. A prefix of a longer list."""
    breeds: list[Breed] = []
    names: set[str] = set()
    for index in range(num_breeds):
        rng = np.random.default_rng([EDITION, seed, index])
        name = _invent_name(rng)
        while name in names:
            name = _invent_name(rng)
        names.add(name)
        breeds.append(_twin(breeds[-1], name, rng) if index % 3 == 2 else _invent_breed(name, index, rng))
    return tuple(breeds)


def _invent_name(rng: np.random.Generator) -> str:
    syllables = [
        f"{_ONSETS[rng.integers(len(_ONSETS))]}{_VOWELS[rng.integers(len(_VOWELS))]}{_CODAS[rng.integers(len(_CODAS))]}"
        for _ in range(2)
    ]
    return f"{''.join(syllables).capitalize()} {_KINDS[rng.integers(len(_KINDS))]}"


def _invent_breed(name: str, index: int, rng: np.random.Generator) -> Breed:
    coat = index * 5 % len(_COATS)
    marking = (coat + 1 + rng.integers(len(_COATS) - 1)) % len(_COATS)
    return Breed(
        name=name,
        coat=_COATS[coat],
        marking=_COATS[marking],
        pattern=PATTERNS[(index * 3 + index // 8) % len(PATTERNS)],
        ear=EARS[rng.integers(len(EARS))],
        tail=TAILS[rng.integers(len(TAILS))],
        leg=rng.uniform(0.45, 1.15),
        length=rng.uniform(0.8, 1.35),
        bulk=rng.uniform(0.42, 0.7),
        head=rng.uniform(0.3, 0.45),
        muzzle=rng.uniform(0.15, 0.7),
        shag=float(rng.choice([0.0, 0.0, 0.06, 0.14])),
    )


def _twin(model: Breed, name: str, rng: np.random.Generator) -> Breed:
    """Differs from its model in ear, muzzle and leg, as real look-alikes do, and not in colour."""
    other_ears = [ear for ear in EARS if ear != model.ear]
    return replace(
        model,
        name=name,
        ear=other_ears[rng.integers(len(other_ears))],
        muzzle=0.85 - model.muzzle,
        leg=1.6 - model.leg,
    )
