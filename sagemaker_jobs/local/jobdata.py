"""What a training job's hosts are given from S3, and what of theirs goes back there."""

import tempfile
from collections.abc import Callable, Sequence
from pathlib import Path

from dogbreed_ml.errors import DataError
from sagemaker_jobs.local import archives
from sagemaker_jobs.local.cloud import Cloud
from sagemaker_jobs.local.container import Host
from sagemaker_jobs.local.trainingplan import TrainingPlan


def fetch_inputs(cloud: Cloud, plan: TrainingPlan, hosts: Sequence[Host], *, check: Callable[[], None]) -> None:
    """Channels, and the source archive in script mode; `check` is called between objects and may raise.

    Raises DataError for what is not there or is refused.
    """
    for channel in plan.channels:
        source = channel["DataSource"]["S3DataSource"]
        uri = source["S3Uri"]
        objects = cloud.prefix_objects(uri) if source["S3DataType"] == "S3Prefix" else cloud.manifest_objects(uri)
        if not objects:
            raise DataError(
                f'Data download failed:No S3 objects found under S3 URL "{uri}" given in input data source. Please '
                f"ensure that the bucket exists in the selected region ({cloud.region}) and that objects exist under "
                "that S3 prefix."
            )
        is_sharded = source.get("S3DataDistributionType") == "ShardedByS3Key"
        for host in hosts:
            check()
            part = sorted(objects)[host.index :: len(hosts)] if is_sharded else objects
            cloud.fetch_all(part, host.data_dir / channel["ChannelName"])
    if not plan.entrypoint:
        for host in hosts:
            check()
            _fetch_source(cloud, plan, host)


def upload_outputs(cloud: Cloud, plan: TrainingPlan, hosts: Sequence[Host], *, has_model: bool) -> None:
    """The model, and what lies in output/data where there is any; of two hosts' files of one name, the first one's."""
    models = [host.model_dir for host in hosts] if has_model else []
    outputs = [host.output_data_dir for host in hosts]
    if not plan.is_compressed:
        for name, folders in (("model", models), ("data", outputs)):
            for folder in reversed(folders):
                cloud.upload_folder(folder, f"{plan.output_uri}/{name}")
        return
    with tempfile.TemporaryDirectory(dir=hosts[0].folder) as scratch:
        if has_model:
            _upload_archive(cloud, plan, models, Path(scratch, "model.tar.gz"))
        if any(path for folder in outputs for path in folder.iterdir()):
            _upload_archive(cloud, plan, outputs, Path(scratch, "output.tar.gz"))


def _fetch_source(cloud: Cloud, plan: TrainingPlan, host: Host) -> None:
    directory = host.localize(plan.submit_directory)
    if directory.startswith("s3://"):
        archive_path = host.tmp_dir / "sourcedir.tar.gz"
        cloud.fetch(directory, archive_path)
        archives.extract(archive_path, host.code_dir, name=directory)
        archive_path.unlink()
    elif Path(directory).is_relative_to(host.folder) and Path(directory).is_dir():
        host.code_dir = Path(directory)
    else:
        raise DataError(f"sagemaker_submit_directory {plan.submit_directory} must be an s3:// archive.")
    if not (host.code_dir / plan.program).is_file():
        raise DataError(f"{plan.submit_directory} has no {plan.program} (sagemaker_program).")


def _upload_archive(cloud: Cloud, plan: TrainingPlan, folders: list[Path], archive_path: Path) -> None:
    archives.pack(folders, archive_path)
    cloud.upload(archive_path, f"{plan.output_uri}/{archive_path.name}")
