"""AWS's own PyTorch images: the newest version that both trains and serves, so that a model meets one torch in both."""

import logging
from functools import cache
from typing import Any, Literal

from dogbreed_ml.errors import ConfigError

logger = logging.getLogger(__name__)

_FRAMEWORK = "pytorch"


def image_uri(scope: Literal["training", "inference"], *, instance_type: str, region: str) -> str:
    """The image for the instance, with CUDA where it has a GPU; no network. ConfigError for an unknown region."""
    from sagemaker.core import image_uris

    version, python = newest_pair()
    try:
        return str(
            image_uris.retrieve(
                _FRAMEWORK,
                region=region,
                version=version,
                py_version=python,
                instance_type=instance_type,
                image_scope=scope,
            )
        )
    except ValueError as error:
        section = "sagemaker" if scope == "training" else "hosting"
        raise ConfigError(
            f"AWS names no PyTorch {version} image for {scope} on {instance_type} in {region}: {error}; set "
            f"{section}.image_uri."
        ) from error


def num_gpus(instance_type: str, *, region: str) -> int:
    """By AWS's own table, which holds no newer family than g5: 0 for what it does not name."""
    from sagemaker.core import instance_types_gpu_info

    return int(instance_types_gpu_info.retrieve(region).get(instance_type, {}).get("Count", 0))


def debugger_image_uri(region: str) -> str:
    """The image that evaluates SageMaker's own rules."""
    from sagemaker.core import image_uris

    return str(image_uris.retrieve("debugger", region=region))


@cache
def newest_pair() -> tuple[str, str]:
    """Version and Python, such as ("2.6", "py312")."""
    from sagemaker.core.image_uris import config_for_framework

    config: dict[str, Any] = config_for_framework(_FRAMEWORK)
    training, inference = (config[scope]["versions"] for scope in ("training", "inference"))
    newest = max(set(training) & set(inference), key=lambda version: tuple(map(int, version.split("."))))
    return newest.rpartition(".")[0], str(training[newest]["py_versions"][-1])
