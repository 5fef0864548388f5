"""ResNet50: build it, load its weights, cut it into a frozen prefix and a trainable suffix."""

import copy
import hashlib
import logging
import pickle
import urllib.request
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import cast

import torch
from torch import Tensor, nn
from torchvision.models import ResNet, ResNet50_Weights, resnet50
from torchvision.models.resnet import Bottleneck

from dogbreed_ml.config import ModelConfig, Trainable
from dogbreed_ml.errors import ModelError
from dogbreed_ml.transforms import IMAGENET_MEAN, IMAGENET_STD

logger = logging.getLogger(__name__)

AUTO_WEIGHTS = "IMAGENET1K_V2"
DOWNLOAD_TIMEOUT_S = 5.0
"""How long the weights' server may take to answer the first request."""

_STAGES = ("conv1", "bn1", "relu", "maxpool", "layer1", "layer2", "layer3", "layer4", "avgpool", "flatten")
_FIRST_TRAINABLE: dict[Trainable, str | None] = {"head": None, "layer4": "layer4", "layer3": "layer3", "all": "conv1"}


class Normalize(nn.Module):
    """uint8 (B, 3, S, S) to float32: (x / 255 - mean) / std per channel; the first layer of every network."""

    def __init__(
        self, mean: tuple[float, float, float] = IMAGENET_MEAN, std: tuple[float, float, float] = IMAGENET_STD
    ):
        super().__init__()
        mean_255 = torch.tensor(mean).mul(255).view(1, 3, 1, 1)
        self.register_buffer("mean", mean_255, persistent=False)
        self.register_buffer("scale", 1 / torch.tensor(std).mul(255).view(1, 3, 1, 1), persistent=False)
        self.mean: Tensor
        self.scale: Tensor

    def forward(self, images: Tensor) -> Tensor:
        return (images.to(torch.float32) - self.mean) * self.scale


class Network(nn.Module):
    """A ResNet50 in two parts that share its modules: logits = suffix(prefix(images)).

    `prefix` takes uint8 images (B, 3, S, S) and is never trained; `suffix` ends in dropout and the linear head.
    `resnet` holds the weights under torchvision's own names.
    """

    def __init__(self, resnet: ResNet, trainable: Trainable, *, dropout: float = 0.0):
        super().__init__()
        self.resnet = resnet
        self.trainable = trainable
        stages = [nn.Flatten(1) if name == "flatten" else getattr(resnet, name) for name in _STAGES]
        first = _FIRST_TRAINABLE[trainable]
        cut = len(_STAGES) if first is None else _STAGES.index(first)
        self.prefix = nn.Sequential(Normalize(), *stages[:cut]).eval().requires_grad_(False)
        self.suffix = nn.Sequential(*stages[cut:], nn.Dropout(dropout), resnet.fc).requires_grad_(True)

    def forward(self, images: Tensor) -> Tensor:
        return cast(Tensor, self.suffix(self.prefix(images)))

    def train(self, mode: bool = True) -> "Network":
        super().train(mode)
        self.prefix.eval()
        return self

    def load_suffix(self, suffix: nn.Module) -> None:
        """Takes over the weights of a suffix trained on its own (see `new_suffix`)."""
        self.suffix.load_state_dict(suffix.state_dict())


@dataclass(frozen=True)
class Weights:
    """A backbone's weights, without the head."""

    state_dict: dict[str, Tensor]
    """torchvision's names, float32, without fc.*."""
    name: str
    """What was loaded: a torchvision name, a file's name, or `random`."""
    digest: str
    """16 hex digits over all tensors."""


def build_resnet50(num_classes: int, *, resnet_version: str, state_dict: dict[str, Tensor] | None = None) -> ResNet:
    """A torchvision ResNet50, its head of `num_classes` outputs untrained unless `state_dict` holds fc.* too.

    Without `state_dict` the weights are random. Raises ModelError where names or shapes do not fit.
    """
    if state_dict is None:
        resnet = resnet50(weights=None, num_classes=num_classes)
    else:
        # On the meta device nothing is drawn for weights that are replaced at once (0.3 s a network).
        with torch.device("meta"):
            resnet = resnet50(weights=None, num_classes=num_classes)
        full = {"fc.weight": torch.zeros(num_classes, 2048), "fc.bias": torch.zeros(num_classes), **state_dict}
        try:
            resnet.load_state_dict(full, strict=True, assign=True)
        except RuntimeError as error:
            problem = " ".join(str(error).split())[:300]
            raise ModelError(
                f"The weights must have the names and shapes of torchvision's resnet50: {problem}"
            ) from error
    if resnet_version == "1":
        _put_stride_on_first_convolution(resnet)
    return resnet


def _put_stride_on_first_convolution(resnet: ResNet) -> None:
    for module in resnet.modules():
        if isinstance(module, Bottleneck):
            module.conv1.stride, module.conv2.stride = module.conv2.stride, module.conv1.stride


def build_network(config: ModelConfig, num_classes: int, *, weights: Weights, seed: int) -> Network:
    """The whole network with the given backbone and a head drawn from `seed`."""
    head = new_head(num_classes, seed=seed)
    # Cloned, so that training one network never moves the weights that another was built from.
    state_dict = {name: tensor.clone() for name, tensor in weights.state_dict.items()}
    state_dict |= {"fc.weight": head.weight.detach(), "fc.bias": head.bias.detach()}
    resnet = build_resnet50(num_classes, resnet_version=config.resnet_version, state_dict=state_dict)
    return Network(resnet, config.trainable, dropout=config.dropout)


def new_head(num_classes: int, *, seed: int) -> nn.Linear:
    """A linear head 2048 -> num_classes with torch's own initialisation, drawn from `seed` alone."""
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(seed)
        return nn.Linear(2048, num_classes)


def new_suffix(network: Network, num_classes: int, *, dropout: float, seed: int) -> nn.Sequential:
    """A fresh copy of the trainable part, with a head drawn from `seed`, to be trained on kept features."""
    stages = [copy.deepcopy(stage) for stage in network.suffix[:-2]]
    return nn.Sequential(*stages, nn.Dropout(dropout), new_head(num_classes, seed=seed)).requires_grad_(True)


def average_heads(heads: Sequence[nn.Module], shares: Sequence[float], *, into: nn.Module) -> None:
    """Writes the heads' parameters, each times its share, added up, into `into`: a linear head of the same shape.

    The logits of `into` are then the sum of each head's logits times its share.
    """
    with torch.no_grad():
        for parameters in zip(into.parameters(), *(head.parameters() for head in heads), strict=True):
            target, *sources = parameters
            weighted = (source.to(target.device) * share for source, share in zip(sources, shares, strict=True))
            target.copy_(torch.stack(list(weighted)).sum(0))


def load_weights(config: ModelConfig) -> Weights:
    """Loads or downloads what `config.weights` names.

    `auto` tries torchvision's newest weights and falls back to random ones with a warning; any other name either
    loads or raises ModelError.
    """
    if config.weights == "random":
        return _random_weights(config.seed)
    if config.weights == "auto":
        try:
            return _torchvision_weights(AUTO_WEIGHTS)
        except ModelError as error:
            logger.warning(
                "%s Random weights are used instead: fine for a look around, useless for real photographs.", error
            )
            return _random_weights(config.seed)
    if config.weights in ResNet50_Weights.__members__:
        return _torchvision_weights(config.weights)
    return _file_weights(Path(config.weights).expanduser())


def _random_weights(seed: int) -> Weights:
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(seed)
        # Without zeroed residuals the features of random weights spread so far that no learning rate copes with them
        # (8 drawn breeds: 21 % without, 39 % with).
        resnet = resnet50(weights=None, zero_init_residual=True)
    return _weights(dict(resnet.state_dict()), name="random")


def _torchvision_weights(name: str) -> Weights:
    member = ResNet50_Weights[name]
    file_name = member.url.rpartition("/")[2]
    if not (Path(torch.hub.get_dir()) / "checkpoints" / file_name).exists():
        request = urllib.request.Request(member.url, method="HEAD")
        try:
            # torch.hub has no timeout of its own and would hang where a firewall drops packets.
            urllib.request.urlopen(request, timeout=DOWNLOAD_TIMEOUT_S).close()
        except OSError as error:
            raise ModelError(
                f"The weights {name} are not in {torch.hub.get_dir()} and cannot be downloaded ({error}); "
                "set model.weights to a local file, or connect to the network."
            ) from error
    try:
        state_dict = member.get_state_dict(progress=True, check_hash=True)
    except (OSError, RuntimeError) as error:
        raise ModelError(
            f"The weights {name} could not be downloaded: {error}; set model.weights to a file."
        ) from error
    return _weights(dict(state_dict), name=name)


def _file_weights(path: Path) -> Weights:
    if not path.is_file():
        names = ", ".join(member.name for member in ResNet50_Weights)
        raise ModelError(f"model.weights must be {names}, auto, random or an existing file, got {str(path)!r}.")
    try:
        state_dict = torch.load(path, map_location="cpu", weights_only=True)
    # torch.load raises what its unpickler and zip reader happen to raise for a file that is something else.
    except (pickle.UnpicklingError, RuntimeError, OSError, EOFError, ValueError, KeyError, AttributeError) as error:
        first_line = str(error).splitlines()[0] if str(error) else type(error).__name__
        raise ModelError(
            f"{path} must be a file saved by torch.save that loads with weights_only=True: {first_line}."
        ) from error
    if not isinstance(state_dict, dict) or not all(isinstance(tensor, Tensor) for tensor in state_dict.values()):
        raise ModelError(f"{path} must hold a state dict (names to tensors); save model.state_dict().")
    return _weights(state_dict, name=path.name)


def _weights(state_dict: dict[str, Tensor], *, name: str) -> Weights:
    backbone = {
        key: tensor.detach().to(torch.float32) if tensor.is_floating_point() else tensor.detach()
        for key, tensor in state_dict.items()
        if not key.startswith("fc.")
    }
    digest = hashlib.sha256()
    for key in sorted(backbone):
        digest.update(key.encode())
        digest.update(backbone[key].contiguous().numpy().data)
    return Weights(backbone, name, digest.hexdigest()[:16])
