"""`python -m sagemaker_jobs.deploy`: `mlflow sagemaker deploy`'s flags for `dogbreed deploy --target sagemaker`."""

import argparse
import json
import sys
from collections.abc import Sequence
from pathlib import Path

from dogbreed_ml.cli import main as run_dogbreed
from dogbreed_ml.deployments import experiment_of

_EPILOG = """\
examples:
  python -m sagemaker_jobs.deploy -a dogs -m models:/dogbreed-resnet50@champion -e arn:aws:iam::ACCOUNT:role/NAME
  python -m sagemaker_jobs.deploy -a dogs -m models:/dogbreed-resnet50/7 --mode replace --archive --dry-run

No container is built or pushed: AWS's own PyTorch image runs the archive that is made from the model.
A version must have passed `dogbreed promote`, or be deployed with --unmeasured --reason TEXT.
`dogbreed endpoints` lists what is live, `dogbreed delete NAME` ends it.
"""


def build_parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(
        prog="python -m sagemaker_jobs.deploy",
        description="Deploys a registered model version to an endpoint of SageMaker.",
        epilog=_EPILOG,
        formatter_class=argparse.RawDescriptionHelpFormatter,
        allow_abbrev=False,
    )
    add = parser.add_argument
    add("-a", "--app-name", required=True, metavar="NAME", help="the endpoint")
    add("-m", "--model-uri", required=True, metavar="URI", help="models:/NAME@ALIAS or models:/NAME/VERSION")
    add("-e", "--execution-role-arn", metavar="ARN", help="the role that the endpoint runs as")
    add("-b", "--bucket", help="bucket of the model archive; default dogbreed-ACCOUNT-REGION, made where it is not")
    add("-i", "--image-url", metavar="URL", help="inference image in ECR; default AWS's newest PyTorch image")
    add("--region-name", metavar="REGION", help="default: boto3's own")
    add(
        "--mode",
        choices=("create", "add", "replace"),
        default="create",
        help="create a new endpoint (default), which must not be there yet; replace what it serves, blue/green under "
        "alarms, or create it; add is create: one endpoint serves one version, and where there is one already, "
        "give the second a name of its own",
    )
    add("--archive", action="store_true", help="keep what is replaced, so that `dogbreed rollback` can go back to it")
    add("-t", "--instance-type", metavar="TYPE", help="such as ml.c7i.xlarge")
    add("-c", "--instance-count", type=int, metavar="N", help="instances at first")
    add("--vpc-config", type=Path, metavar="FILE", help='JSON: {"SecurityGroupIds": [...], "Subnets": [...]}')
    add("--asynchronous", action="store_true", help="return once all is asked for; a first endpoint stays untested")
    add("--timeout", type=int, metavar="S", help="how long to wait for the endpoint, in seconds")
    add("--expires", metavar="TIME", help="90m, 4h, 2d: then `dogbreed endpoints --reap` may delete it")
    add("--dry-run", action="store_true", help="print what would be sent, and send nothing")
    add("--unmeasured", action="store_true", help="deploy a version that has no verdict; needs --reason")
    add("--reason", metavar="TEXT", help="why --unmeasured is right")
    return parser


def to_command_line(arguments: argparse.Namespace) -> list[str]:
    """The same as arguments of `dogbreed`; raises ValueError with one sentence."""
    scheme, _, rest = arguments.model_uri.partition(":/")
    model = rest.partition("@")[0].partition("/")[0]
    if scheme != "models" or not model:
        raise ValueError(
            f"--model-uri must be models:/NAME@ALIAS or models:/NAME/VERSION, got {arguments.model_uri!r}."
        )
    values = {
        "--version": arguments.model_uri,
        "--endpoint": arguments.app_name,
        "--expires": arguments.expires,
        "--reason": arguments.reason,
        "--name": experiment_of(model),
        "--sagemaker.role_arn": arguments.execution_role_arn,
        "--sagemaker.bucket": arguments.bucket,
        "--sagemaker.region": arguments.region_name,
        "--hosting.image_uri": arguments.image_url,
        "--hosting.instance_type": arguments.instance_type,
        "--hosting.instance_count": arguments.instance_count,
        "--hosting.timeout_s": arguments.timeout,
        **_network(arguments.vpc_config),
    }
    switches = {
        "--first": arguments.mode != "replace",
        "--no-wait": arguments.asynchronous,
        "--drop-replaced": arguments.mode == "replace" and not arguments.archive,
        "--dry-run": arguments.dry_run,
        "--unmeasured": arguments.unmeasured,
    }
    given = [f"{flag}={value}" for flag, value in values.items() if value is not None]
    return ["deploy", "--target=sagemaker", *given, *(flag for flag, is_on in switches.items() if is_on)]


def _network(path: Path | None) -> dict[str, str]:
    if path is None:
        return {}
    rule = '--vpc-config must be a JSON file such as {"SecurityGroupIds": ["sg-1"], "Subnets": ["subnet-1"]}'
    try:
        told = json.loads(path.read_text(encoding="utf-8"))
        groups, subnets = list(told["SecurityGroupIds"]), list(told["Subnets"])
    except (OSError, ValueError, KeyError, TypeError) as error:
        raise ValueError(f"{rule}; {path}: {error!r}.") from error
    return {"--sagemaker.security_group_ids": json.dumps(groups), "--sagemaker.subnets": json.dumps(subnets)}


def main(argv: Sequence[str] | None = None) -> int:
    """Exit status as `dogbreed`'s."""
    parser = build_parser()
    arguments = parser.parse_args(argv)
    try:
        command_line = to_command_line(arguments)
    except ValueError as error:
        parser.error(str(error))
    return run_dogbreed(command_line)


if __name__ == "__main__":
    sys.exit(main())
