"""The config sections beside the training: how it is profiled, when a model may become champion, how it is served."""

from dataclasses import dataclass, field
from typing import Any, Literal, get_args

from dogbreed_ml.checks import require, require_choice, require_number
from dogbreed_ml.ruleparameters import TENSOR_RULES, RuleName, check_parameters, split_parameters

ServingBackendName = Literal[
    "auto", "torch-fp32", "torch-bf16", "torch-amp", "openvino-fp32", "openvino-bf16", "openvino-int8"
]


@dataclass(frozen=True)
class ProfileConfig:
    """The profiler: what is recorded of a run, and what its rules tolerate."""

    enabled: bool = False
    """Whether train and tune record a profile and judge it; the verb profile always does."""
    interval_ms: float = 500.0
    """Milliseconds between two samples of the machine's use."""
    trace_start: int = 10
    """The first training step of the torch.profiler window."""
    trace_steps: int = 0
    """Training steps that torch.profiler traces, operator by operator; 0 traces none."""
    debugger: bool = False
    """Whether smdebug's hook saves losses, gradients, weights and activations, and tensor rules judge them."""
    save_interval: int = 50
    """Training steps from one that the debugger saves to the next."""
    max_gib: float = 4.0
    """Disk that saved tensors may take, GiB: half as many steps are saved whenever half of what was left is used."""
    stop_on: list[RuleName] = field(default_factory=list)
    """Tensor rules that end the training when they trigger; needs debugger."""
    sagemaker_rules: bool = False
    """Whether training jobs also ask for SageMaker's own Debugger rules; closed to new accounts since 2026-07-30."""
    rules: dict[str, Any] = field(default_factory=dict)
    """Parameters of rules other than SageMaker's defaults, as RULE_PARAMETER: {StepOutlier_stddev: 2}."""

    def __post_init__(self) -> None:
        require_number("profile.interval_ms", self.interval_ms, low=10)
        require_number("profile.trace_start", self.trace_start, low=0)
        require_number("profile.trace_steps", self.trace_steps, low=0)
        require_number("profile.save_interval", self.save_interval, low=1)
        require_number("profile.max_gib", self.max_gib, low=0, low_open=True)
        for name in self.stop_on:
            require_choice("profile.stop_on", name, TENSOR_RULES)
        require(
            self.debugger or not self.stop_on, "profile.stop_on needs profile.debugger to be true", list(self.stop_on)
        )
        check_parameters(self.rules)

    @property
    def profiler_rules(self) -> dict[str, Any]:
        """The keys of SageMaker's ProfilerReport."""
        return split_parameters(self.rules)[0]

    @property
    def tensor_rules(self) -> dict[str, dict[str, Any]]:
        """Parameters by tensor rule."""
        return split_parameters(self.rules)[1]


@dataclass(frozen=True)
class PromotionConfig:
    """The gate: what a challenger must show before it becomes champion."""

    max_p_value: float = 0.05
    """Refuses where the challenger is less accurate and McNemar's exact two-sided p-value is below this."""
    max_p95_ratio: float = 1.2
    """Refuses where the lower 95 % bound of challenger p95 / champion p95 is above this."""
    max_breed_drop: float = 0.15
    """Refuses where a breed's recall falls by more than this share."""
    min_breed_images: int = 20
    """Breeds with fewer test images than this are shown, but refuse nothing."""
    min_accuracy_top1: float = 0.5
    """What the first champion must reach on the test split."""
    max_p95_ms: float = 1000.0
    """What the first champion's p95 latency may be, one client, ms."""
    num_rounds: int = 5
    """Rounds in which the servers are measured in turns."""
    num_requests: int = 40
    """Requests to each server in a round."""

    def __post_init__(self) -> None:
        require_number("promotion.max_p_value", self.max_p_value, low=0, high=1)
        require_number("promotion.max_p95_ratio", self.max_p95_ratio, low=0, low_open=True)
        require_number("promotion.max_breed_drop", self.max_breed_drop, low=0, high=1)
        require_number("promotion.min_breed_images", self.min_breed_images, low=1)
        require_number("promotion.min_accuracy_top1", self.min_accuracy_top1, low=0, high=1)
        require_number("promotion.max_p95_ms", self.max_p95_ms, low=0, low_open=True)
        require_number("promotion.num_rounds", self.num_rounds, low=5)
        require_number("promotion.num_requests", self.num_requests, low=20)


@dataclass(frozen=True)
class DeployConfig:
    """The server: what runs the model, and how much it takes on."""

    backend: ServingBackendName = "auto"
    """What runs the network; auto takes the fastest here that agrees with torch fp32 on the model's example images."""
    min_probability: float = 0.0
    """Below this the answer is `unsure`; `dogbreed evaluate` draws coverage and accuracy over it."""
    num_workers: int = 1
    """Worker processes that each hold the model."""
    max_batch_size: int = 16
    """Images of concurrent requests that are run together; none waits for others to come."""
    queue_size: int = 64
    """Images that may wait; past it the answer is 503 with Retry-After."""
    timeout_s: float = 10.0
    """How long a request may take in all, in seconds."""
    grace_s: float = 30.0
    """How long requests in flight may take to end once the server is told to stop, in seconds."""
    max_body_mib: float = 20.0
    """Largest body of a request, MiB."""
    max_megapixels: float = 64.0
    """Largest image, millions of pixels."""

    def __post_init__(self) -> None:
        require_choice("deploy.backend", self.backend, get_args(ServingBackendName))
        require_number("deploy.min_probability", self.min_probability, low=0, high=1)
        require_number("deploy.num_workers", self.num_workers, low=1, high=64)
        require_number("deploy.max_batch_size", self.max_batch_size, low=1, high=256)
        require_number("deploy.queue_size", self.queue_size, low=1)
        require_number("deploy.timeout_s", self.timeout_s, low=0.1)
        require_number("deploy.grace_s", self.grace_s, low=0)
        require_number("deploy.max_body_mib", self.max_body_mib, low=0, low_open=True)
        require_number("deploy.max_megapixels", self.max_megapixels, low=0, low_open=True)
