"""Batches without files, for tests of what trains."""

from collections.abc import Iterator
from dataclasses import dataclass

import torch
from torch import Tensor


@dataclass
class MemoryBatches:
    """A split that stands in memory."""

    inputs: Tensor
    labels: Tensor

    @property
    def num_samples(self) -> int:
        return len(self.labels)

    def batches(self, batch_size: int, *, order: Tensor | None, epoch: int) -> Iterator[tuple[Tensor, Tensor]]:
        del epoch
        for rows in (torch.arange(len(self.labels)) if order is None else order).split(batch_size):
            yield self.inputs[rows], self.labels[rows]
