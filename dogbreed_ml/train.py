"""Training as a generator: `fit` yields one EpochResult per epoch and knows nothing of who reads them."""

import contextlib
import math
from collections.abc import Callable, Generator, Iterator
from dataclasses import dataclass
from functools import partial
from time import perf_counter
from typing import Any, Protocol

import torch
from torch import Tensor, nn

from dogbreed_ml.config import TrainConfig
from dogbreed_ml.spans import NO_SPANS, Spans

EVALUATION_BATCH_SIZE = 256


class Batches(Protocol):
    """What feeds a training: images or kept features of one split."""

    labels: Tensor
    """(n,) int64."""

    @property
    def num_samples(self) -> int: ...

    def batches(self, batch_size: int, *, order: Tensor | None, epoch: int) -> Iterator[tuple[Tensor, Tensor]]:
        """Yields inputs (B, ...) and labels (B,) int64, in `order` or as they stand (then without augmentation)."""


Metrics = Callable[[Tensor, Tensor], dict[str, float]]
"""Logits (n, K) float32 and labels (n,) int64 to named figures; `evaluation.compute_metrics` in this project."""


@dataclass(frozen=True)
class EpochResult:
    """What one epoch came to."""

    epoch: int
    """From 0."""
    global_step: int
    """Optimizer steps done so far."""
    metrics: dict[str, float]
    """By MLflow name: train/loss, train/lr, and valid/... where there is a valid split."""
    seconds: float
    is_best: bool
    """Whether the model is left with this epoch's weights if training stops here: true without patience; with it,
    where valid/loss is the lowest so far."""
    ended_ms: int | None = None
    """When it ended, ms since 1970, where that is not now: of an epoch trained before a training was resumed."""

    def render(self) -> str:
        """The one line that an epoch logs; SageMaker's metric regex reads it."""
        figures = " ".join(f"{name}={value:.6g}" for name, value in self.metrics.items())
        return f"epoch={self.epoch} {figures}"


@dataclass(frozen=True)
class Evaluated:
    """A model's answers on one split."""

    logits: Tensor
    """(n, K) float32 on the CPU."""
    labels: Tensor
    """(n,) int64 on the CPU."""


@dataclass
class FitState:
    """Where a training stands after an epoch. Handed in again as it was saved, the training goes on from there.

    `fit` keeps `values` up to date; they refer to the live tensors, so save them before the next epoch is asked for.
    """

    values: dict[str, Any] | None = None
    """Tensors, numbers and dicts of them, as torch.load with weights_only=True takes them; None before an epoch."""


def fit(
    model: nn.Module,
    train: Batches,
    *,
    valid: Batches | None,
    config: TrainConfig,
    metrics: Metrics,
    num_classes: int,
    device: torch.device,
    spans: Spans = NO_SPANS,
    loss_function: nn.Module | None = None,
    state: FitState | None = None,
) -> Generator[EpochResult]:
    """Trains `model` in place and yields after each epoch.

    `model` maps what `train` yields to logits (B, K); parameters that do not require gradients stay as they are.
    Without `patience` the model is left as the last epoch had it, with it as the best one had it, whether the loop
    ends by itself or is left early (the generator closed). The same seed on the same device gives the same losses.
    `loss_function` is what `build_loss` makes; a debugger makes it beforehand, to hook onto it. With a `state` that
    was saved, only the epochs after it are trained and yielded, and they are the same as without the interruption.
    """
    with spans.span("initialisation"):
        model.to(device)
        if loss_function is None:
            loss_function = build_loss(train.labels, config, num_classes)
        loss_function.to(device)
        num_steps = math.ceil(train.num_samples / config.batch_size) * config.num_epochs
        optimizer = _optimizer(model, config)
        schedule = _schedule(optimizer, config, num_steps)
    autocast = _autocast(model, config, device)
    placed = partial(_placed, device=device, memory_format=config.memory_format)
    progress = _Progress()
    if state is not None and state.values is not None:
        progress.restore(state.values, model, optimizer, schedule)
    devices = [device] if device.type == "cuda" else []
    try:
        for epoch in range(progress.num_epochs, config.num_epochs):
            if progress.is_over(config):
                break
            start = perf_counter()
            order_generator = torch.Generator().manual_seed(config.seed * 100_003 + epoch)
            order = torch.randperm(train.num_samples, generator=order_generator)
            model.train()
            loss_sum = torch.zeros((), device=device)
            lr = optimizer.param_groups[0]["lr"]
            # Dropout draws from the global generator; seeded per epoch, no other draw in the process moves it.
            with torch.random.fork_rng(devices=devices), _few_threads(model, device):
                torch.manual_seed(config.seed * 100_003 + epoch)
                batches = train.batches(config.batch_size, order=order, epoch=epoch)
                while True:
                    with spans.span("data_wait"):
                        batch = next(batches, None)
                    if batch is None:
                        break
                    loss_sum += _step(model, batch, loss_function, optimizer, autocast, placed, spans)
                    schedule.step()
                    progress.global_step += 1
            figures = {"train/loss": float(loss_sum) / train.num_samples, "train/lr": lr}
            if valid is not None:
                with spans.span("evaluation"), _few_threads(model, device):
                    evaluated = evaluate(model, valid, device=device, autocast=autocast, spans=spans)
                figures |= {f"valid/{k}": v for k, v in metrics(evaluated.logits, evaluated.labels).items()}
            is_best = config.patience is None or valid is None or figures["valid/loss"] < progress.best_loss
            progress.note(figures.get("valid/loss", math.inf), model if config.patience is not None else None, is_best)
            if state is not None:
                state.values = progress.saved(model, optimizer, schedule)
            result = EpochResult(epoch, progress.global_step, figures, perf_counter() - start, is_best)
            with spans.span("logging"):
                yield result
    finally:
        if progress.best_weights is not None:
            model.load_state_dict(progress.best_weights)


@dataclass
class _Progress:
    """What a training remembers from epoch to epoch beside its model, optimizer and schedule."""

    num_epochs: int = 0
    global_step: int = 0
    best_loss: float = math.inf
    epochs_since_best: int = 0
    best_weights: dict[str, Tensor] | None = None

    def note(self, loss: float, model: nn.Module | None, is_best: bool) -> None:
        """An epoch has ended; `model` is given where its best weights are to be kept."""
        self.num_epochs += 1
        if not is_best:
            self.epochs_since_best += 1
            return
        self.best_loss, self.epochs_since_best = loss, 0
        if model is not None:
            self.best_weights = {name: tensor.detach().clone() for name, tensor in model.state_dict().items()}

    def is_over(self, config: TrainConfig) -> bool:
        return config.patience is not None and self.epochs_since_best >= config.patience

    def saved(
        self, model: nn.Module, optimizer: torch.optim.Optimizer, schedule: torch.optim.lr_scheduler.LRScheduler
    ) -> dict[str, Any]:
        parts = {"model": model.state_dict(), "optimizer": optimizer.state_dict(), "schedule": schedule.state_dict()}
        return vars(self) | parts

    def restore(
        self,
        values: dict[str, Any],
        model: nn.Module,
        optimizer: torch.optim.Optimizer,
        schedule: torch.optim.lr_scheduler.LRScheduler,
    ) -> None:
        model.load_state_dict(values["model"])
        optimizer.load_state_dict(values["optimizer"])
        schedule.load_state_dict(values["schedule"])
        for name in vars(self):
            setattr(self, name, values[name])


def build_loss(labels: Tensor, config: TrainConfig, num_classes: int) -> nn.CrossEntropyLoss:
    """The loss that `fit` minimises: logits (B, K) float and labels (B,) int64 to a scalar."""
    weight = _class_weights(labels, config, num_classes)
    return nn.CrossEntropyLoss(weight=weight, label_smoothing=config.label_smoothing)


def evaluate(
    model: nn.Module,
    batches: Batches,
    *,
    device: torch.device,
    autocast: Callable[[], contextlib.AbstractContextManager[object]] = contextlib.nullcontext,
    spans: Spans = NO_SPANS,
) -> Evaluated:
    """The model's logits on every sample, in order, plain views only; the model is left in training mode as it was."""
    was_training = model.training
    model.eval()
    logits = []
    feed = batches.batches(EVALUATION_BATCH_SIZE, order=None, epoch=0)
    with torch.inference_mode(), autocast():
        while True:
            with spans.span("evaluation/data_wait"):
                batch = next(feed, None)
            if batch is None:
                break
            with spans.span("evaluation/transfer"):
                inputs = batch[0].to(device, non_blocking=True)
            with spans.span("evaluation/forward"):
                logits.append(model(inputs).float().cpu())
    model.train(was_training)
    return Evaluated(torch.cat(logits), batches.labels)


def _step(
    model: nn.Module,
    batch: tuple[Tensor, Tensor],
    loss_function: nn.Module,
    optimizer: torch.optim.Optimizer,
    autocast: Callable[[], contextlib.AbstractContextManager[object]],
    placed: Callable[[Tensor], Tensor],
    spans: Spans,
) -> Tensor:
    """One optimizer step; the batch's loss times its size, detached, on the device."""
    with spans.span("transfer"):
        inputs, labels = (placed(tensor) for tensor in batch)
    with spans.span("forward"), autocast():
        loss = loss_function(model(inputs).float(), labels)
    with spans.span("backward"):
        optimizer.zero_grad(set_to_none=True)
        loss.backward()
    with spans.span("optimizer"):
        optimizer.step()
    result: Tensor = loss.detach() * len(labels)
    return result


def _placed(tensor: Tensor, *, device: torch.device, memory_format: str) -> Tensor:
    """On the device; images and feature maps (B, C, H, W) in that order of memory."""
    if memory_format == "auto" or tensor.ndim != 4:
        return tensor.to(device, non_blocking=True)
    wanted = torch.channels_last if memory_format == "channels_last" else torch.contiguous_format
    return tensor.to(device, non_blocking=True, memory_format=wanted)


@contextlib.contextmanager
def _few_threads(model: nn.Module, device: torch.device) -> Iterator[None]:
    """One torch thread while a head alone is trained on the CPU.

    Its steps take 0.2 ms: a second thread wins nothing, and where another process is busy too the threads wait for
    each other (measured beside one other training: 0.8 s with one thread, 17 to 46 s with two).
    """
    num_threads = torch.get_num_threads()
    if device.type != "cpu" or num_threads == 1 or _has_convolutions(model):
        yield
        return
    torch.set_num_threads(1)
    try:
        yield
    finally:
        torch.set_num_threads(num_threads)


def _has_convolutions(model: nn.Module) -> bool:
    return any(isinstance(module, nn.Conv2d) for module in model.modules())


def _class_weights(labels: Tensor, config: TrainConfig, num_classes: int) -> Tensor:
    if config.class_weights == "none":
        return torch.ones(num_classes)
    counts = torch.bincount(labels, minlength=num_classes).clamp(min=1)
    return len(labels) / (num_classes * counts.float())


def _optimizer(model: nn.Module, config: TrainConfig) -> torch.optim.Optimizer:
    trained = [parameter for parameter in model.parameters() if parameter.requires_grad]
    groups = [
        {"params": [p for p in trained if p.ndim > 1], "weight_decay": config.weight_decay},
        {"params": [p for p in trained if p.ndim <= 1], "weight_decay": 0.0},
    ]
    # Fused: one kernel a step instead of one a parameter, which counts where a whole step takes 0.2 ms.
    if config.optimizer == "sgd":
        return torch.optim.SGD(groups, lr=config.lr, momentum=0.9, nesterov=True, fused=True)
    kind = torch.optim.AdamW if config.optimizer == "adamw" else torch.optim.Adam
    return kind(groups, lr=config.lr, fused=True)


def _schedule(
    optimizer: torch.optim.Optimizer, config: TrainConfig, num_steps: int
) -> torch.optim.lr_scheduler.LRScheduler:
    if config.schedule == "cosine":
        return torch.optim.lr_scheduler.CosineAnnealingLR(optimizer, T_max=num_steps)
    if config.schedule == "one_cycle":
        # One step more than is taken: the scheduler refuses the step after its last.
        return torch.optim.lr_scheduler.OneCycleLR(
            optimizer, max_lr=config.lr, total_steps=num_steps + 1, cycle_momentum=False
        )
    return torch.optim.lr_scheduler.ConstantLR(optimizer, factor=1.0)


def uses_bf16(config: TrainConfig, device: torch.device, *, has_convolutions: bool) -> bool:
    """What train.precision comes to here, for a trained part with convolutions or without."""
    if config.precision != "auto" or device.type == "cuda":
        return config.precision != "fp32"
    return has_convolutions and bool(torch.ops.mkldnn._is_mkldnn_bf16_supported())


def _autocast(
    model: nn.Module, config: TrainConfig, device: torch.device
) -> Callable[[], contextlib.AbstractContextManager[object]]:
    if not uses_bf16(config, device, has_convolutions=_has_convolutions(model)):
        return contextlib.nullcontext
    return lambda: torch.autocast(device.type, dtype=torch.bfloat16)
