"""splits.json: the caller's checked and split data set, so that a job trains on just that and scans nothing."""

import json
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from dogbreed_ml.data.splits import SPLIT_NAMES, BadImage, Sample, Split, Splits
from dogbreed_ml.errors import DataError

FILE_NAME = "splits.json"
FORMAT_VERSION = 1


def image_name(sample: Sample) -> str:
    """An image's name below images/ in S3 and in a channel: by content, so that each is stored once."""
    return f"{sample.digest[:2]}/{sample.digest}{sample.path.suffix.lower()}"


def render_splits(splits: Splits) -> str:
    """The file's text; equal data sets give equal text, wherever their files lie."""
    document = {
        "format_version": FORMAT_VERSION,
        "source": splits.source,
        "fingerprint": splits.fingerprint,
        "classes": splits.classes,
        "splits": {
            name: [[image_name(each), each.label, each.digest] for each in splits.split(name).samples]
            for name in SPLIT_NAMES
        },
        "bad_images": [[each.path, each.reason] for each in splits.bad_images],
        "num_duplicates": splits.num_duplicates,
    }
    return json.dumps(document, sort_keys=True)


def parse_splits(text: str, channels: Mapping[str, Path]) -> Splits:
    """The data set with its images in the channels train, valid and test; raises DataError."""
    document: dict[str, Any] = json.loads(text)
    if document.get("format_version") != FORMAT_VERSION:
        found = document.get("format_version")
        raise DataError(f"{FILE_NAME} must have format {FORMAT_VERSION}, got {found}; build the source archive again.")
    if missing := [name for name in SPLIT_NAMES if name not in channels]:
        raise DataError(f"A job with {FILE_NAME} needs the channels train, valid and test; {missing} are not there.")
    splits = {
        name: Split(
            name,
            tuple(Sample(channels[name] / path, label, digest) for path, label, digest in document["splits"][name]),
        )
        for name in SPLIT_NAMES
    }
    return Splits(
        classes=tuple(document["classes"]),
        fingerprint=document["fingerprint"],
        source=document["source"],
        bad_images=tuple(BadImage(path, reason) for path, reason in document["bad_images"]),
        num_duplicates=document["num_duplicates"],
        **splits,
    )
