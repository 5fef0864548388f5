"""Batches shared out among several processes; the processes themselves are in tests/contract."""

import pytest
import torch
from memorybatches import MemoryBatches
from torch import nn

from dogbreed_ml.errors import ConfigError
from sagemaker_jobs.job.team import Team


def _feed(num_samples: int) -> MemoryBatches:
    generator = torch.Generator().manual_seed(5)
    return MemoryBatches(torch.randn(num_samples, 4, generator=generator), torch.arange(num_samples) % 3)


def test_shares_of_a_batch_have_the_batchs_own_gradient() -> None:
    feed, order, model, loss = _feed(20), torch.randperm(20), nn.Linear(4, 3), nn.CrossEntropyLoss()
    shares = [list(Team(rank, 2).share(feed).batches(8, order=order, epoch=0)) for rank in range(2)]
    whole = list(feed.batches(8, order=order, epoch=0))
    assert [len(labels) for _, labels in shares[0]] == [4, 4, 2]
    for (inputs, labels), *parts in zip(whole, *shares, strict=True):
        expected = torch.autograd.grad(loss(model(inputs), labels), list(model.parameters()))
        gradients = [torch.autograd.grad(loss(model(x), y), list(model.parameters())) for x, y in parts]
        for wanted, *found in zip(expected, *gradients, strict=True):
            torch.testing.assert_close(torch.stack(found).mean(0), wanted)


def test_shares_of_an_uneven_epoch_have_equal_sizes() -> None:
    feed, order = _feed(21), torch.arange(21)
    shares = [Team(rank, 3).share(feed) for rank in range(3)]
    sizes = [[len(labels) for _, labels in each.batches(6, order=order, epoch=0)] for each in shares]
    assert sizes == [[2, 2, 2, 1]] * 3
    assert shares[0].num_samples == 21
    assert Team(0, 2).share(feed).num_samples == 20


def test_batch_that_cannot_be_shared_is_refused() -> None:
    with pytest.raises(ConfigError, match=r"train\.batch_size must be a multiple of the 3 processes"):
        list(Team(0, 3).share(_feed(9)).batches(8, order=torch.arange(9), epoch=0))


def test_team_of_one_changes_nothing() -> None:
    feed, model = _feed(4), nn.Linear(4, 3)
    assert Team().share(feed) is feed
    assert Team().wrap(model, torch.device("cpu")) is model
