"""The folder that stands for /opt/ml, and what a script is told of it."""

import json
from collections.abc import Mapping
from pathlib import Path

import pytest

from sagemaker_jobs.local.container import Cluster, Host, arguments

ONE = {"InstanceType": "ml.m5.large", "InstanceCount": 1}
GROUPS = {
    "InstanceGroups": [
        {"InstanceGroupName": "big", "InstanceType": "ml.m5.large", "InstanceCount": 2},
        {"InstanceGroupName": "small", "InstanceType": "ml.c5.large", "InstanceCount": 1},
    ]
}


def _host(tmp_path: Path, name: str = "algo-1", resources: Mapping[str, object] = ONE) -> Host:
    return Host(tmp_path / name, name, Cluster.build(resources, master_port=7001), tmp_dir=tmp_path / "tmp")


def test_groups_of_instances_number_their_hosts_through(tmp_path: Path) -> None:
    config = _host(tmp_path, "algo-3", GROUPS).resource_config()
    assert config["hosts"] == ["algo-1", "algo-2", "algo-3"]
    assert (config["current_host"], config["current_group_name"]) == ("algo-3", "small")
    assert [group["hosts"] for group in config["instance_groups"]] == [["algo-1", "algo-2"], ["algo-3"]]


@pytest.mark.parametrize(
    ("text", "changed"),
    [("/opt/ml/model", True), ("cp /opt/ml /x", True), ("file:///opt/ml/x", True), ("/opt/mlflow", False),
     ("/opt/ml-2/x", False), ("/opt/m", False)],
)  # fmt: skip
def test_only_opt_ml_is_rewritten(tmp_path: Path, text: str, changed: bool) -> None:
    host = _host(tmp_path)
    assert host.localize(text) == (text.replace("/opt/ml", str(host.ml_dir)) if changed else text)


def test_variables_say_what_the_files_say(tmp_path: Path) -> None:
    host = _host(tmp_path)
    channels = [{"ChannelName": "my-train", "DataSource": {"S3DataSource": {}}, "ContentType": "image/jpeg"}]
    hyperparameters = {"lr": "0.1", "where": "/opt/ml/input/data/my-train", "sagemaker_program": "train.py"}
    host.prepare(hyperparameters, channels)
    variables = host.variables("rex", hyperparameters, channels)
    assert variables["SM_CHANNEL_MY_TRAIN"] == variables["SM_HP_WHERE"] == str(host.data_dir / "my-train")
    assert json.loads(variables["SM_HPS"]) == {"lr": 0.1, "where": variables["SM_HP_WHERE"]}
    assert json.loads(variables["SM_USER_ARGS"]) == ["--lr", "0.1", "--where", variables["SM_HP_WHERE"]]
    assert json.loads(variables["SM_TRAINING_ENV"])["channel_input_dirs"] == {"my-train": variables["SM_HP_WHERE"]}
    for name in ("SM_RESOURCE_CONFIG", "SM_INPUT_DATA_CONFIG"):
        path = host.config_dir / f"{name.removeprefix('SM_').replace('_', '').lower()}.json"
        assert json.loads(variables[name]) == json.loads(path.read_text())
    for name in ("SM_MODEL_DIR", "SM_OUTPUT_DATA_DIR", "SM_INPUT_CONFIG_DIR"):
        assert Path(variables[name]).is_dir()
    assert (variables["SM_NUM_GPUS"].isdigit(), variables["SM_HOSTS"], variables["SM_CURRENT_HOST"]) == (
        True, '["algo-1"]', "algo-1",
    )  # fmt: skip


def test_arguments_are_sorted_flags() -> None:
    flags = arguments({"b": "x y", "a-long": 1, "c": [1, 2], "d": True})
    assert flags == ["--a-long", "1", "-b", "x y", "-c", "[1, 2]", "-d", "True"]


def test_sdk_drivers_are_adapted_to_the_host(tmp_path: Path) -> None:
    host = _host(tmp_path, "algo-2", GROUPS)
    drivers = host.data_dir / "sm_drivers"
    (drivers / "scripts").mkdir(parents=True)
    (host.data_dir / "code").mkdir()
    (host.data_dir / "code" / "needs.txt").touch()
    pip = "$SM_PYTHON_CMD /opt/ml/input/data/sm_drivers/scripts/install_requirements.py needs.txt"
    (drivers / "sm_train.sh").write_text(f"cd /opt/ml/input/data/code\n{pip}\n")
    (drivers / "scripts" / "environment.py").write_text('SM_MASTER_ADDR = "algo-1"\nSM_MASTER_PORT = 7777\n')
    assert host.requirements_path() == host.data_dir / "code" / "needs.txt"
    host.adapt_drivers()
    script = (drivers / "sm_train.sh").read_text()
    assert script == f'cd {host.data_dir}/code\necho "Installed before:" needs.txt\n'
    environment = (drivers / "scripts" / "environment.py").read_text()
    assert environment == 'SM_MASTER_ADDR = "127.0.0.1"\nSM_MASTER_PORT = 7001\n'
