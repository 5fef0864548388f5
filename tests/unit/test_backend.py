"""Back ends: the same numbers as torch fp32, in order, or a refusal by name."""

from collections.abc import Iterable, Iterator

import numpy as np
import pytest
import torch
from torch import nn

from dogbreed_ml.backend import (
    MIN_COSINE,
    Backend,
    Images,
    Outputs,
    available_backends,
    batched,
    build_backend,
    check_agreement,
    choose_backend,
    min_cosine,
    run_all,
)
from dogbreed_ml.config import BackendName
from dogbreed_ml.errors import BackendError
from dogbreed_ml.model import Normalize

CPU = torch.device("cpu")
SIZE = 32


@pytest.fixture
def module() -> nn.Module:
    torch.manual_seed(0)
    return nn.Sequential(
        Normalize(), nn.Conv2d(3, 8, 3), nn.BatchNorm2d(8), nn.ReLU(), nn.AdaptiveAvgPool2d(1), nn.Flatten(1)
    ).eval()


@pytest.fixture
def images() -> Images:
    return np.random.default_rng(0).integers(0, 256, (11, SIZE, SIZE, 3), dtype=np.uint8)


@pytest.fixture
def reference(module: nn.Module, images: Images) -> Outputs:
    with torch.inference_mode():
        output: Outputs = module(torch.from_numpy(images).permute(0, 3, 1, 2)).numpy()
    return output


class Wrong:
    """A back end whose outputs have nothing to do with the module."""

    name = "openvino-bf16"
    batch_size = 4
    dtype = np.float16

    def __init__(self, value: float):
        self._value = value

    def run(self, batches: Iterable[Images]) -> Iterator[Outputs]:
        for batch in batches:
            output = np.full((len(batch), 8), self._value, dtype=np.float32)
            output[:, ::2] *= -1
            yield output


@pytest.mark.parametrize("name", available_backends(CPU))
def test_backend_agrees_with_torch_fp32(
    name: BackendName, module: nn.Module, images: Images, reference: Outputs
) -> None:
    backend = build_backend(name, module, image_size=SIZE, device=CPU)
    outputs = run_all(backend, images)
    assert outputs.shape == reference.shape
    assert check_agreement(backend, images, reference) >= MIN_COSINE
    if name.endswith("fp32"):
        assert backend.dtype == np.float32
        np.testing.assert_allclose(outputs, reference, rtol=1e-4, atol=1e-5)
    else:
        assert backend.dtype == np.float16


@pytest.mark.parametrize("name", available_backends(CPU))
def test_backend_yields_one_output_a_batch_in_order_and_can_run_again(
    name: BackendName, module: nn.Module, images: Images, reference: Outputs
) -> None:
    backend = build_backend(name, module, image_size=SIZE, device=CPU)
    for _ in range(2):
        outputs = list(backend.run(batched(images, backend.batch_size)))
        assert [len(output) for output in outputs] == [len(b) for b in batched(images, backend.batch_size)]
        assert min_cosine(np.concatenate(outputs), reference) >= MIN_COSINE


@pytest.mark.parametrize("name", available_backends(CPU))
def test_backend_left_in_the_middle_can_run_again(
    name: BackendName, module: nn.Module, images: Images, reference: Outputs
) -> None:
    backend = build_backend(name, module, image_size=SIZE, device=CPU)
    for _ in range(5):
        run = backend.run(batched(images, backend.batch_size))
        next(iter(run))
        run.close()  # type: ignore[attr-defined]
    assert min_cosine(run_all(backend, images), reference) >= MIN_COSINE


def test_this_cpu_has_torch_fp32_and_never_a_gpus_backend() -> None:
    available = available_backends(CPU)
    assert "torch-fp32" in available
    assert "torch-amp" not in available


def test_backend_of_another_device_is_refused_with_the_choices(module: nn.Module) -> None:
    with pytest.raises(BackendError, match="must be one that runs on this cpu: auto, .*got torch-amp"):
        build_backend("torch-amp", module, image_size=SIZE, device=CPU)


@pytest.mark.parametrize("value", [1.0, float("nan")])
def test_disagreeing_backend_is_refused_by_name(value: float, images: Images, reference: Outputs) -> None:
    with pytest.raises(BackendError, match="openvino-bf16 must agree with torch-fp32 to a cosine of 0.999"):
        check_agreement(Wrong(value), images, reference)


def test_choice_passes_over_a_backend_that_disagrees(
    module: nn.Module, images: Images, reference: Outputs, caplog: pytest.LogCaptureFixture
) -> None:
    def build(name: BackendName) -> Backend:
        if name.endswith("fp32"):
            return build_backend(name, module, image_size=SIZE, device=CPU)
        wrong = Wrong(1.0)
        wrong.name = name
        return wrong

    backend, choice = choose_backend(build, images, reference, device=CPU)
    assert choice.name.endswith("fp32")
    assert backend.name == choice.name
    refused = [name for name in available_backends(CPU) if not name.endswith("fp32")]
    assert all(f"{name} must agree" in caplog.text for name in refused)
    assert set(choice.images_per_s) == set(available_backends(CPU))


def test_choice_takes_the_fastest_that_agrees(module: nn.Module, images: Images, reference: Outputs) -> None:
    def build(name: BackendName) -> Backend:
        return build_backend(name, module, image_size=SIZE, device=CPU)

    _, choice = choose_backend(build, images, reference, device=CPU)
    assert choice.images_per_s[choice.name] == max(choice.images_per_s.values())
