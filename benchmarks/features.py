"""The feature pass of a whole store beside the best bare back end, in the same run."""

import logging
from collections.abc import Callable
from dataclasses import dataclass
from time import perf_counter
from typing import Any

import torch
from numpy.typing import NDArray
from torch import nn

from benchmarks.photographs import PREPROCESSING, Photographs, collect, squares
from benchmarks.results import BenchmarkError, Figure, Goal, Result, each, ratios
from benchmarks.settings import Settings
from dogbreed_ml.backend import Backend, Images, available_backends, build_backend, device_of, run_all
from dogbreed_ml.config import BackendName, FeaturesConfig, ModelConfig
from dogbreed_ml.features import FeatureStore, FeatureTable, FrozenPrefix
from dogbreed_ml.model import Network, Weights, build_network, load_weights

logger = logging.getLogger(__name__)

_NUM_FINALISTS = 3
_NUM_SCREENED = 128
_BATCH_SIZES = (1, 2, 4)
_NUM_STREAMS = (1, 2, 4)


@dataclass(frozen=True)
class Bare:
    """A way to run the network over images that are in memory already; nothing is decoded, nothing is kept."""

    name: str
    images_per_s: Callable[[int], float]
    """Runs that many images and returns the rate."""


def build_frozen(settings: Settings) -> tuple[Weights, Network]:
    """The weights and a network with trainable=head: its prefix is the whole backbone."""
    config = ModelConfig(weights=settings.weights, resnet_version=settings.resnet_version)
    weights = load_weights(config)
    return weights, build_network(config, 2, weights=weights, seed=0)


def frozen_prefix(settings: Settings, weights: Weights) -> FrozenPrefix:
    """What a FeatureStore asks for; each call of its `build` makes a new network, as in a user's process."""
    config = ModelConfig(weights=settings.weights, resnet_version=settings.resnet_version)

    def build() -> nn.Module:
        return build_network(config, 2, weights=weights, seed=0).prefix

    return FrozenPrefix(weights.digest, settings.resnet_version, "head", build)


def timed_table(
    settings: Settings, photographs: Photographs, prefix: FrozenPrefix, *, name: str, backend: BackendName = "auto"
) -> tuple[FeatureTable, float]:
    """The features from an empty folder, and the seconds of the whole call (choice of back end included)."""
    store = FeatureStore(FeaturesConfig(backend=backend), settings.folder(name), device=device_of())
    start = perf_counter()
    table = store.table(photographs.samples, prefix, PREPROCESSING)
    seconds = perf_counter() - start
    if table.cached:
        raise BenchmarkError("The feature folder must be empty before the pass that is measured.")
    return table, seconds


def measure(settings: Settings) -> Result:
    """Screens every bare way once, then the fastest of them and the store turn by turn."""
    quick = settings.is_quick
    photographs = collect(settings, "features", num_breeds=4 if quick else 120, num_per_breed=4 if quick else 5)
    num_images = len(photographs.samples)
    weights, network = build_frozen(settings)
    images = squares(photographs.samples)
    bare_ways = [*_project_backends(network, images), *_bare_openvino(network, images, is_quick=quick)]
    screened: list[tuple[float, Bare]] = []
    for bare in bare_ways:
        rate = bare.images_per_s(min(num_images, _NUM_SCREENED))
        logger.info("features: %s %.1f images/s", bare.name, rate)
        screened.append((rate, bare))
    screened.sort(key=lambda pair: -pair[0])
    finalists = [bare for _, bare in screened[:_NUM_FINALISTS]]
    rates: dict[str, list[float]] = {bare.name: [] for bare in finalists}
    store_rates, totals_s, chosen = [], [], ""
    for repetition in range(settings.num_repetitions):
        logger.info("features: repetition %d of %d", repetition + 1, settings.num_repetitions)
        # Every second repetition in reverse, so that a machine that slows down favours nobody.
        for bare in finalists if repetition % 2 == 0 else reversed(finalists):
            rates[bare.name].append(bare.images_per_s(num_images))
        prefix = frozen_prefix(settings, weights)
        table, seconds = timed_table(settings, photographs, prefix, name=f"features-{repetition}")
        store_rates.append(table.images_per_s)
        totals_s.append(seconds)
        chosen = table.backend
    figures = [
        *(each(f"bare {bare.name}", rates[bare.name], "images/s") for bare in finalists),
        each(f"the store's pass ({chosen}), decoding included", store_rates, "images/s"),
    ]
    best = max(figures[:-1], key=lambda figure: figure.value)
    shares = [100 * share for share in ratios(store_rates, list(best.values))]
    figures += [
        each(f"the store's pass / {best.name}", shares, "%", goal=Goal("at least", 85)),
        each("the store's whole call on an empty folder", totals_s, "s"),
        *(Figure(f"screened once: {bare.name}", (rate,), "images/s") for rate, bare in screened[_NUM_FINALISTS:]),
    ]
    notes = (
        f"{photographs.describe()}, read from files; bare ways run on the same images in memory.",
        f"Each bare way ran {min(num_images, _NUM_SCREENED)} images once; then the {_NUM_FINALISTS} fastest and the "
        "store took turns.",
        "Names say precision and input: uint8 is this project's back end on decoded squares, float OpenVINO's own API "
        "on normalised tensors, bN a batch of N, sN N streams.",
        "The whole call also builds the network, chooses the back end and checks that it agrees with torch fp32.",
    )
    return Result("features", "the feature pass beside the best bare back end", tuple(figures), notes)


def _project_backends(network: Network, images: Images) -> list[Bare]:
    """Every back end of backend.py that runs here, on uint8 images."""
    device = device_of()

    def make(name: BackendName) -> Bare:
        built: list[Backend] = []

        def images_per_s(num_images: int) -> float:
            if not built:
                built.append(build_backend(name, network.prefix, image_size=images.shape[1], device=device))
                run_all(built[0], images[: 4 * built[0].batch_size])
            start = perf_counter()
            run_all(built[0], images[:num_images])
            return num_images / (perf_counter() - start)

        return Bare(f"{name} uint8", images_per_s)

    return [make(name) for name in available_backends(device)]


def _bare_openvino(network: Network, images: Images, *, is_quick: bool) -> list[Bare]:
    """OpenVINO's own API in bf16 on normalised float tensors, for several batch sizes and numbers of streams."""
    if "openvino-bf16" not in available_backends(device_of()):
        return []
    # available_backends has kept OpenVINO's telemetry out of this process by now.
    import openvino as ov

    normalize, backbone = network.prefix[0], network.prefix[1:]
    with torch.inference_mode():
        tensors: NDArray[Any] = normalize(torch.from_numpy(images).permute(0, 3, 1, 2)).contiguous().numpy()
    model = ov.convert_model(nn.Sequential(*backbone).eval(), example_input=torch.from_numpy(tensors[:1].copy()))
    core = ov.Core()

    def make(batch_size: int, num_streams: int) -> Bare:
        queues: list[Any] = []

        def run(num_images: int) -> None:
            for start in range(0, num_images - batch_size + 1, batch_size):
                queues[0].start_async({0: tensors[start : start + batch_size]}, share_inputs=True)
            queues[0].wait_all()

        def images_per_s(num_images: int) -> float:
            if not queues:
                model.reshape([batch_size, *tensors.shape[1:]])
                properties = {"INFERENCE_PRECISION_HINT": "bf16", "NUM_STREAMS": num_streams}
                queues.append(ov.AsyncInferQueue(core.compile_model(model, "CPU", properties), 2 * num_streams))
                run(min(num_images, 4 * batch_size * num_streams))
            start = perf_counter()
            run(num_images)
            return num_images // batch_size * batch_size / (perf_counter() - start)

        return Bare(f"openvino-bf16 float b{batch_size} s{num_streams}", images_per_s)

    pairs = [(2, 2)] if is_quick else [(b, s) for b in _BATCH_SIZES for s in _NUM_STREAMS]
    return [make(batch_size, num_streams) for batch_size, num_streams in pairs]
