"""What `auto` means for serving: the fastest back end here that agrees with torch fp32 on the example images."""

import logging
import statistics
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from time import perf_counter

import numpy as np
from numpy.typing import NDArray

from dogbreed_ml.backend import MIN_COSINE, Backend, Images, Outputs, min_cosine, run_all
from dogbreed_ml.errors import BackendError
from dogbreed_ml.examples import example_images
from dogbreed_ml.policies import ServingBackendName
from dogbreed_ml.transforms import Preprocessing, decode_image, to_square

logger = logging.getLogger(__name__)

MAX_PROBABILITY_DIFFERENCE = 0.05
"""A back end agrees where no probability on the example images differs more from torch fp32's.

bf16 rounds to 3 digits: of ResNet50 with ImageNet weights it was off by 0.03 at most.
"""

MIN_INT8_COSINE = 0.99
"""For openvino-int8 alone: its accuracy was measured on valid when it was made; single probabilities are 0.2 off."""

_NUM_TIMED = 5


@dataclass(frozen=True)
class ServingChoice:
    """What `auto` chose, and why."""

    name: ServingBackendName
    latency_ms: dict[str, float]
    """Median of one image's forward pass, by candidate."""
    refused: dict[str, str]
    """Candidates that disagree with torch fp32, each with its difference."""


def choose_serving_backend(
    build: Callable[[ServingBackendName], Backend],
    candidates: Sequence[ServingBackendName],
    *,
    preprocessing: Preprocessing,
    temperature: float = 1.0,
) -> tuple[Backend, ServingChoice]:
    """The candidate with the shortest forward pass of one image that agrees with torch fp32 on the example images.

    Agreement is a cosine of the logits of at least MIN_COSINE and probabilities within MAX_PROBABILITY_DIFFERENCE; of
    openvino-int8 it is a cosine of MIN_INT8_COSINE. fp32 back ends are tried only where nothing else agrees: on the
    same machine they are slower.
    """
    squares = np.stack([to_square(decode_image(data), preprocessing) for data in example_images()])
    torch_fp32 = build("torch-fp32")
    reference = run_all(torch_fp32, squares).astype(np.float32)
    latency_ms: dict[str, float] = {}
    refused: dict[str, str] = {}
    for group in ([n for n in candidates if "fp32" not in n], [n for n in candidates if "fp32" in n]):
        built = {name: torch_fp32 if name == "torch-fp32" else build(name) for name in group}
        latency_ms |= {name: _latency_ms(backend, squares[:1]) for name, backend in built.items()}
        for name in sorted(built, key=lambda each: latency_ms[each]):
            logits = run_all(built[name], squares).astype(np.float32)
            difference = _disagreement(logits, reference, temperature, is_int8=name == "openvino-int8")
            if difference is None:
                logger.info("back end %s chosen: %.1f ms an image", name, latency_ms[name])
                return built[name], ServingChoice(name, latency_ms, refused)
            refused[name] = difference
            logger.warning("%s disagrees with torch-fp32 on the example images (%s).", name, difference)
    raise BackendError(f"No back end of {', '.join(candidates)} gives finite logits; are the weights damaged?")


def _disagreement(
    logits: NDArray[np.float32], reference: NDArray[np.float32], temperature: float, *, is_int8: bool
) -> str | None:
    """What is wrong with a back end's logits (B, K); None where they agree."""
    cosine = min_cosine(logits, reference)
    difference = float(np.abs(softmax(logits, temperature) - softmax(reference, temperature)).max())
    # Not `<`: each comparison with NaN is false.
    agrees = cosine >= MIN_COSINE and difference <= MAX_PROBABILITY_DIFFERENCE
    if agrees or (is_int8 and cosine >= MIN_INT8_COSINE):
        return None
    return f"cosine of logits {cosine:.5f}, probabilities up to {difference:.4f} apart"


def _latency_ms(backend: Backend, square: Images) -> float:
    run_all(backend, square)
    times = []
    for _ in range(_NUM_TIMED):
        start = perf_counter()
        run_all(backend, square)
        times.append((perf_counter() - start) * 1000)
    return round(statistics.median(times), 2)


def softmax(logits: Outputs, temperature: float) -> NDArray[np.float64]:
    """(B, K). In numpy: torch's softmax and topk wake its threads, 0.27 ms of a forward pass of 10."""
    wide = logits.astype(np.float64) / temperature
    powers = np.exp(wide - wide.max(axis=1, keepdims=True))
    shares: NDArray[np.float64] = powers / powers.sum(axis=1, keepdims=True)
    return shares
