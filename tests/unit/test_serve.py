"""The Predictor on the network's own preprocessing, and its refusals."""

import io
from collections.abc import Sequence
from pathlib import Path

import numpy as np
import pytest
import torch
from numpy.typing import NDArray
from PIL import Image

from dogbreed_ml.checkpoint import Checkpoint, save_checkpoint
from dogbreed_ml.config import ExperimentConfig
from dogbreed_ml.errors import BackendError, ConfigError, ImageError
from dogbreed_ml.model import Network, build_resnet50
from dogbreed_ml.serve import BATCH_SIZE, Predictor
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
