"""A folder of breeds to evaluate on: every image of it, labelled as a model's classes are."""

import logging
from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path

from dogbreed_ml.data.listing import list_images
from dogbreed_ml.data.scan import scan_images
from dogbreed_ml.data.sources import scan_path
from dogbreed_ml.data.splits import BadImage, Sample, Split, Splits, compute_fingerprint
from dogbreed_ml.errors import DataError
from dogbreed_ml.progress import NO_PROGRESS, Progress

logger = logging.getLogger(__name__)


def load_folder(folder: Path, classes: Sequence[str], *, project_dir: Path, progress: Progress = NO_PROGRESS) -> Splits:
    """All images of a folder of breeds as the test split, labels by `classes`; train and valid are empty.

    Images that cannot be read are left out and listed. Raises DataError for a breed that `classes` lacks.
    """
    images = list_images(folder)
    labels = _labels(sorted({image.breed for image in images}), classes, whose=str(folder))
    findings = scan_images(images, scan_path(folder, project_dir), progress=progress)
    bad = tuple(
        BadImage(image.relative, finding.reason)
        for image, finding in zip(images, findings, strict=True)
        if finding.reason is not None
    )
    samples = [
        Sample(image.path, labels[image.breed], finding.digest)
        for image, finding in zip(images, findings, strict=True)
        if finding.digest is not None
    ]
    if not samples:
        raise DataError(f"{folder} must hold images that can be read, one folder per breed; it holds none.")
    if bad:
        logger.warning("%s: %d of %d images cannot be read and are left out", folder, len(bad), len(images))
    test = Split("test", tuple(sorted(samples, key=lambda sample: (sample.label, sample.digest))))
    return Splits(
        classes=tuple(classes),
        train=Split("train", ()),
        valid=Split("valid", ()),
        test=test,
        fingerprint=compute_fingerprint(classes, [test]),
        source=f"folder {folder.name}",
        bad_images=bad,
    )


def relabelled(splits: Splits, classes: Sequence[str]) -> Splits:
    """The same images with the labels of a model's classes; raises DataError for a breed that `classes` lacks."""
    labels = _labels(splits.classes, classes, whose=splits.source)

    def renumbered(split: Split) -> Split:
        samples = (replace(sample, label=labels[splits.classes[sample.label]]) for sample in split.samples)
        return replace(split, samples=tuple(samples))

    return replace(
        splits,
        classes=tuple(classes),
        train=renumbered(splits.train),
        valid=renumbered(splits.valid),
        test=renumbered(splits.test),
    )


def _labels(breeds: Sequence[str], classes: Sequence[str], *, whose: str) -> dict[str, int]:
    """Label by breed, without regard to case."""
    known = {name.casefold(): label for label, name in enumerate(classes)}
    unknown = [breed for breed in breeds if breed.casefold() not in known]
    if unknown:
        some = ", ".join(map(repr, unknown[:5])) + (f" and {len(unknown) - 5} more" if len(unknown) > 5 else "")
        raise DataError(
            f"{whose} has breeds that the model does not know: {some}; it knows {', '.join(classes[:10])}"
            f"{', ...' if len(classes) > 10 else ''}. Rename or remove these folders, or choose another model."
        )
    return {breed: known[breed.casefold()] for breed in breeds}
