"""The uncached path: images decoded, cropped and varied by worker processes while the device computes."""

import hashlib
import os
import signal
import weakref
from collections.abc import Iterator, Sequence
from multiprocessing import active_children
from multiprocessing.util import Finalize
from typing import Any, cast

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor
from torch.utils.data import DataLoader, Dataset, Sampler

from dogbreed_ml.config import Augmentation
from dogbreed_ml.data.splits import Split
from dogbreed_ml.errors import DataError, ImageError
from dogbreed_ml.transforms import Preprocessing, augmented_square, decode_image

Batch = tuple[Tensor, Tensor]
"""Images uint8 (B, 3, S, S) in channels_last order, labels int64 (B,)."""

_PREFETCH = 4
"""Batches that each worker holds ready."""


class ImageBatches:
    """A split's images in batches; the same seed, epoch and order give the same pixels for any number of workers.

    The worker processes start with the first batch and stay for later epochs, until close() or the end of this object.
    """

    def __init__(
        self,
        split: Split,
        preprocessing: Preprocessing,
        *,
        augmentation: Augmentation = "none",
        num_workers: int,
        seed: int,
        pin_memory: bool = False,
    ):
        self.num_samples = len(split)
        self.labels = torch.from_numpy(split.labels)
        """int64 (num_samples,)."""
        self._dataset = _Images(split, preprocessing, augmentation, seed)
        self._num_workers = num_workers
        self._pin_memory = pin_memory
        self._plan = _Plan()
        self._loader: DataLoader[Batch] | None = None
        self.worker_pids: tuple[int, ...] = ()
        """Of the worker processes, once they have started."""
        # In a process that is multiprocessing's own, such as a search's: its end would kill ours, and torch would raise
        # in the middle of that.
        Finalize(self, _close, args=(weakref.ref(self),), exitpriority=1)

    def batches(self, batch_size: int, *, order: Tensor | None, epoch: int) -> Iterator[Batch]:
        """One pass in `order`, a permutation int64 (n,), or in the split's own order for None; the last batch is short.

        Raises DataError where an image has gone or changed since it was scanned.
        """
        indices = list(range(self.num_samples)) if order is None else order.tolist()
        self._plan.set(epoch, indices, batch_size)
        # Nothing but the loop holds what it goes over: a traceback that kept it would keep the worker processes.
        for batch in self._loaded():
            # An exception raised in a worker would arrive wrapped in its traceback; a value arrives as it is.
            if isinstance(batch, DataError):
                self.close()
                raise batch
            yield batch

    def _loaded(self) -> "Iterator[Batch | DataError]":
        if self._loader is not None:
            return iter(self._loader)
        before = {each.pid for each in active_children()}
        self._loader = self._build_loader()
        loaded = iter(self._loader)
        self.worker_pids = tuple(sorted(each.pid or 0 for each in active_children() if each.pid not in before))
        return loaded

    def close(self) -> None:
        """Ends the worker processes; a later pass starts new ones."""
        self._loader = None

    def _build_loader(self) -> "DataLoader[Batch]":
        # A torch Dataset may have __getitems__ and so build a whole batch; the type stubs know of single items only.
        dataset = cast("Dataset[Batch]", self._dataset)
        is_parallel = self._num_workers > 0
        return DataLoader(
            dataset,
            batch_sampler=self._plan,
            num_workers=self._num_workers,
            collate_fn=_identity,
            worker_init_fn=_end_quietly,
            persistent_workers=is_parallel,
            prefetch_factor=_PREFETCH if is_parallel else None,
            pin_memory=self._pin_memory,
        )


def _close(batches: "weakref.ref[ImageBatches]") -> None:
    if (found := batches()) is not None:
        found.close()


class _Plan(Sampler[list[tuple[int, int]]]):
    """Which (epoch, index) go into which batch; read in this process, hence it can change while the workers stay."""

    def __init__(self) -> None:
        self._batches: list[list[tuple[int, int]]] = []

    def set(self, epoch: int, indices: Sequence[int], batch_size: int) -> None:
        pairs = [(epoch, index) for index in indices]
        self._batches = [pairs[start : start + batch_size] for start in range(0, len(pairs), batch_size)]

    def __iter__(self) -> Iterator[list[tuple[int, int]]]:
        return iter(self._batches)

    def __len__(self) -> int:
        return len(self._batches)


class _Images:
    def __init__(self, split: Split, preprocessing: Preprocessing, augmentation: Augmentation, seed: int):
        self._samples = split.samples
        self._preprocessing = preprocessing
        self._augmentation = augmentation
        self._seed = seed

    def __len__(self) -> int:
        return len(self._samples)

    def __getitems__(self, pairs: Sequence[tuple[int, int]]) -> Batch | DataError:
        try:
            squares = np.stack([self._square(epoch, index) for epoch, index in pairs])
        except DataError as error:
            return error
        labels = torch.tensor([self._samples[index].label for _, index in pairs], dtype=torch.int64)
        return torch.from_numpy(squares).permute(0, 3, 1, 2), labels

    def _square(self, epoch: int, index: int) -> NDArray[np.uint8]:
        sample = self._samples[index]
        content = hashlib.sha256(f"{self._seed} {epoch} {sample.digest}".encode()).digest()
        try:
            image = decode_image(sample.path.read_bytes())
        except (OSError, ImageError) as error:
            raise DataError(f"{sample.path} could be read when it was scanned and cannot now: {error}.") from error
        seed = int.from_bytes(content[:8], "little")
        return augmented_square(image, self._preprocessing, self._augmentation, seed=seed)


def _end_quietly(worker: int) -> None:
    """SIGTERM and a closed terminal's SIGHUP reach the whole process group. A worker that they killed would raise in
    its parent, whenever that is: while it writes down that it was stopped, say. One that ends with 0 does not."""
    for number in (signal.SIGTERM, signal.SIGHUP):
        signal.signal(number, lambda *_: os._exit(0))


def _identity(batch: Any) -> Any:
    return batch
