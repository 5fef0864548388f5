"""What a data set is once it has been fetched, checked and split."""

import hashlib
from collections import Counter
from collections.abc import Iterable
from dataclasses import dataclass
from pathlib import Path
from typing import Any, get_args

import numpy as np
from numpy.typing import NDArray

from dogbreed_ml.config import SplitName

SPLIT_NAMES: tuple[SplitName, ...] = get_args(SplitName)


@dataclass(frozen=True)
class Sample:
    """One readable image."""

    path: Path
    label: int
    """Index into Splits.classes."""
    digest: str
    """sha256 of the file's bytes, in hex."""


@dataclass(frozen=True)
class BadImage:
    """One image that is left out, and why."""

    path: str
    """Relative to the source's root, with forward slashes."""
    reason: str
    """`kind` or `kind: details`."""


@dataclass(frozen=True)
class Split:
    """One split's images, ordered by label and then by digest."""

    name: SplitName
    samples: tuple[Sample, ...]

    def __len__(self) -> int:
        return len(self.samples)

    @property
    def labels(self) -> NDArray[np.int64]:
        """Labels (n,) in [0, number of breeds)."""
        return np.fromiter((sample.label for sample in self.samples), dtype=np.int64, count=len(self.samples))


@dataclass(frozen=True)
class Splits:
    """A data set: breeds, three disjoint splits, and what was left out."""

    classes: tuple[str, ...]
    """Cleaned breed names, sorted without regard to case."""
    train: Split
    valid: Split
    test: Split
    fingerprint: str
    """16 hex digits over breed names, contents, labels and split membership: no paths, no times."""
    source: str
    """For people: a folder, a URL, s3://..., or `synthetic 8x50 seed 0`."""
    bad_images: tuple[BadImage, ...] = ()
    num_duplicates: int = 0
    """Files whose bytes another file of the same breed has too."""

    def split(self, name: SplitName) -> Split:
        return {"train": self.train, "valid": self.valid, "test": self.test}[name]


def compute_fingerprint(classes: Iterable[str], splits: Iterable[Split]) -> str:
    """16 hex digits; equal fingerprints mean equal images, labels and order, whatever the files are called."""
    content = hashlib.sha256()
    for name in classes:
        content.update(f"class {name}\n".encode())
    for split in splits:
        for sample in split.samples:
            content.update(f"{split.name} {sample.label} {sample.digest}\n".encode())
    return content.hexdigest()[:16]


def describe(splits: Splits) -> dict[str, Any]:
    """What a person asks of a data set, as plain values ready for JSON."""
    per_split = {name: np.bincount(splits.split(name).labels, minlength=len(splits.classes)) for name in SPLIT_NAMES}
    totals = sum(per_split.values(), start=np.zeros(len(splits.classes), dtype=np.int64))
    smallest, largest = int(totals.argmin()), int(totals.argmax())
    return {
        "source": splits.source,
        "fingerprint": splits.fingerprint,
        "num_breeds": len(splits.classes),
        "num_images": {name: len(splits.split(name)) for name in SPLIT_NAMES},
        "smallest_breed": {"breed": splits.classes[smallest], "num_images": int(totals[smallest])},
        "largest_breed": {"breed": splits.classes[largest], "num_images": int(totals[largest])},
        "num_bad_images": len(splits.bad_images),
        "bad_images": dict(Counter(bad.reason.partition(":")[0] for bad in splits.bad_images).most_common()),
        "num_duplicates": splits.num_duplicates,
        "breeds": {
            breed: {name: int(per_split[name][label]) for name in SPLIT_NAMES}
            for label, breed in enumerate(splits.classes)
        },
    }


def quarantine_rows(splits: Splits) -> list[dict[str, str]]:
    """The rows of quarantine.csv, ordered by path: columns path and reason."""
    return [{"path": bad.path, "reason": bad.reason} for bad in sorted(splits.bad_images, key=lambda bad: bad.path)]
