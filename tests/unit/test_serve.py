"""The Predictor on the network's own preprocessing, its back ends, and its refusals."""

import dataclasses
import io
import json
from collections.abc import Iterable, Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import numpy as np
import pytest
import torch
from numpy.typing import NDArray
from PIL import ExifTags, Image

from dogbreed_ml.backend import Backend, Images, Outputs, available_backends
from dogbreed_ml.checkpoint import Checkpoint, save_checkpoint
from dogbreed_ml.config import ExperimentConfig
from dogbreed_ml.errors import BackendError, CheckpointError, ConfigError, ImageError
from dogbreed_ml.examples import example_images
from dogbreed_ml.model import Network, build_resnet50
from dogbreed_ml.policies import ServingBackendName
from dogbreed_ml.serve import BATCH_SIZE, Predictor
from dogbreed_ml.servingchoice import MAX_PROBABILITY_DIFFERENCE, choose_serving_backend
from dogbreed_ml.transforms import Preprocessing, decode_image, to_square

SMALL = Preprocessing(image_size=64)
CLASSES = ("Affenpinscher", "Beagle", "Chow", "Dingo", "Eskimo dog", "Foxhound")


@pytest.fixture(scope="module")
def checkpoint() -> Checkpoint:
    torch.manual_seed(0)
    resnet = build_resnet50(len(CLASSES), resnet_version="1")
    return Checkpoint(dict(resnet.state_dict()), CLASSES, SMALL, "1", ExperimentConfig())


@pytest.fixture(scope="module")
def predictor(checkpoint: Checkpoint) -> Predictor:
    return Predictor.from_checkpoint(checkpoint, backend="torch-fp32")


def photograph(seed: int, *, image_format: str = "JPEG") -> bytes:
    pixels = np.random.default_rng(seed).integers(0, 256, (6, 9, 3), dtype=np.uint8)
    buffer = io.BytesIO()
    Image.fromarray(pixels).resize((90, 70), Image.Resampling.BICUBIC).save(buffer, image_format)
    return buffer.getvalue()


def network_probabilities(checkpoint: Checkpoint, images: Sequence[bytes]) -> NDArray[np.float32]:
    resnet = build_resnet50(len(CLASSES), resnet_version="1", state_dict=checkpoint.state_dict)
    squares = np.stack([to_square(decode_image(data), SMALL) for data in images])
    with torch.inference_mode():
        logits = Network(resnet, "head").eval()(torch.from_numpy(squares).permute(0, 3, 1, 2))
    probabilities: NDArray[np.float32] = logits.softmax(dim=1).numpy()
    return probabilities


def test_predictor_answers_as_the_trained_network_does(checkpoint: Checkpoint, predictor: Predictor) -> None:
    images = [photograph(0), photograph(1, image_format="PNG")]
    expected = network_probabilities(checkpoint, images)
    for row, prediction in zip(expected, predictor.predict(images, top_k=6), strict=True):
        given = dict(prediction.top5)
        assert [given[breed] for breed in CLASSES] == pytest.approx(row.tolist(), abs=1e-5)
        assert prediction.breed == CLASSES[int(row.argmax())]


def test_predictor_gives_the_best_breed_first(predictor: Predictor) -> None:
    prediction = predictor.predict([photograph(0)])[0]
    probabilities = [probability for _, probability in prediction.top5]
    assert len(probabilities) == 5
    assert probabilities == sorted(probabilities, reverse=True)
    assert (prediction.breed, prediction.probability) == prediction.top5[0]


def test_predictor_top_k_is_at_most_the_number_of_breeds(predictor: Predictor) -> None:
    assert len(predictor.predict([photograph(0)], top_k=100)[0].top5) == len(CLASSES)
    assert len(predictor.predict([photograph(0)], top_k=1)[0].top5) == 1
    with pytest.raises(ConfigError, match="top_k must be at least 1, got 0"):
        predictor.predict([photograph(0)], top_k=0)


def test_predictor_keeps_the_order_over_several_batches(predictor: Predictor) -> None:
    images = [photograph(seed % 3) for seed in range(BATCH_SIZE + 2)]
    predictions = predictor.predict(images)
    alone = [predictor.predict([photograph(seed)])[0] for seed in range(3)]
    for index, prediction in enumerate(predictions):
        assert prediction.probability == pytest.approx(alone[index % 3].probability, abs=1e-5)


def test_predictor_of_no_image_answers_nothing(predictor: Predictor) -> None:
    assert predictor.predict([]) == []


@pytest.mark.parametrize("bad", [b"", b"no image", photograph(0)[:200]])
def test_predictor_names_the_image_that_it_cannot_read(predictor: Predictor, bad: bytes) -> None:
    images = [photograph(0)] * (BATCH_SIZE + 1) + [bad]
    with pytest.raises(ImageError, match=rf"images\[{BATCH_SIZE + 1}\] must be an image that can be read: \w"):
        predictor.predict(images)


def test_predictor_loads_a_checkpoint_file(checkpoint: Checkpoint, predictor: Predictor, tmp_path: Path) -> None:
    loaded = Predictor.load(save_checkpoint(checkpoint, tmp_path / "model.pt"), backend="torch-fp32")
    assert loaded.classes == CLASSES
    assert loaded.preprocessing == SMALL
    assert loaded.predict([photograph(0)]) == predictor.predict([photograph(0)])


def test_predictor_does_not_train_what_it_was_given(checkpoint: Checkpoint, predictor: Predictor) -> None:
    before = checkpoint.state_dict["bn1.running_mean"].clone()
    predictor.predict([photograph(0)])
    assert torch.equal(checkpoint.state_dict["bn1.running_mean"], before)


@pytest.mark.parametrize("device", ["abacus", "cuda:99"])
def test_predictor_refuses_a_device_that_is_absent(checkpoint: Checkpoint, device: str) -> None:
    with pytest.raises(BackendError, match=f"'{device}'.*try cpu"):
        Predictor.from_checkpoint(checkpoint, device=device)


CPU = torch.device("cpu")


@pytest.mark.parametrize("name", available_backends(CPU))
def test_predictor_answers_alike_on_every_backend(
    name: ServingBackendName, checkpoint: Checkpoint, predictor: Predictor
) -> None:
    other = Predictor.from_checkpoint(checkpoint, backend=name)
    assert other.backend_name == name
    squares = np.stack([predictor.decode(photograph(seed)) for seed in range(5)])
    for expected, given in zip(predictor.recognise(squares, top_k=6), other.recognise(squares, top_k=6), strict=True):
        assert dict(given.top5) == pytest.approx(dict(expected.top5), abs=MAX_PROBABILITY_DIFFERENCE)


def test_predictor_divides_logits_by_the_temperature(checkpoint: Checkpoint, predictor: Predictor) -> None:
    cool = Predictor.from_checkpoint(dataclasses.replace(checkpoint, temperature=0.25), backend="torch-fp32")
    squares = predictor.decode(photograph(0))[None]
    expected = torch.from_numpy(predictor.logits(squares)).div(0.25).softmax(dim=1)[0]
    given = dict(cool.recognise(squares, top_k=6)[0].top5)
    assert [given[breed] for breed in CLASSES] == pytest.approx(expected.tolist())
    assert max(given.values()) > predictor.recognise(squares)[0].probability


def test_predictor_with_flip_averages_an_image_and_its_mirror_image(
    checkpoint: Checkpoint, predictor: Predictor
) -> None:
    flipping = Predictor.from_checkpoint(checkpoint, backend="torch-fp32", flip=True)
    square = predictor.decode(photograph(0))
    both = predictor.logits(np.stack([square, square[:, ::-1]]))
    assert not np.allclose(both[0], both[1], atol=1e-4)
    assert flipping.logits(square[None])[0] == pytest.approx(both.mean(axis=0), abs=1e-4)


def test_predictor_is_unsure_below_the_probability_asked_for(checkpoint: Checkpoint, predictor: Predictor) -> None:
    share = predictor.predict([photograph(0)])[0].probability
    strict = Predictor.from_checkpoint(checkpoint, backend="torch-fp32", min_probability=share + 0.01)
    unsure = strict.predict([photograph(0)])[0]
    assert (unsure.is_sure, unsure.answer) == (False, "unsure")
    # What it would have said is there all the same.
    assert (unsure.breed, unsure.top5) == (
        predictor.predict([photograph(0)])[0].breed,
        predictor.predict([photograph(0)])[0].top5,
    )
    lenient = Predictor.from_checkpoint(checkpoint, backend="torch-fp32", min_probability=share - 0.01)
    assert lenient.predict([photograph(0)])[0].answer == unsure.breed


@pytest.mark.parametrize("image_format", ["JPEG", "PNG", "WEBP", "GIF"])
def test_predictor_decodes_each_format_to_the_same_picture(predictor: Predictor, image_format: str) -> None:
    expected = predictor.decode(photograph(0, image_format="PNG")).astype(int)
    given = predictor.decode(photograph(0, image_format=image_format)).astype(int)
    assert given.shape == (64, 64, 3)
    # GIF has 256 colours, JPEG and WebP lose some.
    assert np.abs(given - expected).mean() < 12


def test_predictor_decodes_the_first_frame_of_a_gif(predictor: Predictor) -> None:
    frames = [Image.new("RGB", (80, 80), color) for color in ("red", "blue")]
    buffer = io.BytesIO()
    frames[0].save(buffer, "GIF", save_all=True, append_images=frames[1:])
    assert predictor.decode(buffer.getvalue())[32, 32].tolist() == [255, 0, 0]


def test_predictor_turns_a_photograph_as_its_exif_says(predictor: Predictor) -> None:
    picture = Image.new("RGB", (80, 80), "red")
    picture.paste("blue", (0, 0, 80, 40))
    exif = Image.Exif()
    exif[ExifTags.Base.Orientation] = 3
    buffer = io.BytesIO()
    picture.save(buffer, "PNG", exif=exif)
    assert predictor.decode(buffer.getvalue())[8, 32].tolist() == [255, 0, 0]


def test_predictor_refuses_more_bytes_and_pixels_than_its_limits(checkpoint: Checkpoint) -> None:
    data = photograph(0)
    small = Predictor.from_checkpoint(checkpoint, backend="torch-fp32", max_bytes=len(data), max_pixels=90 * 70)
    assert small.decode(data).shape == (64, 64, 3)
    tiny = Predictor.from_checkpoint(checkpoint, backend="torch-fp32", max_bytes=len(data) - 1, max_pixels=90 * 70)
    with pytest.raises(ImageError, match=f"too large: {len(data)} bytes, at most {len(data) - 1}"):
        tiny.decode(data)
    narrow = Predictor.from_checkpoint(checkpoint, backend="torch-fp32", max_pixels=90 * 70 - 1)
    with pytest.raises(ImageError, match="too many pixels: 90x70"):
        narrow.decode(data)


def test_predictor_of_no_squares_answers_nothing(predictor: Predictor) -> None:
    nothing = np.zeros((0, 64, 64, 3), dtype=np.uint8)
    assert predictor.recognise(nothing) == []
    assert predictor.logits(nothing).shape == (0, len(CLASSES))


@pytest.mark.parametrize("name", [available_backends(CPU)[0], "torch-fp32"])
def test_predictor_is_shared_by_threads(name: ServingBackendName, checkpoint: Checkpoint) -> None:
    shared = Predictor.from_checkpoint(checkpoint, backend=name)
    squares = [shared.decode(photograph(seed))[None] for seed in range(4)]
    expected = [shared.recognise(square) for square in squares]
    with ThreadPoolExecutor(8) as pool:
        answers = list(pool.map(lambda number: shared.recognise(squares[number % 4]), range(40)))
    for number, answer in enumerate(answers):
        assert dict(answer[0].top5) == pytest.approx(dict(expected[number % 4][0].top5), abs=1e-4)


def test_predictor_by_auto_takes_what_agrees_and_says_why(checkpoint: Checkpoint, predictor: Predictor) -> None:
    chosen = Predictor.from_checkpoint(checkpoint)
    assert chosen.choice is not None
    assert chosen.backend_name == chosen.choice.name
    agreeing = {name: ms for name, ms in chosen.choice.latency_ms.items() if name not in chosen.choice.refused}
    assert chosen.choice.latency_ms[chosen.choice.name] == min(agreeing.values())
    assert predictor.choice is None


class Fake:
    """A back end with logits of its own."""

    batch_size = 16
    dtype = np.float32

    def __init__(self, name: str, logits: Outputs):
        self.name = name
        self._logits = logits

    def run(self, batches: Iterable[Images]) -> Iterator[Outputs]:
        for batch in batches:
            yield self._logits[: len(batch)]


def chosen_of(logits: dict[ServingBackendName, Outputs]) -> tuple[str, dict[str, str]]:
    def build(name: ServingBackendName) -> Backend:
        return Fake(name, logits[name])

    backend, choice = choose_serving_backend(build, list(logits), preprocessing=SMALL)
    assert backend.name == choice.name
    return choice.name, choice.refused


def test_auto_passes_over_a_backend_whose_probabilities_differ() -> None:
    rng = np.random.default_rng(0)
    right = rng.normal(0, 3, (len(example_images()), 4)).astype(np.float32)
    shifted = right + np.array([3, 0, 0, 0], dtype=np.float32)
    name, refused = chosen_of({"openvino-bf16": shifted, "torch-fp32": right})
    assert name == "torch-fp32"
    assert "probabilities up to" in refused["openvino-bf16"]
    close = right + rng.normal(0, 0.01, right.shape).astype(np.float32)
    assert chosen_of({"openvino-bf16": close, "torch-fp32": right})[0] == "openvino-bf16"


def test_auto_lets_int8_differ_more_but_not_wildly() -> None:
    rng = np.random.default_rng(0)
    right = rng.normal(0, 3, (len(example_images()), 40)).astype(np.float32)
    rough = right + rng.normal(0, 0.2, right.shape).astype(np.float32)
    assert chosen_of({"openvino-int8": rough, "torch-fp32": right})[0] == "openvino-int8"
    assert chosen_of({"openvino-bf16": rough, "torch-fp32": right})[0] == "torch-fp32"
    assert chosen_of({"openvino-int8": rough[:, ::-1].copy(), "torch-fp32": right})[0] == "torch-fp32"


def test_auto_refuses_a_model_without_finite_logits() -> None:
    broken = np.full((len(example_images()), 4), np.nan, dtype=np.float32)
    with pytest.raises(BackendError, match="gives finite logits; are the weights damaged"):
        chosen_of({"openvino-bf16": broken, "torch-fp32": broken})


def test_int8_that_nobody_made_is_refused_with_the_way_out(checkpoint: Checkpoint, tmp_path: Path) -> None:
    path = save_checkpoint(checkpoint, tmp_path / "checkpoint.pt")
    with pytest.raises(BackendError, match="got openvino-int8; `dogbreed evaluate --int8` makes"):
        Predictor.load(path, backend="openvino-int8")


def test_int8_that_lost_too_much_is_refused_with_its_figures(checkpoint: Checkpoint, tmp_path: Path) -> None:
    path = save_checkpoint(checkpoint, tmp_path / "checkpoint.pt")
    (tmp_path / "int8").mkdir()
    report = {
        "accepted": False, "accuracy_fp32": 0.9, "accuracy_int8": 0.85, "num_valid": 100, "num_calibration": 300,
        "checkpoint_sha256": "", "model_bytes": 1, "nncf_version": "3.4.0",
    }  # fmt: skip
    (tmp_path / "int8" / "report.json").write_text(json.dumps(report))
    with pytest.raises(BackendError, match=r"fell from 90.00% to 85.00%\. Take another back end"):
        Predictor.load(path, backend="openvino-int8")
    (tmp_path / "int8" / "report.json").write_text("{}")
    with pytest.raises(CheckpointError, match="must be a report of `dogbreed evaluate --int8`"):
        Predictor.load(path)


def test_example_images_are_always_the_same_and_can_be_read(predictor: Predictor) -> None:
    first = example_images()
    example_images.cache_clear()
    assert example_images() == first
    assert len(set(first)) == 8
    assert all(predictor.decode(data).shape == (64, 64, 3) for data in first)
