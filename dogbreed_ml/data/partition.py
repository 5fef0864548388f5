"""From scanned files to splits: bad images out, duplicates together, each breed in train, valid and test."""

import hashlib
import logging
from collections import defaultdict
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, replace

from dogbreed_ml.config import DataConfig, SplitName
from dogbreed_ml.data.listing import ListedImage
from dogbreed_ml.data.scan import Finding
from dogbreed_ml.data.splits import SPLIT_NAMES, BadImage, Sample, Split, Splits, compute_fingerprint
from dogbreed_ml.errors import DataError

logger = logging.getLogger(__name__)

_NUM_NAMED = 10
"""Bad images that an error names."""


@dataclass(frozen=True)
class _Group:
    """Files of one breed with the same bytes."""

    digest: str
    images: tuple[ListedImage, ...]
    split: SplitName | None


def build_splits(
    images: Sequence[ListedImage], findings: Sequence[Finding], config: DataConfig, *, source: str
) -> Splits:
    """The splits of scanned images; the same contents and config give the same splits, wherever the files lie.

    A source's own split is kept; what it lacks is cut from train. Raises DataError.
    """
    classes = _order_breeds(images, source)
    bad_images = _unreadable(images, findings, config, source)
    by_digest: dict[str, list[ListedImage]] = defaultdict(list)
    for image, finding in zip(images, findings, strict=True):
        if finding.digest is not None:
            by_digest[finding.digest].append(image)
    bad_images += _drop_contradictions(by_digest, source)
    groups = _group(by_digest, source)

    own = frozenset(image.split for image in images if image.split is not None)
    members: dict[SplitName, list[Sample]] = {name: [] for name in SPLIT_NAMES}
    for label, breed in enumerate(classes):
        divided = _divide(groups[breed], own, config)
        _require_everywhere(breed, divided, source)
        for name, chosen in divided.items():
            members[name] += [Sample(image.path, label, each.digest) for each in chosen for image in each.images]

    # Not by path: equal fingerprints must mean equal order, since kept features are rows in this order.
    train, valid, test = (
        Split(name, tuple(sorted(members[name], key=lambda sample: (sample.label, sample.digest, sample.path))))
        for name in SPLIT_NAMES
    )
    return Splits(
        classes=classes,
        train=train,
        valid=valid,
        test=test,
        fingerprint=compute_fingerprint(classes, (train, valid, test)),
        source=source,
        bad_images=tuple(sorted(bad_images, key=lambda bad: bad.path)),
        num_duplicates=sum(len(group.images) - 1 for breed_groups in groups.values() for group in breed_groups),
    )


def _order_breeds(images: Iterable[ListedImage], source: str) -> tuple[str, ...]:
    breeds = sorted({image.breed for image in images}, key=lambda breed: (breed.casefold(), breed))
    if len(breeds) < 2:
        found = f"only {breeds[0]!r}" if breeds else "none"
        raise DataError(f"{source} must have images of at least 2 breeds, a folder for each; found {found}.")
    return tuple(breeds)


def _unreadable(
    images: Sequence[ListedImage], findings: Sequence[Finding], config: DataConfig, source: str
) -> list[BadImage]:
    bad = [
        BadImage(_printable(image.relative), finding.reason)
        for image, finding in zip(images, findings, strict=True)
        if finding.reason is not None
    ]
    share = len(bad) / len(images)
    if share > config.max_bad_share:
        named = "; ".join(f"{each.path} ({each.reason})" for each in bad[:_NUM_NAMED])
        more = f"; and {len(bad) - _NUM_NAMED} more" if len(bad) > _NUM_NAMED else ""
        raise DataError(
            f"{source}: {len(bad)} of {len(images)} images ({share:.1%}) cannot be read, more than "
            f"data.max_bad_share={config.max_bad_share:g}: {named}{more}. "
            "Mend or remove them, or raise data.max_bad_share."
        )
    if bad:
        logger.warning("%s: %d of %d images cannot be read and are left out", source, len(bad), len(images))
    return bad


def _drop_contradictions(by_digest: dict[str, list[ListedImage]], source: str) -> list[BadImage]:
    """Takes out, in place, what two breeds claim; nothing says which of them is right."""
    dropped: list[BadImage] = []
    for digest in [digest for digest, copies in by_digest.items() if len({copy.breed for copy in copies}) > 1]:
        copies = by_digest.pop(digest)
        for copy in copies:
            other = next(each for each in copies if each.breed != copy.breed)
            dropped.append(
                BadImage(_printable(copy.relative), f"two breeds: same bytes as {_printable(other.relative)}")
            )
    if dropped:
        logger.warning("%s: %d images are filed under two breeds and are left out", source, len(dropped))
    return dropped


def _group(by_digest: Mapping[str, list[ListedImage]], source: str) -> dict[str, list[_Group]]:
    """By breed; copies in several splits come together in train, which leaves valid and test unseen."""
    groups: dict[str, list[_Group]] = defaultdict(list)
    num_copies = num_moved = 0
    for digest, copies in by_digest.items():
        in_splits = {copy.split for copy in copies}
        split: SplitName | None = copies[0].split if len(in_splits) == 1 else "train"
        num_copies += len(copies) - 1
        num_moved += sum(copy.split != split for copy in copies)
        groups[copies[0].breed].append(_Group(digest, tuple(copies), split))
    if num_copies:
        logger.warning("%s: %d duplicates by content; %d moved to train", source, num_copies, num_moved)
    return groups


def _divide(groups: Sequence[_Group], own: frozenset[SplitName], config: DataConfig) -> dict[SplitName, list[_Group]]:
    """One breed's groups by split, at most max_per_class images in all."""
    if own <= {"train"}:
        chosen = _first_images(_shuffled(groups, config.seed, "max_per_class"), config.max_per_class)
        return _cut(chosen, config, {"valid": config.valid_share, "test": config.test_share})
    divided: dict[SplitName, list[_Group]] = {
        name: [group for group in groups if group.split == name] for name in SPLIT_NAMES
    }
    shares: dict[SplitName, float] = {"valid": config.valid_share, "test": config.test_share}
    lacking = {name: share for name, share in shares.items() if name not in own}
    divided |= _cut(divided["train"], config, lacking)
    if config.max_per_class is None:
        return divided
    total = sum(len(group.images) for group in groups)
    scale = min(1.0, config.max_per_class / max(1, total))
    wanted = {name: round(scale * sum(len(group.images) for group in divided[name])) for name in shares}
    quotas = _held_back(min(config.max_per_class, total), wanted)
    quotas["train"] = config.max_per_class - sum(quotas.values())
    return {
        name: _first_images(_shuffled(divided[name], config.seed, "max_per_class"), quotas[name])
        for name in SPLIT_NAMES
    }


def _cut(
    groups: Sequence[_Group], config: DataConfig, shares: Mapping[SplitName, float]
) -> dict[SplitName, list[_Group]]:
    """Cuts these shares off, each at least one group; train keeps the rest, and the groups with copies."""
    ordered = sorted(_shuffled(groups, config.seed, "split"), key=lambda group: len(group.images) > 1)
    sizes = _held_back(len(ordered), {name: round(share * len(ordered)) for name, share in shares.items()})
    divided: dict[SplitName, list[_Group]] = {}
    for name, size in sizes.items():
        divided[name], ordered = ordered[:size], ordered[size:]
    divided["train"] = ordered
    return divided


def _held_back(total: int, wanted: Mapping[SplitName, int]) -> dict[SplitName, int]:
    """Sizes of the splits held back: each at least 1, and at least 1 of `total` is left for each split and train."""
    sizes: dict[SplitName, int] = {}
    left = total
    for num_after, name in zip(range(len(wanted) - 1, -1, -1), wanted, strict=True):
        sizes[name] = max(0, min(max(1, wanted[name]), left - num_after - 1))
        left -= sizes[name]
    return sizes


def _first_images(groups: Sequence[_Group], limit: int | None) -> list[_Group]:
    """Groups from the front until they hold `limit` images; of the last one perhaps not every copy."""
    if limit is None:
        return list(groups)
    chosen: list[_Group] = []
    for group in groups:
        if limit <= 0:
            break
        chosen.append(replace(group, images=group.images[:limit]))
        limit -= len(group.images)
    return chosen


def _shuffled(groups: Iterable[_Group], seed: int, purpose: str) -> list[_Group]:
    """Ordered by a hash of seed and content: no new image changes the order of the others."""
    return sorted(groups, key=lambda group: hashlib.sha256(f"{purpose} {seed} {group.digest}".encode()).digest())


def _require_everywhere(breed: str, divided: Mapping[SplitName, Sequence[_Group]], source: str) -> None:
    lacking = [name for name in SPLIT_NAMES if not divided[name]]
    if lacking:
        num_images = sum(len(group.images) for chosen in divided.values() for group in chosen)
        raise DataError(
            f"{source}: breed {breed!r} has no usable image for {' and '.join(lacking)} ({num_images} in all); "
            "every breed needs a different one in each of train, valid and test. "
            "Add images, or list the other breeds in data.classes."
        )


def _printable(relative: str) -> str:
    """Names that are not UTF-8 come from the file system as lone surrogates, which no CSV can hold."""
    return relative.encode(errors="surrogateescape").decode(errors="replace")
