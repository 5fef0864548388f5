"""From the best trials to the model that is registered: trained again, calibrated, and where asked for averaged."""

import logging
from collections.abc import Iterator, Sequence
from contextlib import closing
from dataclasses import dataclass
from functools import cached_property
from itertools import islice
from typing import TYPE_CHECKING

import torch
from torch import Tensor, nn

from dogbreed_ml.calibration import fit_temperature
from dogbreed_ml.config import ExperimentConfig, with_values
from dogbreed_ml.model import average_heads
from dogbreed_ml.pipeline.stages import run_epochs
from dogbreed_ml.train import EpochResult, evaluate
from dogbreed_ml.workbench import Workbench

if TYPE_CHECKING:
    from dogbreed_ml.search import TrialRecord

logger = logging.getLogger(__name__)


@dataclass(frozen=True)
class Refitted:
    """A model that was trained again with a trial's hyperparameters."""

    config: ExperimentConfig
    model: nn.Module
    """What `Workbench.model` gave, trained on what search.refit says."""
    epochs: tuple[EpochResult, ...]
    valid_logits: Tensor
    """(n, K) float32 on the valid split, of weights that never saw it."""
    valid_labels: Tensor
    """(n,) int64."""

    @cached_property
    def temperature(self) -> float:
        """Makes the probabilities on the valid split mean what they say."""
        return fit_temperature(self.valid_logits.numpy(), self.valid_labels.numpy())


def refit(bench: Workbench, config: ExperimentConfig, best: "TrialRecord") -> Refitted:
    """Trains the trial's hyperparameters again.

    With refit=train_valid that is done twice: on train alone, which repeats the trial and gives logits on a valid
    split that the weights never saw, and on both, for the weights that are kept.
    """
    trial_config = with_values(config, best.values)
    feeds = bench.feeds(trial_config)
    model = bench.model(trial_config)
    epochs = _told(run_epochs(bench, trial_config, model, feeds.train, valid=feeds.valid))
    valid = evaluate(model, feeds.valid, device=bench.device)
    if config.search.refit == "train_valid":
        model = bench.model(trial_config)
        # Without a valid split nothing can stop early: the epoch that the trial kept ends the training.
        num_epochs = None if best.best_epoch is None else best.best_epoch + 1
        training = run_epochs(bench, trial_config, model, feeds.train_valid, valid=None)
        with closing(training):
            epochs = _told(islice(training, num_epochs))
    return Refitted(trial_config, model, epochs, valid.logits, valid.labels)


def _told(training: Iterator[EpochResult]) -> tuple[EpochResult, ...]:
    """All epochs; each is a log line as it ends, for a deep refit may take long."""
    epochs = []
    for epoch in training:
        logger.info("refit %s", epoch.render())
        epochs.append(epoch)
    return tuple(epochs)


def average(bench: Workbench, members: Sequence[Refitted]) -> Refitted:
    """One head that answers as the mean of the members' logits, each first divided by its own temperature.

    The mean of linear heads is a linear head: the ensemble costs no more to serve than any of them. Without the
    temperatures the head with the largest weights would outvote the others. Epochs and config are the first member's.
    """
    if len(members) == 1:
        return members[0]
    first = members[0]
    shares = [1 / (member.temperature * len(members)) for member in members]
    model = bench.model(first.config)
    average_heads([member.model for member in members], shares, into=model)
    logits = torch.stack([member.valid_logits * share for member, share in zip(members, shares, strict=True)]).sum(0)
    return Refitted(first.config, model, first.epochs, logits, first.valid_labels)
