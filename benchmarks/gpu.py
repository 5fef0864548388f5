"""On a GPU: the feature pass beside the bare forward pass, and which part holds it back."""

import copy
import logging
import os
from collections import deque
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from time import perf_counter

import torch
from torch import Tensor, nn

from benchmarks.features import build_frozen, frozen_prefix, timed_table
from benchmarks.photographs import PREPROCESSING, Photographs, collect, squares
from benchmarks.results import Goal, Result, each, ratios
from benchmarks.settings import Settings
from dogbreed_ml.backend import Images, build_backend, device_of, run_all
from dogbreed_ml.data.splits import Sample
from dogbreed_ml.transforms import decode_image, to_square

logger = logging.getLogger(__name__)

_TITLE = "the feature pass on a GPU"
_BATCH_SIZE = 128


def measure(settings: Settings) -> Result:
    """Says so where there is no GPU."""
    device = device_of()
    if device.type != "cuda":
        return Result("gpu", _TITLE, (), ("not applicable: no GPU",))
    return measure_on(device, settings)


def measure_on(device: torch.device, settings: Settings) -> Result:
    """The pass, and each of its parts alone, turn by turn."""
    quick = settings.is_quick
    photographs = collect(settings, "gpu", num_breeds=4 if quick else 120, num_per_breed=8 if quick else 50)
    weights, network = build_frozen(settings)
    images = squares(photographs.samples)
    parts = _parts(network.prefix, images, photographs, device=device)
    rates: dict[str, list[float]] = {name: [] for name in parts}
    pass_rates, totals_s, chosen = [], [], ""
    for repetition in range(settings.num_repetitions):
        logger.info("gpu: repetition %d of %d", repetition + 1, settings.num_repetitions)
        for name, images_per_s in parts.items():
            rates[name].append(images_per_s())
        prefix = frozen_prefix(settings, weights)
        table, seconds = timed_table(settings, photographs, prefix, name=f"gpu-{repetition}")
        pass_rates.append(table.images_per_s)
        totals_s.append(seconds)
        chosen = table.backend
    figures = [
        each(f"the store's pass ({chosen}), decoding included", pass_rates, "images/s"),
        *(each(f"alone: {name}", values, "images/s") for name, values in rates.items()),
    ]
    forwards = [figure for figure in figures[1:] if "forward" in figure.name]
    best = max(forwards, key=lambda figure: figure.value)
    shares = [100 * share for share in ratios(pass_rates, list(best.values))]
    # The goal for the feature pass names no device.
    figures.append(each(f"the store's pass / {best.name}", shares, "%", goal=Goal("at least", 85)))
    figures.append(each("the store's whole call on an empty folder", totals_s, "s"))
    others = [figure for figure in figures[1 : 1 + len(parts)] if figure not in forwards]
    slowest = min([*others, best], key=lambda figure: figure.value)
    notes = (
        f"{photographs.describe()}; {torch.cuda.get_device_name(device)}, {os.cpu_count()} cores; batch {_BATCH_SIZE}, "
        "channels last.",
        f"What holds the pass back: {slowest.name.removeprefix('alone: ')}, the slowest of its parts alone "
        f"({slowest.value:,.0f} images/s).",
    )
    return Result("gpu", _TITLE, tuple(figures), notes)


def _parts(
    prefix: nn.Sequential, images: Images, photographs: Photographs, *, device: torch.device
) -> dict[str, Callable[[], float]]:
    """Each part of the pass as a function that runs it once and returns images/s."""
    amp = build_backend("torch-amp", prefix, image_size=images.shape[1], device=device)
    # build_backend has moved the prefix to the device, in channels last.
    on_device = torch.from_numpy(images).to(device).permute(0, 3, 1, 2)
    normalised = torch.cat([prefix[0](batch).to(torch.bfloat16) for batch in on_device.split(_BATCH_SIZE)])
    bf16 = copy.deepcopy(prefix[1:]).to(torch.bfloat16)
    pinned = torch.from_numpy(images).pin_memory()

    def rate(run: Callable[[], object]) -> float:
        torch.cuda.synchronize(device)
        start = perf_counter()
        run()
        torch.cuda.synchronize(device)
        return len(images) / (perf_counter() - start)

    def forward(module: nn.Module, tensors: Tensor, dtype: torch.dtype, *, autocast: bool) -> None:
        with torch.inference_mode(), torch.autocast("cuda", dtype=dtype, enabled=autocast):
            for batch in tensors.split(_BATCH_SIZE):
                module(batch)

    def square(sample: Sample) -> Images:
        return to_square(decode_image(sample.path.read_bytes()), PREPROCESSING)

    def decode() -> None:
        with ThreadPoolExecutor(os.cpu_count()) as pool:
            deque(pool.map(square, photographs.samples), maxlen=0)

    def transfer() -> None:
        for batch in pinned.split(_BATCH_SIZE):
            batch.to(device, non_blocking=True)

    def warm(run: Callable[[], object]) -> Callable[[], float]:
        run()
        return lambda: rate(run)

    return {
        "forward, bf16 weights, normalised bf16 tensors on the GPU": warm(
            lambda: forward(bf16, normalised, torch.bfloat16, autocast=False)
        ),
        "forward, AMP bf16, uint8 tensors on the GPU": warm(
            lambda: forward(prefix, on_device, torch.bfloat16, autocast=True)
        ),
        "forward, AMP fp16, uint8 tensors on the GPU": warm(
            lambda: forward(prefix, on_device, torch.float16, autocast=True)
        ),
        "the back end on decoded squares in memory (pinning, transfer, AMP fp16, result)": warm(
            lambda: run_all(amp, images)
        ),
        "decoding and cropping, all cores": warm(decode),
        "transfer of pinned uint8": warm(transfer),
    }
