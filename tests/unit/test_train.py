"""Learning itself: what fit promises of losses, weights, seeds and stopping."""

from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path

import pytest
import torch
from memorybatches import MemoryBatches
from torch import Tensor, nn

from dogbreed_ml.config import ModelConfig, TrainConfig
from dogbreed_ml.evaluation import compute_metrics
from dogbreed_ml.model import build_network, load_weights, new_head
from dogbreed_ml.spans import SpanTotals
from dogbreed_ml.train import Batches, EpochResult, FitState, evaluate, fit

CPU = torch.device("cpu")


@pytest.fixture
def clusters() -> MemoryBatches:
    """Three well separated classes in 2048 dimensions, 20 samples each."""
    # Not a seed that heads are drawn from: the same bits would correlate the centres with the weights.
    generator = torch.Generator().manual_seed(123)
    labels = torch.arange(60) % 3
    centres = torch.randn(3, 2048, generator=generator)
    return MemoryBatches(centres[labels] + 0.5 * torch.randn(60, 2048, generator=generator), labels)


def run(
    model: nn.Module, train: Batches, config: TrainConfig, *, valid: Batches | None = None, num_classes: int = 3
) -> list[EpochResult]:
    return list(
        fit(model, train, valid=valid, config=config, metrics=compute_metrics, num_classes=num_classes, device=CPU)
    )


def test_twelve_images_are_overfitted_to_100_percent() -> None:
    generator = torch.Generator().manual_seed(1)
    images = torch.randint(0, 256, (12, 3, 64, 64), dtype=torch.uint8, generator=generator)
    train = MemoryBatches(images, torch.arange(12) % 3)
    config = ModelConfig(weights="random", trainable="layer4")
    network = build_network(config, 3, weights=load_weights(config), seed=0)
    run(network, train, TrainConfig(num_epochs=12, batch_size=12, lr=1e-3, schedule="none", precision="fp32"))
    # In training mode, as the batch norms saw these twelve images.
    network.train()
    assert torch.equal(network(images).argmax(1), train.labels)


@pytest.mark.parametrize("optimizer", ["adamw", "sgd", "adam"])
@pytest.mark.parametrize("schedule", ["cosine", "one_cycle", "none"])
def test_every_optimizer_and_schedule_learns(clusters: MemoryBatches, optimizer: str, schedule: str) -> None:
    config = TrainConfig(num_epochs=3, batch_size=16, lr=1e-3, optimizer=optimizer, schedule=schedule)  # type: ignore[arg-type]
    results = run(new_head(3, seed=0), clusters, config, valid=clusters)
    assert results[-1].metrics["valid/accuracy_top1"] == 1.0
    assert results[-1].metrics["train/loss"] < results[0].metrics["train/loss"]


def test_same_seed_gives_the_same_losses_and_another_seed_others(clusters: MemoryBatches) -> None:
    def losses(seed: int) -> list[float]:
        torch.rand(3)  # an unrelated draw must not matter
        model = nn.Sequential(nn.Dropout(0.5), new_head(3, seed=seed))
        return [r.metrics["train/loss"] for r in run(model, clusters, TrainConfig(num_epochs=3, seed=seed))]

    assert losses(3) == losses(3)
    assert losses(3) != losses(4)


@pytest.mark.parametrize("schedule", ["cosine", "one_cycle"])
@pytest.mark.parametrize("patience", [None, 2])
def test_training_that_goes_on_from_its_state_is_the_same(
    clusters: MemoryBatches, tmp_path: Path, schedule: str, patience: int | None
) -> None:
    config = TrainConfig(num_epochs=5, batch_size=16, lr=0.3, schedule=schedule, patience=patience)  # type: ignore[arg-type]

    def epochs(model: nn.Module, state: FitState | None) -> Iterator[EpochResult]:
        return fit(
            model,
            clusters,
            valid=clusters,
            config=config,
            metrics=compute_metrics,
            num_classes=3,
            device=CPU,
            state=state,
        )

    def build() -> nn.Module:
        return nn.Sequential(nn.Dropout(0.5), new_head(3, seed=0))

    whole_model, resumed_model = build(), build()
    whole = list(epochs(whole_model, None))
    state, results = FitState(), []
    for result in epochs(build(), state):
        results.append(result)
        torch.save(state.values, tmp_path / "state.pt")
        if len(results) == 2:
            break
    results += epochs(resumed_model, FitState(torch.load(tmp_path / "state.pt", weights_only=True)))
    assert [(each.epoch, each.global_step, each.metrics, each.is_best) for each in results] == [
        (each.epoch, each.global_step, each.metrics, each.is_best) for each in whole
    ]
    for ours, expected in zip(resumed_model.state_dict().values(), whole_model.state_dict().values(), strict=True):
        assert torch.equal(ours, expected)


def test_training_that_was_over_when_its_state_was_kept_trains_no_more(clusters: MemoryBatches) -> None:
    config, state, model = TrainConfig(num_epochs=2, batch_size=16), FitState(), new_head(3, seed=0)
    for values in (None, "kept"):
        results = list(
            fit(
                model,
                clusters,
                valid=None,
                config=config,
                metrics=compute_metrics,
                num_classes=3,
                device=CPU,
                state=state,
            )
        )
        assert len(results) == (2 if values is None else 0)


def test_frozen_layers_do_not_move() -> None:
    images = torch.randint(0, 256, (8, 3, 64, 64), dtype=torch.uint8)
    config = ModelConfig(weights="random", trainable="layer4")
    network = build_network(config, 2, weights=load_weights(config), seed=0)
    before = {name: tensor.clone() for name, tensor in network.resnet.state_dict().items()}
    run(network, MemoryBatches(images, torch.arange(8) % 2), TrainConfig(num_epochs=1, batch_size=8), num_classes=2)
    moved = {name for name, tensor in network.resnet.state_dict().items() if not torch.equal(tensor, before[name])}
    assert moved
    assert all(name.startswith(("layer4.", "fc.")) for name in moved)


@pytest.mark.parametrize("memory_format", ["auto", "channels_last", "contiguous"])
@pytest.mark.parametrize("loaded_as", [torch.channels_last, torch.contiguous_format])
def test_memory_format_is_what_the_network_gets(memory_format: str, loaded_as: torch.memory_format) -> None:
    got: list[bool] = []

    class Seeing(nn.Flatten):
        def forward(self, images: Tensor) -> Tensor:
            got.append(images.is_contiguous(memory_format=torch.channels_last))
            return super().forward(images)

    images = torch.randn(4, 3, 5, 5).contiguous(memory_format=loaded_as)
    config = TrainConfig(num_epochs=1, batch_size=4, memory_format=memory_format)  # type: ignore[arg-type]
    run(nn.Sequential(Seeing(), nn.Linear(75, 3)), MemoryBatches(images, torch.arange(4) % 3), config)
    assert got == [memory_format == "channels_last" or (memory_format == "auto" and loaded_as is torch.channels_last)]


def test_patience_stops_and_restores_the_best_epoch(clusters: MemoryBatches) -> None:
    generator = torch.Generator().manual_seed(5)
    noise = MemoryBatches(torch.randn(30, 2048, generator=generator), torch.arange(30) % 3)
    model = new_head(3, seed=0)
    results = run(
        model, clusters, TrainConfig(num_epochs=40, batch_size=8, lr=0.05, schedule="none", patience=3), valid=noise
    )
    best = min(results, key=lambda result: result.metrics["valid/loss"])
    assert len(results) == best.epoch + 4 < 40
    assert [r.epoch for r in results if r.is_best][-1] == best.epoch
    evaluated = evaluate(model, noise, device=CPU)
    assert compute_metrics(evaluated.logits, evaluated.labels)["loss"] == pytest.approx(best.metrics["valid/loss"])


@pytest.mark.parametrize("leaving", ["closed", "failed"])
def test_leaving_the_loop_with_patience_restores_the_best_epoch(clusters: MemoryBatches, leaving: str) -> None:
    class Failing(MemoryBatches):
        def batches(self, batch_size: int, *, order: Tensor | None, epoch: int) -> Iterator[tuple[Tensor, Tensor]]:
            if epoch == 3 and leaving == "failed":
                raise ZeroDivisionError
            return super().batches(batch_size, order=order, epoch=epoch)

    generator = torch.Generator().manual_seed(5)
    noise = MemoryBatches(torch.randn(30, 2048, generator=generator), torch.arange(30) % 3)
    model = new_head(3, seed=0)
    training = fit(
        model,
        Failing(clusters.inputs, clusters.labels),
        valid=noise,
        config=TrainConfig(num_epochs=40, batch_size=8, lr=0.05, schedule="none", patience=9),
        metrics=compute_metrics,
        num_classes=3,
        device=CPU,
    )
    results = [next(training) for _ in range(3)]
    if leaving == "closed":
        training.close()
    else:
        with pytest.raises(ZeroDivisionError):
            next(training)
    best = min(results, key=lambda result: result.metrics["valid/loss"])
    assert best.epoch < 2
    assert [each.epoch for each in results if each.is_best][-1] == best.epoch
    evaluated = evaluate(model, noise, device=CPU)
    assert compute_metrics(evaluated.logits, evaluated.labels)["loss"] == pytest.approx(best.metrics["valid/loss"])


def test_leaving_the_loop_keeps_the_last_epoch(clusters: MemoryBatches) -> None:
    model = new_head(3, seed=0)
    config = TrainConfig(num_epochs=5, lr=5e-3)
    for result in fit(model, clusters, valid=None, config=config, metrics=compute_metrics, num_classes=3, device=CPU):
        if result.epoch == 1:
            break
    assert result.global_step == 4
    assert evaluate(model, clusters, device=CPU).logits.argmax(1).eq(clusters.labels).all()


def test_balanced_class_weights_help_the_rare_class() -> None:
    generator = torch.Generator().manual_seed(2)
    labels = torch.tensor([0] * 95 + [1] * 5)
    # The two classes differ in one of 2048 dimensions alone, and overlap there.
    inputs = 0.1 * torch.randn(100, 2048, generator=generator)
    inputs[:, 0] += labels.float()
    train = MemoryBatches(inputs, labels)
    scores: dict[str, float] = {}
    for class_weights in ("none", "balanced"):
        model = new_head(2, seed=0)
        config = TrainConfig(num_epochs=3, batch_size=100, lr=3e-3)
        run(model, train, replace(config, class_weights=class_weights), num_classes=2)
        logits = evaluate(model, train, device=CPU).logits
        scores[class_weights] = float((logits[:, 1] - logits[:, 0])[labels == 1].mean())
    assert scores["balanced"] > scores["none"] + 0.1


def test_epoch_renders_as_one_line() -> None:
    result = EpochResult(3, 40, {"train/loss": 0.5, "valid/accuracy_top1": 0.8125}, seconds=1.0, is_best=True)
    assert result.render() == "epoch=3 train/loss=0.5 valid/accuracy_top1=0.8125"


def test_spans_cover_each_phase_of_each_step(clusters: MemoryBatches) -> None:
    spans = SpanTotals()
    list(
        fit(
            new_head(3, seed=0),
            clusters,
            valid=clusters,
            config=TrainConfig(num_epochs=1),
            metrics=compute_metrics,
            num_classes=3,
            device=CPU,
            spans=spans,
        )
    )
    step = {"data_wait", "transfer", "forward", "backward", "optimizer"}
    inside = {"evaluation/data_wait", "evaluation/transfer", "evaluation/forward"}
    assert set(spans.seconds) == step | inside | {"initialisation", "evaluation", "logging"}
