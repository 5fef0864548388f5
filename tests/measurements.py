"""Planted measurements: what a server with known mistakes and known latencies would have shown."""

from collections.abc import Mapping, Sequence

import numpy as np

from dogbreed_ml.measurement import Answer, Measurement, Timing

BREEDS = ("Akita", "Beagle", "Boxer", "Collie", "Pug")
PER_BREED = 40
LABELS = tuple(np.repeat(BREEDS, PER_BREED).tolist())


def plant(
    *,
    recalls: Mapping[str, float] | float = 0.8,
    factor: float = 1.0,
    labels: Sequence[str] = LABELS,
    seed: int = 0,
    num_rounds: int = 5,
) -> Measurement:
    """Recognises this share of each breed, the same images for the same `seed`; latencies of 10 ms times `factor`."""
    rng = np.random.default_rng(seed)
    breeds = sorted(set(labels))
    answers: list[Answer] = []
    for breed in breeds:
        share = recalls if isinstance(recalls, float) else recalls[breed]
        num_images = sum(label == breed for label in labels)
        wrong = breeds[(breeds.index(breed) + 1) % len(breeds)]
        # From one order of the images, so that a higher recall adds to a lower one.
        right = rng.permutation(num_images) < round(share * num_images)
        for is_right in right:
            first, second = (breed, wrong) if is_right else (wrong, breed)
            answers.append(Answer(((first, 0.8), (second, 0.2))))
    drift = np.random.default_rng(99).uniform(0.9, 1.2, num_rounds)
    jitter = np.random.default_rng(seed + 1000).lognormal(0.0, 0.2, (num_rounds, 40))
    latencies = 10 * factor * drift[:, None] * jitter
    return Measurement(
        answers=tuple(answers),
        timing=Timing(latencies, 100 / factor / drift),
        cold_start_s=3.0 * factor,
        size_bytes=94 * 2**20,
        backend="openvino-bf16",
    )
