"""The container contract without a container: one folder per host that stands for /opt/ml, and the SM_* variables.

Programs find the folder through the variables and through what SageMaker hands them: hyperparameters, arguments and
the SDK's own drivers, in all of which `/opt/ml` is rewritten to it. A script's own text is left as it is.
"""

import json
import os
import re
import socket
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

OPT_ML = re.compile(r"/opt/ml(?![\w-])")
DRIVERS_CHANNEL = "sm_drivers"
CODE_CHANNEL = "code"
FRAMEWORK_PREFIXES = ("sagemaker_", "_tuning_objective_metric")
"""Hyperparameters for the service and its toolkit; they are no arguments of the script."""
_DRIVER_SUFFIXES = (".sh", ".py", ".json")
# The SDK's driver runs pip in the job; the job's environment has what that would install.
_DRIVER_PIP = re.compile(r"\S*\$SM_PYTHON_CMD\S* +\S*/install_requirements\.py")
_DRIVER_REQUIREMENTS = re.compile(r"install_requirements\.py +(\S+)")
_DRIVER_ADDRESS = re.compile(r'^SM_MASTER_ADDR = "algo-1"$', re.MULTILINE)
_DRIVER_PORT = re.compile(r"^SM_MASTER_PORT = \d+$", re.MULTILINE)


@dataclass(frozen=True)
class Cluster:
    """What the hosts of one job have in common."""

    hosts: tuple[str, ...]
    groups: tuple[tuple[str, str, tuple[str, ...]], ...]
    """(instance group, instance type, its hosts)."""
    master_port: int

    @classmethod
    def build(cls, resources: Mapping[str, Any], *, master_port: int) -> "Cluster":
        """From a ResourceConfig."""
        groups = resources.get("InstanceGroups") or [
            {
                "InstanceGroupName": "homogeneousCluster",
                "InstanceType": resources["InstanceType"],
                "InstanceCount": resources["InstanceCount"],
            }
        ]
        described, number = [], 0
        for group in groups:
            names = tuple(f"algo-{number + each}" for each in range(1, group["InstanceCount"] + 1))
            number += len(names)
            described.append((group["InstanceGroupName"], group["InstanceType"], names))
        hosts = tuple(name for _, _, names in described for name in names)
        return cls(hosts, tuple(described), master_port)

    def group_of(self, host: str) -> tuple[str, str, tuple[str, ...]]:
        return next(group for group in self.groups if host in group[2])


class Host:
    """One host's folder."""

    def __init__(self, folder: Path, name: str, cluster: Cluster, *, tmp_dir: Path) -> None:
        self.folder = folder
        self.name = name
        self.cluster = cluster
        self.ml_dir = folder / "opt" / "ml"
        self.model_dir = self.ml_dir / "model"
        self.code_dir = self.ml_dir / "code"
        self.data_dir = self.ml_dir / "input" / "data"
        self.config_dir = self.ml_dir / "input" / "config"
        self.output_data_dir = self.ml_dir / "output" / "data"
        self.profiler_dir = self.ml_dir / "output" / "profiler"
        self.failure_path = self.ml_dir / "output" / "failure"
        self.checkpoint_dir = self.ml_dir / "checkpoints"
        self.home_dir = folder / "home"
        self.tmp_dir = tmp_dir

    @property
    def index(self) -> int:
        return self.cluster.hosts.index(self.name)

    def localize(self, text: str) -> str:
        """`text` with /opt/ml as this host has it."""
        return OPT_ML.sub(lambda _: str(self.ml_dir), text)

    def resolve(self, container_path: str) -> Path:
        """A path in the container as a path here; only paths below /opt/ml have one."""
        return Path(self.localize(container_path))

    def prepare(self, hyperparameters: Mapping[str, str], channels: Sequence[Mapping[str, Any]]) -> None:
        """Makes the folders and the three files of input/config."""
        for folder in (
            self.model_dir, self.code_dir, self.data_dir, self.config_dir, self.output_data_dir, self.checkpoint_dir,
            self.home_dir, self.tmp_dir,
        ):  # fmt: skip
            folder.mkdir(parents=True, exist_ok=True)
        documents = {
            "hyperparameters.json": {name: self.localize(value) for name, value in hyperparameters.items()},
            "inputdataconfig.json": self.input_data_config(channels),
            "resourceconfig.json": self.resource_config(),
        }
        for name, document in documents.items():
            (self.config_dir / name).write_text(json.dumps(document), encoding="utf-8")

    def input_data_config(self, channels: Sequence[Mapping[str, Any]]) -> dict[str, dict[str, str]]:
        return {
            channel["ChannelName"]: {
                "TrainingInputMode": channel.get("InputMode", "File"),
                "S3DistributionType": channel["DataSource"]["S3DataSource"].get(
                    "S3DataDistributionType", "FullyReplicated"
                ),
                "RecordWrapperType": channel.get("RecordWrapperType", "None"),
                **({"ContentType": channel["ContentType"]} if "ContentType" in channel else {}),
            }
            for channel in channels
        }

    def resource_config(self) -> dict[str, Any]:
        group, instance_type, _ = self.cluster.group_of(self.name)
        return {
            "current_host": self.name,
            "current_instance_type": instance_type,
            "current_group_name": group,
            "hosts": list(self.cluster.hosts),
            "instance_groups": [
                {"instance_group_name": name, "instance_type": kind, "hosts": list(hosts)}
                for name, kind, hosts in self.cluster.groups
            ],
            "network_interface_name": loopback_name(),
        }

    def adapt_drivers(self) -> None:
        """Rewrites the SDK's drivers to this host's folder, its address, and no pip."""
        folder = self.data_dir / DRIVERS_CHANNEL
        for path in folder.rglob("*") if folder.is_dir() else ():
            if path.suffix not in _DRIVER_SUFFIXES or not path.is_file():
                continue
            text = path.read_text(encoding="utf-8")
            changed = _DRIVER_PIP.sub('echo "Installed before:"', text)
            changed = _DRIVER_ADDRESS.sub('SM_MASTER_ADDR = "127.0.0.1"', changed)
            changed = _DRIVER_PORT.sub(f"SM_MASTER_PORT = {self.cluster.master_port}", changed)
            path.write_text(self.localize(changed), encoding="utf-8")

    def requirements_path(self) -> Path | None:
        """The requirements.txt that the job's own start would install; call it before adapt_drivers()."""
        train_script = self.data_dir / DRIVERS_CHANNEL / "sm_train.sh"
        if train_script.is_file():
            match = _DRIVER_REQUIREMENTS.search(train_script.read_text(encoding="utf-8"))
            path = self.data_dir / CODE_CHANNEL / (match[1].strip("'\"") if match else "requirements.txt")
            return path if match and path.is_file() else None
        path = self.code_dir / "requirements.txt"
        return path if path.is_file() else None

    def variables(
        self, job_name: str, hyperparameters: Mapping[str, str], channels: Sequence[Mapping[str, Any]]
    ) -> dict[str, str]:
        """All SM_* variables, as the training toolkit and the SDK's drivers set them."""
        values = {name: decode(self.localize(value)) for name, value in hyperparameters.items()}
        own = {name: value for name, value in values.items() if not name.startswith(FRAMEWORK_PREFIXES)}
        framework = {name: value for name, value in values.items() if name.startswith(FRAMEWORK_PREFIXES)}
        group, instance_type, group_hosts = self.cluster.group_of(self.name)
        num_gpus = count_gpus()
        program = str(framework.get("sagemaker_program", ""))
        plain: dict[str, Any] = {
            "SM_HPS": own, "SM_CHANNELS": sorted(channel["ChannelName"] for channel in channels),
            "SM_HOSTS": list(self.cluster.hosts), "SM_CURRENT_HOST": self.name, "SM_CURRENT_HOST_RANK": self.index,
            "SM_HOST_COUNT": len(self.cluster.hosts), "SM_CURRENT_INSTANCE_TYPE": instance_type,
            "SM_CURRENT_INSTANCE_GROUP": group, "SM_CURRENT_INSTANCE_GROUP_HOSTS": list(group_hosts),
            "SM_INSTANCE_GROUPS": [name for name, _, _ in self.cluster.groups],
            "SM_INSTANCE_GROUPS_DICT": {each["instance_group_name"]: each for each in
                                        self.resource_config()["instance_groups"]},
            "SM_DISTRIBUTION_INSTANCE_GROUPS": [], "SM_IS_HETERO": len(self.cluster.groups) > 1,
            "SM_NUM_CPUS": os.cpu_count() or 1, "SM_NUM_GPUS": num_gpus, "SM_NUM_NEURONS": 0,
            "SM_MODEL_DIR": self.model_dir, "SM_OUTPUT_DIR": self.ml_dir / "output",
            "SM_OUTPUT_DATA_DIR": self.output_data_dir, "SM_OUTPUT_INTERMEDIATE_DIR": self.ml_dir / "output",
            "SM_OUTPUT_FAILURE": self.failure_path, "SM_INPUT_DIR": self.ml_dir / "input",
            "SM_INPUT_DATA_DIR": self.data_dir, "SM_INPUT_CONFIG_DIR": self.config_dir,
            "SM_RESOURCE_CONFIG": self.resource_config(), "SM_INPUT_DATA_CONFIG": self.input_data_config(channels),
            "SM_NETWORK_INTERFACE_NAME": loopback_name(), "SM_MASTER_ADDR": "127.0.0.1",
            "SM_MASTER_PORT": self.cluster.master_port,
            "SM_LOG_LEVEL": framework.get("sagemaker_container_log_level", 20),
            "SM_USER_ENTRY_POINT": program, "SM_MODULE_NAME": program.removesuffix(".py"),
            "SM_MODULE_DIR": str(framework.get("sagemaker_submit_directory", "")),
            "SM_FRAMEWORK_MODULE": "", "SM_FRAMEWORK_PARAMS": framework, "SM_USER_ARGS": arguments(own),
        }  # fmt: skip
        for channel in channels:
            name = channel["ChannelName"]
            plain[f"SM_CHANNEL_{name.upper().replace('-', '_')}"] = self.data_dir / name
        for name, value in own.items():
            plain[f"SM_HP_{name.upper().replace('-', '_')}"] = value
        plain["SM_TRAINING_ENV"] = {
            "job_name": job_name, "current_host": self.name, "hosts": list(self.cluster.hosts),
            "current_instance_type": instance_type, "hyperparameters": own, "num_gpus": num_gpus,
            "num_cpus": plain["SM_NUM_CPUS"], "model_dir": str(self.model_dir), "input_dir": str(self.ml_dir / "input"),
            "output_data_dir": str(self.output_data_dir), "input_config_dir": str(self.config_dir),
            "resource_config": plain["SM_RESOURCE_CONFIG"], "input_data_config": plain["SM_INPUT_DATA_CONFIG"],
            "channel_input_dirs": {each["ChannelName"]: str(self.data_dir / each["ChannelName"]) for each in channels},
            "network_interface_name": loopback_name(), "user_entry_point": program,
        }  # fmt: skip
        return {name: _render(value) for name, value in plain.items()}


def arguments(hyperparameters: Mapping[str, Any]) -> list[str]:
    """A script's own hyperparameters as the training toolkit hands them over: sorted `--key value`."""
    flags = []
    for name, value in sorted(hyperparameters.items()):
        flags += [f"-{name}" if len(name) == 1 else f"--{name}", value if isinstance(value, str) else str(value)]
    return flags


def count_gpus() -> int:
    folder = Path("/proc/driver/nvidia/gpus")
    return len(list(folder.iterdir())) if folder.is_dir() else 0


def loopback_name() -> str:
    return next((name for _, name in socket.if_nameindex() if name.startswith("lo")), "lo")


def decode(value: str) -> Any:
    """The value that a hyperparameter's text stands for, where it is JSON; otherwise the text."""
    try:
        return json.loads(value)
    except ValueError:
        return value


def _render(value: Any) -> str:
    if isinstance(value, (str, Path)):
        return str(value)
    return json.dumps(value)


def free_port() -> int:
    """Nobody listens there now."""
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        return int(free.getsockname()[1])
