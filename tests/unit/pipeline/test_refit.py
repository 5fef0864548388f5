"""The best trials trained again: what is kept, what it is calibrated on, and what a mean of heads answers."""

import hashlib
from collections.abc import Iterator
from contextlib import closing

import numpy as np
import pytest
import torch
from PIL import Image
from torch.nn.functional import cross_entropy

from dogbreed_ml.config import ExperimentConfig, with_values
from dogbreed_ml.data.splits import Sample, Split, Splits
from dogbreed_ml.errors import ConfigError
from dogbreed_ml.pipeline.refit import Refitted, average, refit
from dogbreed_ml.train import evaluate
from dogbreed_ml.trials import TrialRecord
from dogbreed_ml.workbench import Workbench

CPU = torch.device("cpu")


@pytest.fixture(scope="module")
def splits(tmp_path_factory: pytest.TempPathFactory) -> Splits:
    """Noise of two brightnesses: learnable, and not without mistakes."""
    folder = tmp_path_factory.mktemp("images")
    rng = np.random.default_rng(0)
    samples = []
    for number in range(60):
        label = number % 2
        brightness = rng.integers(90 + 20 * label, 200)
        path = folder / f"{number}.png"
        Image.fromarray(rng.integers(0, brightness, (40, 40, 3), dtype=np.uint8)).save(path)
        samples.append(Sample(path, label, hashlib.sha256(path.read_bytes()).hexdigest()))
    return Splits(
        classes=("A", "B"),
        train=Split("train", tuple(samples[:30])),
        valid=Split("valid", tuple(samples[30:50])),
        test=Split("test", tuple(samples[50:])),
        fingerprint="0" * 16,
        source="drawn for the test",
    )


@pytest.fixture(scope="module")
def bench(splits: Splits, tmp_path_factory: pytest.TempPathFactory) -> Iterator[Workbench]:
    with closing(Workbench(splits, tmp_path_factory.mktemp("project"), CPU)) as bench:
        yield bench


@pytest.fixture(scope="module")
def config() -> ExperimentConfig:
    values = {"data.image_size": 32, "model.weights": "random", "features.backend": "torch-fp32"}
    return with_values(ExperimentConfig(), values | {"train.batch_size": 8, "train.num_epochs": 3})


def record(number: int, lr: float, *, best_epoch: int = 2) -> TrialRecord:
    return TrialRecord(
        number=number,
        state="COMPLETE",
        value=0.5,
        values={"train.lr": lr},
        run_id=None,
        best_epoch=best_epoch,
        num_epochs=3,
        seconds=1.0,
        cause=None,
    )


@pytest.fixture(scope="module")
def members(bench: Workbench, config: ExperimentConfig) -> list[Refitted]:
    return [refit(bench, config, record(number, lr)) for number, lr in enumerate((0.01, 0.1, 0.001))]


def test_refit_on_both_keeps_other_weights_than_it_is_calibrated_on(bench: Workbench, config: ExperimentConfig) -> None:
    on_both = refit(bench, config, record(0, 0.01))
    on_train = refit(bench, with_values(config, {"search.refit": "train"}), record(0, 0.01))
    assert torch.equal(on_both.valid_logits, on_train.valid_logits)
    feeds = bench.feeds(config)
    assert torch.equal(evaluate(on_train.model, feeds.valid, device=CPU).logits, on_train.valid_logits)
    assert not torch.equal(evaluate(on_both.model, feeds.valid, device=CPU).logits, on_both.valid_logits)
    assert on_both.epochs[-1].global_step == 3 * -(-50 // 8)


def test_refit_on_both_ends_with_the_epoch_that_the_trial_kept(bench: Workbench, config: ExperimentConfig) -> None:
    assert [epoch.epoch for epoch in refit(bench, config, record(0, 0.01, best_epoch=1)).epochs] == [0, 1]


def test_temperature_lowers_the_log_loss_on_valid(members: list[Refitted]) -> None:
    for member in members:
        plain = cross_entropy(member.valid_logits, member.valid_labels)
        assert cross_entropy(member.valid_logits / member.temperature, member.valid_labels) <= plain


def test_ensemble_answers_as_the_mean_of_its_heads(bench: Workbench, config: ExperimentConfig) -> None:
    members = [refit(bench, config, record(number, lr)) for number, lr in enumerate((0.01, 0.1))]
    together = average(bench, members)
    test = bench.feeds(config).test
    heads = [evaluate(member.model, test, device=CPU).logits / member.temperature for member in members]
    torch.testing.assert_close(evaluate(together.model, test, device=CPU).logits, torch.stack(heads).mean(0))
    calibrated = [member.valid_logits / member.temperature for member in members]
    torch.testing.assert_close(together.valid_logits, torch.stack(calibrated).mean(0))


def test_ensemble_of_one_is_that_one(bench: Workbench, members: list[Refitted]) -> None:
    assert average(bench, members[:1]) is members[0]


@pytest.mark.parametrize(
    ("values", "told"),
    [
        ({"model.trainable": "layer4"}, "model.trainable must be head"),
        ({"search.space": {"data.crop_share": {"type": "float", "low": 0.8, "high": 1.0}}}, "train fields"),
    ],
)
def test_ensemble_needs_heads_over_one_network(values: dict[str, object], told: str) -> None:
    from dogbreed_ml.config import from_dict, to_dict

    plain = to_dict(ExperimentConfig())
    for dotted, value in ({"search.ensemble": 3} | values).items():
        section, _, leaf = dotted.partition(".")
        plain[section][leaf] = value
    with pytest.raises(ConfigError, match=told):
        from_dict(plain)
