"""The flags of `mlflow sagemaker deploy`, as our own command line understands them."""

from pathlib import Path

import pytest

from dogbreed_ml.arguments import parse
from dogbreed_ml.options import DeployOptions
from sagemaker_jobs.deploy import build_parser, main, to_command_line

ROLE = "arn:aws:iam::123456789012:role/sagemaker"
URI = "models:/dogs-resnet50@champion"


def command_line(*argv: str) -> list[str]:
    return to_command_line(build_parser().parse_args(["-a", "dogs", "-m", URI, *argv]))


def test_flags_that_people_know_become_ours(tmp_path: Path) -> None:
    vpc = tmp_path / "vpc.json"
    vpc.write_text('{"SecurityGroupIds": ["sg-1"], "Subnets": ["subnet-1", "subnet-2"]}', encoding="utf-8")
    image = "123456789012.dkr.ecr.eu-west-1.amazonaws.com/pytorch-inference:mine"
    command = parse(
        command_line(
            "-e", ROLE, "-b", "kennel", "-i", image, "--region-name", "eu-west-1", "--mode", "replace",
            "-t", "ml.m5.large", "-c", "2", "--vpc-config", str(vpc), "--asynchronous", "--timeout", "600",
            "--expires", "4h",
        )
    )  # fmt: skip
    assert command.options == DeployOptions(
        target="sagemaker", version=URI, endpoint="dogs", expires="4h", no_wait=True, drop_replaced=True
    )
    config = command.config
    assert config.registered_model_name == "dogs-resnet50"
    account = config.sagemaker
    assert (account.role_arn, account.bucket, account.region) == (ROLE, "kennel", "eu-west-1")
    assert (account.subnets, account.security_group_ids) == (["subnet-1", "subnet-2"], ["sg-1"])
    hosting = config.hosting
    assert (hosting.image_uri, hosting.instance_type, hosting.instance_count) == (image, "ml.m5.large", 2)
    assert hosting.timeout_s == 600


@pytest.mark.parametrize("argv", [[], ["--mode", "create"], ["--mode", "add"]])
def test_default_is_to_create_and_so_is_to_add(argv: list[str]) -> None:
    assert parse(command_line(*argv)).options == DeployOptions(
        target="sagemaker", version=URI, endpoint="dogs", first=True
    )


def test_archive_keeps_what_is_replaced() -> None:
    kept = parse(command_line("--mode", "replace", "--archive")).options
    assert isinstance(kept, DeployOptions)
    assert (kept.first, kept.drop_replaced) == (False, False)


@pytest.mark.parametrize(
    ("argv", "message"),
    [
        (["-m", "runs:/abc/model"], "--model-uri must be models:/NAME@ALIAS or models:/NAME/VERSION"),
        (["--vpc-config", "nowhere.json"], "--vpc-config must be a JSON file such as"),
        (["--mod", "create"], "unrecognized arguments: --mod"),
    ],
)
def test_mistake_ends_with_status_2_and_says_why(
    argv: list[str], message: str, capsys: pytest.CaptureFixture[str]
) -> None:
    with pytest.raises(SystemExit) as caught:
        main(["-a", "dogs", "-m", URI, *argv])
    assert caught.value.code == 2
    assert message in capsys.readouterr().err


def test_help_teaches(capsys: pytest.CaptureFixture[str]) -> None:
    with pytest.raises(SystemExit):
        main(["--help"])
    shown = capsys.readouterr().out
    for flag in (
        "-a NAME, --app-name",
        "--archive",
        "--vpc-config",
        "--asynchronous",
        "models:/dogbreed-resnet50@champion",
    ):
        assert flag in shown
