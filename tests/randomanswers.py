"""Made-up answers of a classifier, for tests of metrics and figures."""

import numpy as np
from numpy.typing import NDArray


def random_answers(num_samples: int, num_classes: int) -> tuple[NDArray[np.float32], NDArray[np.int64]]:
    generator = np.random.default_rng(0)
    labels = np.concatenate([np.arange(num_classes), generator.integers(0, num_classes, num_samples - num_classes)])
    logits = generator.normal(size=(num_samples, num_classes)).astype(np.float32)
    logits[np.arange(num_samples), labels] += 1.5
    return logits, labels


def logits_of(predicted: list[int], num_classes: int) -> NDArray[np.float32]:
    return (np.eye(num_classes, dtype=np.float32) * 5)[predicted]


def names(num_classes: int) -> list[str]:
    return [f"breed {i}" for i in range(num_classes)]
