"""What each verb takes besides the config: one dataclass a verb; its docstring and fields are the verb's help."""

from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Literal, TypeVar

from dogbreed_ml.errors import ConfigError

T = TypeVar("T")


def _option(default: T, text: str, *, metavar: str | None = None, nargs: str | None = None) -> T:
    """A field with its help; with `nargs` (argparse's) it is given by position instead of by a flag."""
    result: T = field(default=default, metadata={"help": text, "metavar": metavar, "nargs": nargs})
    return result


@dataclass(frozen=True, kw_only=True)
class DataOptions:
    """fetch, check and describe a data set"""

    clear_features: bool = _option(False, "delete the kept features, and do no more")


@dataclass(frozen=True, kw_only=True)
class TrainOptions:
    """one run, here or as a SageMaker job"""

    on: Literal["local", "sagemaker"] = _option("local", "where: this machine or a SageMaker training job")
    dry_run: bool = _option(False, "sagemaker: print the request with time and cost, and send nothing")

    def __post_init__(self) -> None:
        if self.dry_run and self.on == "local":
            raise ConfigError("--dry-run needs --on sagemaker: a training here costs nothing but its time.")


@dataclass(frozen=True, kw_only=True)
class TuneOptions:
    """a search: parent run, child per trial, best refit, registered as challenger"""

    attach: str | None = _option(
        None,
        "go on with this SageMaker tuning job, running or ended; implies --search.engine sagemaker",
        metavar="NAME",
    )
    warm_start: str | None = _option(
        None,
        "begin with what these found: parent runs by id, tuning jobs by name, with commas between",
        metavar="NAMES",
    )
    dry_run: bool = _option(False, "sagemaker: print the request with time and cost, and send nothing")

    def __post_init__(self) -> None:
        if self.attach is not None and (self.dry_run or self.warm_start is not None):
            raise ConfigError("--attach excludes --dry-run and --warm-start: that tuning job was started already.")
        if self.warm_start is not None and not self.sources:
            raise ConfigError("--warm-start needs at least one parent run or tuning job.")

    @property
    def sources(self) -> tuple[str, ...]:
        """What --warm-start names."""
        return tuple(name.strip() for name in (self.warm_start or "").split(",") if name.strip())


@dataclass(frozen=True, kw_only=True)
class ProfileOptions:
    """a profiled run with rules and report, or recorded files judged"""

    from_: str | None = _option(
        None, "judge these files without training: a folder, s3:// or a run's id", metavar="SOURCE"
    )
    suggest: bool = _option(False, "try what the rules advise on a few steps each, and write the best as YAML")

    def __post_init__(self) -> None:
        if self.from_ and self.suggest:
            raise ConfigError("--from and --suggest exclude each other: what is recorded cannot be run again.")


@dataclass(frozen=True, kw_only=True)
class EvaluateOptions:
    """a model version or checkpoint on the test split, or on any folder of breeds"""

    version: str = _option("challenger", "alias or number of the config's model, a models:/ URI, or a checkpoint file")
    folder: Path | None = _option(None, "evaluate on this folder of breeds instead of the test split", metavar="DIR")
    flip: bool = _option(False, "average each image with its mirror image (twice the time)")
    int8: bool = _option(False, "also quantize to INT8, and keep that where valid loses less than half a point")


@dataclass(frozen=True, kw_only=True)
class PromoteOptions:
    """the gate: challenger against champion on accuracy and latency; moves the alias champion"""

    version: str = _option("challenger", "alias or number of the version that is to become champion")
    dry_run: bool = _option(False, "measure and judge, and move nothing")
    force: bool = _option(False, "move the alias whatever the verdict; needs --reason")
    reason: str | None = _option(None, "why --force or --to is right; recorded with the version", metavar="TEXT")
    to: int | None = _option(None, "go back to this version, an earlier champion", metavar="VERSION")

    def __post_init__(self) -> None:
        if self.force and not (self.reason or "").strip():
            raise ConfigError("--force needs --reason TEXT, which is recorded with the version.")
        if self.to is not None and (self.force or self.dry_run):
            raise ConfigError("--to excludes --force and --dry-run: an earlier champion was measured already.")


@dataclass(frozen=True, kw_only=True)
class HistoryOptions:
    """what was champion and what was live when, with verdicts"""


@dataclass(frozen=True, kw_only=True)
class DeployOptions:
    """serve a model version behind /ping and /invocations, here or on SageMaker"""

    target: Literal["local", "sagemaker"] = _option("local", "where: this machine or a SageMaker endpoint")
    version: str = _option("champion", "alias or number of the config's model, or a models:/ URI")
    port: int = _option(8080, "local: the port to listen on; 0 takes a free one")
    detach: bool = _option(False, "local: return once the server answers, and leave it running")
    endpoint: str | None = _option(None, "sagemaker: the endpoint's name; default the model's", metavar="NAME")
    expires: str | None = _option(
        None, "sagemaker: after 90m, 4h or 2d `endpoints --reap` may delete it; never ends a lease", metavar="TIME"
    )
    first: bool = _option(False, "sagemaker: refuse a name that is taken already, instead of updating it")
    no_wait: bool = _option(False, "sagemaker: return once all is asked for; a first endpoint stays untested")
    drop_replaced: bool = _option(False, "sagemaker: delete what an update replaced, so that no rollback finds it")
    dry_run: bool = _option(False, "sagemaker: print what would be sent, and send nothing")
    print_policy: bool = _option(False, "sagemaker: print what the caller and the role must be allowed")
    unmeasured: bool = _option(False, "serve a version that has no verdict; needs --reason")
    reason: str | None = _option(None, "why --unmeasured is right; recorded with the version", metavar="TEXT")

    def __post_init__(self) -> None:
        if not 0 <= self.port <= 65535:
            raise ConfigError(f"--port must be 0 to 65535, got {self.port}.")
        if self.unmeasured and not (self.reason or "").strip():
            raise ConfigError("--unmeasured needs --reason TEXT, which is recorded with the version.")
        needing = (self.endpoint, self.expires, self.dry_run, self.first, self.no_wait, self.drop_replaced)
        if self.target == "local" and any(needing):
            raise ConfigError(
                "--endpoint, --expires, --dry-run, --first, --no-wait and --drop-replaced need --target sagemaker."
            )
        if self.target == "sagemaker" and self.detach:
            raise ConfigError("--detach needs --target local; an endpoint of SageMaker outlives the command anyway.")


@dataclass(frozen=True, kw_only=True)
class RollbackOptions:
    """an endpoint of SageMaker back to the version before"""

    endpoint: str | None = _option(None, "the endpoint, as `dogbreed endpoints` shows it", metavar="NAME")
    reason: str | None = _option(None, "why; recorded with the event", metavar="TEXT")

    def __post_init__(self) -> None:
        if not self.endpoint:
            raise ConfigError("rollback needs --endpoint NAME; `promote --to` moves the alias champion.")


@dataclass(frozen=True, kw_only=True)
class EndpointsOptions:
    """the endpoints that are live, on this machine and on SageMaker"""

    target: Literal["local", "sagemaker"] | None = _option(None, "only those of this machine, or of SageMaker")
    reap: bool = _option(False, "delete the endpoints of SageMaker that are past their lease")


@dataclass(frozen=True, kw_only=True)
class DeleteOptions:
    """stop an endpoint; on SageMaker, with all that was made for it"""

    # Not `name`: that is the config's.
    endpoint: str = _option("", "as `dogbreed endpoints` shows it", metavar="NAME", nargs="1")
    target: Literal["local", "sagemaker"] | None = _option(None, "where it is; default this machine, then SageMaker")
    yes: bool = _option(False, "sagemaker: do not ask before what is live is deleted")


@dataclass(frozen=True, kw_only=True)
class PredictOptions:
    """image files -> breeds, from a checkpoint, a model version or an endpoint"""

    images: tuple[str, ...] = _option(
        (), "files, folders or globs; - reads one image from stdin", metavar="IMAGE", nargs="+"
    )
    checkpoint: Path | None = _option(None, "a checkpoint of this project", metavar="FILE")
    model: str | None = _option(None, "a logged model: models:/NAME/VERSION or models:/NAME@ALIAS", metavar="URI")
    endpoint: str | None = _option(None, "a server's address: http://127.0.0.1:8080", metavar="URL")
    csv: bool = _option(False, "print comma-separated values instead of the table")
    out: Path | None = _option(None, "write a contact sheet, a .png or .html file", metavar="FILE")

    def __post_init__(self) -> None:
        if sum(map(bool, (self.checkpoint, self.model, self.endpoint))) != 1:
            raise ConfigError("predict needs one of --checkpoint FILE, --model URI and --endpoint URL, and only one.")
        if self.model and ":/" not in self.model:
            raise ConfigError(f"--model must be a URI such as models:/NAME@challenger, got {self.model!r}.")
        if self.endpoint and not self.endpoint.startswith(("http://", "https://")):
            raise ConfigError(f"--endpoint must be an http:// or https:// address, got {self.endpoint!r}.")
        if self.out is not None and self.out.suffix not in (".png", ".html"):
            raise ConfigError(f"--out must be a .png or .html file, got {str(self.out)!r}.")


@dataclass(frozen=True, kw_only=True)
class UiOptions:
    """the MLflow UI on this project's store"""

    host: str = _option("127.0.0.1", "the address to listen on")
    port: int = _option(5000, "the port to listen on")


@dataclass(frozen=True, kw_only=True)
class SagemakerLocalOptions:
    """a SageMaker on this machine: start, stop, status, logs of a job"""

    action: Literal["start", "stop", "status", "logs"] = _option("start", "what to do", metavar="ACTION", nargs="1")
    job: str | None = _option(None, "the training job whose logs are meant", metavar="JOB", nargs="?")
    host: str = _option("127.0.0.1", "the address to listen on; others reach it if not loopback")
    port: int = _option(5005, "the port to listen on; 0 takes any")
    foreground: bool = _option(False, "stay, until Ctrl-C, with the log on stderr")
    num_parallel_jobs: int | None = _option(None, "training jobs that run at once; default the cores")
    stop_grace_s: float = _option(120.0, "seconds from SIGTERM to SIGKILL")
    skip_requirements: bool = _option(False, "install no job's requirements.txt")

    def __post_init__(self) -> None:
        if (self.action == "logs") != (self.job is not None):
            raise ConfigError("sagemaker-local logs needs the name of a job, and only logs takes one.")


Options = (
    DataOptions
    | TrainOptions
    | TuneOptions
    | ProfileOptions
    | EvaluateOptions
    | PromoteOptions
    | HistoryOptions
    | DeployOptions
    | RollbackOptions
    | EndpointsOptions
    | DeleteOptions
    | PredictOptions
    | UiOptions
    | SagemakerLocalOptions
)

Verb = Literal[
    "data",
    "train",
    "tune",
    "profile",
    "evaluate",
    "promote",
    "history",
    "deploy",
    "rollback",
    "endpoints",
    "delete",
    "predict",
    "ui",
    "sagemaker-local",
]

VERBS: dict[Verb, Any] = {
    "data": DataOptions,
    "train": TrainOptions,
    "tune": TuneOptions,
    "profile": ProfileOptions,
    "evaluate": EvaluateOptions,
    "promote": PromoteOptions,
    "history": HistoryOptions,
    "deploy": DeployOptions,
    "rollback": RollbackOptions,
    "endpoints": EndpointsOptions,
    "delete": DeleteOptions,
    "predict": PredictOptions,
    "ui": UiOptions,
    "sagemaker-local": SagemakerLocalOptions,
}

CONFIG_VERBS: tuple[Verb, ...] = (
    "data",
    "train",
    "tune",
    "profile",
    "evaluate",
    "promote",
    "history",
    "deploy",
    "rollback",
    "endpoints",
    "delete",
)
"""Those that read a config; the others take their options alone."""
