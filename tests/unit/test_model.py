"""The ResNet50: weights in, two parts out."""

from pathlib import Path

import pytest
import torch
from torchvision.models import resnet50

from dogbreed_ml.config import ModelConfig, Trainable
from dogbreed_ml.errors import ModelError
from dogbreed_ml.model import Normalize, Weights, build_network, build_resnet50, load_weights, new_suffix
from dogbreed_ml.transforms import IMAGENET_MEAN, IMAGENET_STD


@pytest.fixture(scope="module")
def weights() -> Weights:
    return load_weights(ModelConfig(weights="random"))


@pytest.fixture
def images() -> torch.Tensor:
    return torch.randint(0, 256, (2, 3, 64, 64), dtype=torch.uint8)


def test_normalize_equals_torchvisions(images: torch.Tensor) -> None:
    from torchvision.transforms.v2.functional import normalize, to_dtype

    expected = normalize(to_dtype(images, torch.float32, scale=True), list(IMAGENET_MEAN), list(IMAGENET_STD))
    torch.testing.assert_close(Normalize()(images), expected)


@pytest.mark.parametrize("trainable", ["head", "layer4", "layer3", "all"])
def test_network_computes_what_torchvisions_resnet50_computes(
    weights: Weights, images: torch.Tensor, trainable: Trainable
) -> None:
    network = build_network(ModelConfig(weights="random", trainable=trainable), 5, weights=weights, seed=0).eval()
    reference = resnet50(weights=None, num_classes=5).eval()
    reference.load_state_dict(network.resnet.state_dict())
    with torch.inference_mode():
        torch.testing.assert_close(network(images), reference(Normalize()(images)))


@pytest.mark.parametrize(
    ("trainable", "first"), [("head", "fc."), ("layer4", "layer4."), ("layer3", "layer3."), ("all", "conv1.")]
)
def test_only_the_trainable_part_requires_gradients(weights: Weights, trainable: Trainable, first: str) -> None:
    network = build_network(ModelConfig(weights="random", trainable=trainable), 5, weights=weights, seed=0)
    names = [name for name, parameter in network.resnet.named_parameters() if parameter.requires_grad]
    assert names[0].startswith(first)
    assert names[-1] == "fc.bias"


def test_prefix_stays_in_evaluation_mode_while_the_suffix_trains(weights: Weights) -> None:
    network = build_network(ModelConfig(weights="random", trainable="layer4"), 5, weights=weights, seed=0).train()
    assert not any(module.training for module in network.prefix.modules())
    assert all(module.training for module in network.suffix.modules())


def test_suffix_trained_apart_is_taken_over(weights: Weights, images: torch.Tensor) -> None:
    config = ModelConfig(weights="random", trainable="layer4")
    network = build_network(config, 5, weights=weights, seed=0).eval()
    suffix = new_suffix(network, 5, dropout=0.0, seed=7).eval()
    with torch.inference_mode():
        features = network.prefix(images)
        assert not torch.equal(network.suffix(features), suffix(features))
        network.load_suffix(suffix)
        torch.testing.assert_close(network(images), suffix(features), rtol=0, atol=0)


def test_version_1_puts_the_stride_on_the_first_convolution() -> None:
    version_1, version_15 = (build_resnet50(2, resnet_version=version) for version in ("1", "1.5"))
    assert (version_1.layer2[0].conv1.stride, version_1.layer2[0].conv2.stride) == ((2, 2), (1, 1))
    assert (version_15.layer2[0].conv1.stride, version_15.layer2[0].conv2.stride) == ((1, 1), (2, 2))


def test_same_seed_draws_the_same_head_and_leaves_the_global_generator_alone(weights: Weights) -> None:
    state = torch.random.get_rng_state()
    config = ModelConfig(weights="random")
    heads = [build_network(config, 5, weights=weights, seed=seed).resnet.fc.weight for seed in (1, 1, 2)]
    assert torch.equal(heads[0], heads[1])
    assert not torch.equal(heads[0], heads[2])
    assert torch.equal(torch.random.get_rng_state(), state)


@pytest.mark.parametrize("dtype", [torch.float16, torch.float32])
def test_weights_from_a_file_are_float32_without_the_head(tmp_path: Path, weights: Weights, dtype: torch.dtype) -> None:
    path = tmp_path / "my weights.pth"
    saved = {k: v.to(dtype) if v.is_floating_point() else v for k, v in weights.state_dict.items()}
    torch.save({**saved, "fc.weight": torch.zeros(1000, 2048), "fc.bias": torch.zeros(1000)}, path)
    loaded = load_weights(ModelConfig(weights=str(path)))
    assert loaded.name == "my weights.pth"
    assert "fc.weight" not in loaded.state_dict
    assert {t.dtype for t in loaded.state_dict.values() if t.is_floating_point()} == {torch.float32}
    assert (loaded.digest == weights.digest) == (dtype == torch.float32)


def test_missing_weights_name_the_choices() -> None:
    with pytest.raises(ModelError, match=r"IMAGENET1K_V2, auto, random or an existing file, got 'no.pth'"):
        load_weights(ModelConfig(weights="no.pth"))


def test_file_that_is_no_checkpoint_is_refused_by_name(tmp_path: Path) -> None:
    path = tmp_path / "notes.pth"
    path.write_text("not weights")
    with pytest.raises(ModelError, match="notes.pth must be a file saved by torch.save"):
        load_weights(ModelConfig(weights=str(path)))


def test_weights_of_another_network_are_refused(tmp_path: Path) -> None:
    path = tmp_path / "linear.pth"
    torch.save(torch.nn.Linear(2, 2).state_dict(), path)
    config = ModelConfig(weights=str(path))
    with pytest.raises(ModelError, match="names and shapes of torchvision's resnet50"):
        build_network(config, 5, weights=load_weights(config), seed=0)


def test_auto_without_cache_or_network_is_random_and_says_so(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    import urllib.request

    def refuse(*_: object, **__: object) -> None:
        raise OSError("no network in tests")

    # The one thing replaced: tests never reach outside, and "outside is away" is the case under test.
    monkeypatch.setattr(urllib.request, "urlopen", refuse)
    monkeypatch.setenv("TORCH_HOME", str(tmp_path))
    loaded = load_weights(ModelConfig(weights="auto"))
    assert loaded.name == "random"
    assert "Random weights are used instead" in caplog.text
    with pytest.raises(ModelError, match="set model.weights to a local file"):
        load_weights(ModelConfig(weights="IMAGENET1K_V1"))


def test_auto_takes_what_is_in_the_cache(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, weights: Weights) -> None:
    monkeypatch.setenv("TORCH_HOME", str(tmp_path))
    folder = tmp_path / "hub" / "checkpoints"
    folder.mkdir(parents=True)
    torch.save(weights.state_dict, folder / "resnet50-11ad3fa6.pth")
    loaded = load_weights(ModelConfig(weights="auto"))
    assert (loaded.name, loaded.digest) == ("IMAGENET1K_V2", weights.digest)


def test_real_weights_know_the_breeds_with_the_stride_of_version_1(photographs_dir: Path, weights_path: Path) -> None:
    from dogbreed_ml.transforms import Preprocessing, decode_image, to_square

    full = torch.load(weights_path, weights_only=True)
    state_dict = {k: v.float() if v.is_floating_point() else v for k, v in full.items()}
    # ImageNet's class numbers of these four synsets.
    numbers = {"n02085620-Chihuahua": 151, "n02088364-beagle": 162, "n02110958-pug": 254, "n02112018-Pomeranian": 259}
    hits = 0
    resnet = build_resnet50(1000, resnet_version="1", state_dict=state_dict).eval()
    for folder, number in numbers.items():
        for path in sorted((photographs_dir / "dogs" / folder).iterdir())[:5]:
            square = to_square(decode_image(path.read_bytes()), Preprocessing())
            with torch.inference_mode():
                logits = resnet(Normalize()(torch.from_numpy(square.copy()).permute(2, 0, 1)[None]))
            hits += int(logits.argmax()) == number
    assert hits >= 15
