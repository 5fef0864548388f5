"""The frozen prefix's outputs: computed once, kept memory-mapped on disk, shared by all trials and processes.

A table of features lives in `<features.dir>/<key>/` as `features.npy` and `table.json`. The key covers whatever the
numbers depend on: the images' content, weights, cut, preprocessing, views, and the back end with its precision.
The folder appears under its final name only when it is whole, and its checksum is verified when it is opened.
"""

import hashlib
import json
import logging
import os
import shutil
import zlib
from collections import deque
from collections.abc import Callable, Iterator, Sequence
from concurrent.futures import Future, ThreadPoolExecutor
from dataclasses import dataclass, field
from itertools import islice
from pathlib import Path
from time import perf_counter
from typing import Any, cast

import filelock
import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor, nn

from dogbreed_ml.backend import (
    NUM_AGREEMENT_IMAGES,
    Backend,
    BackendChoice,
    Images,
    build_backend,
    check_agreement,
    choose_backend,
    machine_key,
    run_all,
)
from dogbreed_ml.config import Augmentation, BackendName, FeaturesConfig
from dogbreed_ml.data.splits import Sample, Split
from dogbreed_ml.errors import BackendError, FeaturesError
from dogbreed_ml.files import write_whole
from dogbreed_ml.progress import NO_PROGRESS, Progress
from dogbreed_ml.spans import NO_SPANS, Spans
from dogbreed_ml.transforms import Preprocessing, augmented_square, decode_image, mirror, to_square

logger = logging.getLogger(__name__)

FORMAT_VERSION = 1
FEATURES_FILE = "features.npy"
TABLE_FILE = "table.json"
CHOICES_FILE = "backends.json"

_DECODE_CHUNK = 8
_GIB = 1024**3


@dataclass(frozen=True)
class FrozenPrefix:
    """A network's frozen part and what identifies its outputs."""

    weights_digest: str
    resnet_version: str
    cut: str
    """`model.trainable`: the first trainable stage."""
    build: Callable[[], nn.Module]
    """Makes the module; called only where a forward pass is needed."""


@dataclass(frozen=True)
class Views:
    """Which variants of each image a table holds: view 0 is the plain image, others are augmented."""

    first: int = 0
    num: int = 1
    augmentation: Augmentation = "none"
    seed: int = 0


PLAIN = Views()


@dataclass(frozen=True)
class FeatureTable:
    """Kept features of some images: row `rows[digest] * num_views + v` is view v of that image."""

    values: NDArray[Any]
    """(num_rows, *feature shape), float16 or float32, memory-mapped."""
    rows: dict[str, int]
    num_views: int
    backend: str
    cached: bool
    """Whether it was there already, so that no forward pass was made."""
    images_per_s: float
    """Of the pass that made it."""
    key: str


class FeatureBatches:
    """A split's features, fed to `train.fit` in place of images.

    With augmented views, each image shows one view an epoch, drawn from `seed`; the plain view is one of them.
    """

    def __init__(self, split: Split, plain: FeatureTable, views: FeatureTable | None = None, *, seed: int = 0):
        # Mapped copy-on-write: torch wants writable memory, and nothing here writes.
        self._plain = torch.from_numpy(plain.values)
        self._plain_rows = torch.tensor([plain.rows[sample.digest] for sample in split.samples], dtype=torch.int64)
        self._views = None if views is None else torch.from_numpy(views.values)
        self._num_views = 0 if views is None else views.num_views
        if views is not None:
            self._view_rows = torch.tensor([views.rows[s.digest] * views.num_views for s in split.samples])
        self._seed = seed
        self.labels = torch.from_numpy(split.labels)

    @property
    def num_samples(self) -> int:
        return len(self.labels)

    def batches(self, batch_size: int, *, order: Tensor | None, epoch: int) -> Iterator[tuple[Tensor, Tensor]]:
        """Yields features (B, *shape) float32 and labels (B,) int64, in `order` or, plain views only, as they stand."""
        if order is None:
            for rows, labels in zip(self._plain_rows.split(batch_size), self.labels.split(batch_size), strict=True):
                yield self._plain[rows].float(), labels
            return
        views = self._drawn_views(epoch)
        for indices in order.split(batch_size):
            yield self._gather(indices, views), self.labels[indices]

    def _drawn_views(self, epoch: int) -> Tensor | None:
        if self._views is None:
            return None
        generator = torch.Generator().manual_seed(self._seed * 100_003 + epoch)
        return torch.randint(self._num_views + 1, (self.num_samples,), generator=generator)

    def _gather(self, indices: Tensor, views: Tensor | None) -> Tensor:
        features = self._plain[self._plain_rows[indices]]
        if views is not None and self._views is not None:
            drawn = views[indices]
            augmented = drawn > 0
            features[augmented] = self._views[self._view_rows[indices[augmented]] + drawn[augmented] - 1]
        return features.float()


@dataclass
class FeatureStore:
    """The folder of kept features."""

    config: FeaturesConfig
    dir: Path
    """Absolute."""
    device: torch.device
    progress: Progress = field(default=NO_PROGRESS)
    spans: Spans = field(default=NO_SPANS)
    """Gets features/decode and features/transform of each image, from several threads, and of each batch
    features/forward, with features/data_wait inside it where the forward pass waited for images, and features/write."""

    def table(
        self, samples: Sequence[Sample], prefix: FrozenPrefix, preprocessing: Preprocessing, *, views: Views = PLAIN
    ) -> FeatureTable:
        """The features of the samples' images, from disk or computed now; equal images share a row.

        Several processes may ask at once: one computes, the others wait. Raises FeaturesError where they would not
        fit in `features.max_gib`, BackendError where the back end asked for is absent or disagrees.
        """
        by_digest = {sample.digest: sample for sample in samples}
        ordered = [by_digest[digest] for digest in sorted(by_digest)]
        self.dir.mkdir(parents=True, exist_ok=True)
        name = self._known_backend(prefix, preprocessing)
        if name is not None:
            table = self._open(_key(ordered, prefix, preprocessing, views, name), ordered, views, verify=True)
            if table is not None:
                return table
        # One pass at a time on this machine: two would only share the same cores.
        with filelock.FileLock(self.dir / "pass.lock"):
            name = self._known_backend(prefix, preprocessing)
            if name is not None:
                key = _key(ordered, prefix, preprocessing, views, name)
                table = self._open(key, ordered, views, verify=True)
                if table is not None:
                    return table
            backend = self._agreeing_backend(name, ordered, prefix, preprocessing, views)
            key = _key(ordered, prefix, preprocessing, views, backend.name)
            return self._compute(key, backend, ordered, preprocessing, views)

    def has_table(
        self, samples: Sequence[Sample], prefix: FrozenPrefix, preprocessing: Preprocessing, *, views: Views = PLAIN
    ) -> bool:
        """Whether `table` would find these features here and make no forward pass."""
        name = self._known_backend(prefix, preprocessing)
        if name is None:
            return False
        by_digest = {sample.digest: sample for sample in samples}
        ordered = [by_digest[digest] for digest in sorted(by_digest)]
        return (self.dir / _key(ordered, prefix, preprocessing, views, name) / TABLE_FILE).is_file()

    def clear(self) -> int:
        """Deletes every table and returns the bytes freed."""
        if not self.dir.is_dir():
            return 0
        with filelock.FileLock(self.dir / "pass.lock"):
            freed = sum(path.stat().st_size for path in self.dir.rglob("*") if path.is_file())
            for path in self.dir.iterdir():
                if path.is_dir():
                    shutil.rmtree(path)
                elif path.name == CHOICES_FILE:
                    path.unlink()
        return freed

    def _known_backend(self, prefix: FrozenPrefix, preprocessing: Preprocessing) -> BackendName | None:
        """The back end asked for, or what `auto` chose on this machine before; None where it has not yet."""
        if self.config.backend != "auto":
            return self.config.backend
        name: BackendName | None = self._choices().get(self._choice_key(prefix, preprocessing), {}).get("name")
        return name

    def _choice_key(self, prefix: FrozenPrefix, preprocessing: Preprocessing) -> str:
        return f"{machine_key(self.device)} cut {prefix.cut} {preprocessing.image_size}px"

    def _choices(self) -> dict[str, Any]:
        try:
            choices: dict[str, Any] = json.loads((self.dir / CHOICES_FILE).read_text())
        except (FileNotFoundError, json.JSONDecodeError):
            return {}
        return choices

    def _agreeing_backend(
        self,
        name: BackendName | None,
        samples: Sequence[Sample],
        prefix: FrozenPrefix,
        preprocessing: Preprocessing,
        views: Views,
    ) -> Backend:
        module = prefix.build()
        spread = samples[:: max(1, len(samples) // NUM_AGREEMENT_IMAGES)][:NUM_AGREEMENT_IMAGES]
        images = np.stack([to_square(decode_image(sample.path.read_bytes()), preprocessing) for sample in spread])

        def build(backend_name: BackendName) -> Backend:
            return build_backend(backend_name, module, image_size=preprocessing.image_size, device=self.device)

        torch_fp32 = build("torch-fp32")
        self._require_space(len(samples) * views.num, run_all(torch_fp32, images[:1]).shape[1:], name)
        reference = run_all(torch_fp32, images)
        if name is not None:
            backend = build(name)
            try:
                check_agreement(backend, images, reference)
                return backend
            except BackendError as error:
                if self.config.backend != "auto":
                    raise
                logger.warning("%s Another is chosen.", error)
        backend, choice = choose_backend(build, images, reference, device=self.device)
        self._keep_choice(choice, prefix, preprocessing)
        return backend

    def _keep_choice(self, choice: BackendChoice, prefix: FrozenPrefix, preprocessing: Preprocessing) -> None:
        entry = {"name": choice.name, "images_per_s": choice.images_per_s}
        choices = self._choices() | {self._choice_key(prefix, preprocessing): entry}
        write_whole(self.dir / CHOICES_FILE, json.dumps(choices, indent=2))
        logger.info("back end %s chosen: %s images/s", choice.name, choice.images_per_s)

    def _require_space(self, num_rows: int, shape: tuple[int, ...], name: BackendName | None) -> None:
        item_bytes = 4 if name is not None and name.endswith("fp32") else 2
        needed_gib = num_rows * int(np.prod(shape)) * item_bytes / _GIB
        if needed_gib > self.config.max_gib:
            raise FeaturesError(
                f"features.max_gib must hold all features: {num_rows} x {'x'.join(map(str, shape))} need "
                f"{needed_gib:.2f} GiB, got {self.config.max_gib:g}; raise it, lower train.num_views or "
                "data.max_per_class, or train less of the network (model.trainable=head needs the least)."
            )
        free_gib = shutil.disk_usage(self.dir).free / _GIB
        if needed_gib > free_gib:
            raise FeaturesError(
                f"{self.dir} must have room for the features: {needed_gib:.2f} GiB are needed, {free_gib:.2f} GiB are "
                "free; set features.dir to another disk."
            )

    def _open(self, key: str, samples: Sequence[Sample], views: Views, *, verify: bool) -> FeatureTable | None:
        """The table where it is there and whole; a damaged one is removed."""
        folder = self.dir / key
        try:
            meta = json.loads((folder / TABLE_FILE).read_text())
            values = np.load(folder / FEATURES_FILE, mmap_mode="c")
        except FileNotFoundError:
            return None
        except (ValueError, OSError) as error:
            self._discard(folder, f"cannot be read: {error}")
            return None
        if verify and _checksum(values) != meta["checksum"]:
            self._discard(folder, "does not match its checksum")
            return None
        if "key" not in meta:
            # Tables of before 2026-11-21 are known by their folder's name alone, which a copy may lose.
            write_whole(folder / TABLE_FILE, json.dumps(meta | {"key": key}, indent=2))
        rows = {sample.digest: row for row, sample in enumerate(samples)}
        return FeatureTable(values, rows, views.num, meta["backend"], True, meta["images_per_s"], key)

    def _discard(self, folder: Path, problem: str) -> None:
        logger.warning("%s %s; the features are computed again.", folder / FEATURES_FILE, problem)
        shutil.rmtree(folder, ignore_errors=True)

    def _compute(
        self, key: str, backend: Backend, samples: Sequence[Sample], preprocessing: Preprocessing, views: Views
    ) -> FeatureTable:
        # Whoever held the lock before and was killed left this; nobody else can be writing it now.
        for leftover in self.dir.glob("*.partial"):
            shutil.rmtree(leftover)
        partial = self.dir / f"{key}.partial"
        partial.mkdir()
        num_rows = len(samples) * views.num
        values: NDArray[Any] | None = None
        checksum, row, start = 0, 0, perf_counter()
        with self.progress.track(f"features {backend.name}", num_rows, "images") as advance:
            decoded = decoded_batches(samples, preprocessing, views, batch_size=backend.batch_size, spans=self.spans)
            outputs = backend.run(_timed(decoded, self.spans, "features/data_wait"))
            for output in _timed(outputs, self.spans, "features/forward"):
                with self.spans.span("features/write"):
                    if values is None:
                        shape = (num_rows, *output.shape[1:])
                        path = partial / FEATURES_FILE
                        values = np.lib.format.open_memmap(path, "w+", dtype=backend.dtype, shape=shape)
                    kept = np.ascontiguousarray(output, dtype=backend.dtype)
                    values[row : row + len(kept)] = kept
                    checksum = zlib.crc32(kept.data, checksum)
                row += len(kept)
                advance(len(kept))
        if not isinstance(values, np.memmap) or row != num_rows:
            raise FeaturesError(f"The pass must give {num_rows} rows of features, got {row}.")
        with self.spans.span("features/write"):
            values.flush()
        del values
        images_per_s = round(num_rows / (perf_counter() - start), 1)
        meta = {
            "format_version": FORMAT_VERSION,
            "key": key,
            "backend": backend.name,
            "images_per_s": images_per_s,
            "checksum": checksum,
            "num_images": len(samples),
            "num_views": views.num,
        }
        write_whole(partial / TABLE_FILE, json.dumps(meta, indent=2))
        os.replace(partial, self.dir / key)
        table = self._open(key, samples, views, verify=False)
        if table is None:
            raise FeaturesError(f"{self.dir / key} vanished while it was written; is another program clearing it?")
        return FeatureTable(
            table.values, table.rows, views.num, backend.name, cached=False, images_per_s=images_per_s, key=key
        )


def adopt_table(folder: Path, features_dir: Path) -> BackendName | None:
    """Makes a table that was computed elsewhere known in `features_dir`, by links; its back end, None for no table.

    Whether it fits is for its key to say, as of any other.
    """
    try:
        meta = json.loads((folder / TABLE_FILE).read_text())
        key, backend = str(meta["key"]), meta["backend"]
    except (FileNotFoundError, KeyError, ValueError):
        return None
    target = features_dir / key
    # A folder of links, not a link: a damaged table is removed, and that must not reach the original.
    target.mkdir(parents=True, exist_ok=True)
    for name in (FEATURES_FILE, TABLE_FILE):
        if not (target / name).exists():
            (target / name).symlink_to((folder / name).resolve())
    return cast(BackendName, backend)


def _key(
    samples: Sequence[Sample],
    prefix: FrozenPrefix,
    preprocessing: Preprocessing,
    views: Views,
    backend: str,
) -> str:
    images = hashlib.sha256("".join(sample.digest for sample in samples).encode()).hexdigest()
    parts = [
        FORMAT_VERSION,
        images,
        prefix.weights_digest,
        prefix.resnet_version,
        prefix.cut,
        preprocessing.to_dict(),
        [views.first, views.num, views.augmentation, views.seed],
        backend,
    ]
    return hashlib.sha256(json.dumps(parts, sort_keys=True).encode()).hexdigest()[:24]


def _checksum(values: NDArray[Any]) -> int:
    """CRC-32 of the rows, a slice at a time, so that a large table never stands in memory at once."""
    checksum = 0
    rows_per_slice = max(1, (16 << 20) // max(1, values[:1].nbytes))
    for start in range(0, len(values), rows_per_slice):
        checksum = zlib.crc32(np.ascontiguousarray(values[start : start + rows_per_slice]).data, checksum)
    return checksum


def _timed(batches: Iterator[Images], spans: Spans, name: str) -> Iterator[Images]:
    """The same batches, with the wait for each as a span."""
    while True:
        with spans.span(name):
            batch = next(batches, None)
        if batch is None:
            return
        yield batch


def _view(sample: Sample, view: int, preprocessing: Preprocessing, views: Views, spans: Spans) -> Images:
    with spans.span("features/decode"):
        image = decode_image(sample.path.read_bytes())
    with spans.span("features/transform"):
        if view == 0:
            return to_square(image, preprocessing)
        if views.augmentation == "flip":
            # Drawn at random, half the kept views would only repeat the plain one.
            return to_square(mirror(image), preprocessing)
        seed = int(hashlib.sha256(f"{views.seed}/{sample.digest}/{view}".encode()).hexdigest()[:12], 16)
        return augmented_square(image, preprocessing, views.augmentation, seed=seed)


def decoded_batches(
    samples: Sequence[Sample],
    preprocessing: Preprocessing,
    views: Views = PLAIN,
    *,
    batch_size: int,
    spans: Spans = NO_SPANS,
) -> Iterator[Images]:
    """Batches (B, S, S, 3) uint8 in row order, decoded by threads a little ahead of the forward pass."""
    pairs = ((sample, view) for sample in samples for view in range(views.first, views.first + views.num))
    chunk_size = min(batch_size, _DECODE_CHUNK)
    chunks_per_batch = batch_size // chunk_size
    num_threads = os.cpu_count() or 1

    def decode(chunk: list[tuple[Sample, int]]) -> Images:
        return np.stack([_view(sample, view, preprocessing, views, spans) for sample, view in chunk])

    with ThreadPoolExecutor(num_threads, thread_name_prefix="decode") as pool:
        chunks = iter(lambda: list(islice(pairs, chunk_size)), [])
        ahead: deque[Future[Images]] = deque()
        num_ahead = max(4 * num_threads, 2 * chunks_per_batch)
        try:
            ahead.extend(pool.submit(decode, chunk) for chunk in islice(chunks, num_ahead))
            while ahead:
                parts: list[Images] = []
                while ahead and len(parts) < chunks_per_batch:
                    parts.append(ahead.popleft().result())
                    ahead.extend(pool.submit(decode, chunk) for chunk in islice(chunks, 1))
                yield parts[0] if len(parts) == 1 else np.concatenate(parts)
        finally:
            for future in ahead:
                future.cancel()
