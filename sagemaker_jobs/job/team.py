"""Several processes that train one model: gradients averaged, batches shared out, figures those of all."""

from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass, replace
from typing import Protocol

import torch
from torch import Tensor, distributed, nn

from dogbreed_ml.errors import ConfigError
from dogbreed_ml.evaluation import compute_metrics
from dogbreed_ml.train import Batches, EpochResult


class _Place(Protocol):
    @property
    def rank(self) -> int: ...
    @property
    def world_size(self) -> int: ...
    @property
    def local_rank(self) -> int: ...


@dataclass(frozen=True)
class Team:
    """This process's place among those that torchrun started."""

    rank: int = 0
    world_size: int = 1

    @property
    def is_first(self) -> bool:
        """Whether this process writes the record and the model."""
        return self.rank == 0

    def wrap(self, model: nn.Module, device: torch.device) -> nn.Module:
        """What `fit` trains in place of `model`: the same parameters, with averaged gradients."""
        if self.world_size == 1:
            return model
        devices = [device.index or torch.cuda.current_device()] if device.type == "cuda" else None
        return nn.parallel.DistributedDataParallel(model.to(device), device_ids=devices)

    def share(self, batches: Batches) -> Batches:
        """This process's part of each batch."""
        return batches if self.world_size == 1 else _Share(batches, self)

    def metrics(self, logits: Tensor, labels: Tensor) -> dict[str, float]:
        """The first process's figures, for all: a decision that they lead to is then the same everywhere."""
        figures = compute_metrics(logits, labels)
        if self.world_size > 1:
            told = [figures]
            distributed.broadcast_object_list(told, src=0)
            figures = told[0]
        return figures

    def joined(self, result: EpochResult) -> EpochResult:
        """The epoch as all processes together trained it."""
        if self.world_size == 1:
            return result
        loss = torch.tensor(result.metrics["train/loss"], dtype=torch.float64)
        if distributed.get_backend() == "nccl":
            loss = loss.to("cuda", torch.float32)
        distributed.all_reduce(loss)
        return replace(result, metrics=result.metrics | {"train/loss": float(loss)})


@contextmanager
def joined_team(place: _Place) -> Iterator[Team]:
    """The process group, for as long as the block lasts; nothing for a single process."""
    if place.world_size == 1:
        yield Team()
        return
    is_cuda = torch.cuda.is_available()
    if is_cuda:
        torch.cuda.set_device(place.local_rank)
    distributed.init_process_group("nccl" if is_cuda else "gloo")
    try:
        yield Team(place.rank, place.world_size)
    finally:
        distributed.destroy_process_group()


class _Share:
    """One process's part of another feed's batches.

    All parts of a batch have equal size, so that the mean of their gradients is the batch's own; what cannot be shared
    out of an epoch's last batch, at most world_size - 1 samples, sits that epoch out.
    """

    def __init__(self, batches: Batches, team: Team):
        self._batches = batches
        self._team = team
        self.labels = batches.labels

    @property
    def num_samples(self) -> int:
        """Of all processes together, in one epoch."""
        return self._batches.num_samples // self._team.world_size * self._team.world_size

    def batches(self, batch_size: int, *, order: Tensor | None, epoch: int) -> Iterator[tuple[Tensor, Tensor]]:
        size, rank = self._team.world_size, self._team.rank
        if order is None:
            raise ValueError("A shared feed is for training; evaluate the feed that it was made of.")
        if batch_size % size:
            raise ConfigError(
                f"train.batch_size must be a multiple of the {size} processes that share each batch, got {batch_size}."
            )
        parts = [batch[rank::size] for batch in order[: self.num_samples].split(batch_size)]
        yield from self._batches.batches(batch_size // size, order=torch.cat(parts), epoch=epoch)
