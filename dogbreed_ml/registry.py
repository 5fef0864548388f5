"""Registered models: versions and the aliases `challenger` and `champion`; never stages."""

from collections.abc import Mapping
from dataclasses import dataclass, replace

from mlflow.entities import LoggedModelInput
from mlflow.entities.model_registry import ModelVersion as MlflowVersion
from mlflow.exceptions import MlflowException

from dogbreed_ml.errors import TrackingError
from dogbreed_ml.tracking import Tracker

CHALLENGER, CHAMPION = "challenger", "champion"

RUN_TAG, MODEL_ID_TAG = "run_id", "model_id"


@dataclass(frozen=True)
class ModelVersion:
    """One version of a registered model."""

    name: str
    version: int
    aliases: tuple[str, ...]
    run_id: str | None
    """The run that made it."""
    tags: dict[str, str]
    model_id: str | None = None
    """The logged model behind it, m-...; None for a version that `register_challenger` did not make."""

    @property
    def uri(self) -> str:
        return f"models:/{self.name}/{self.version}"


def register_challenger(
    tracker: Tracker, name: str, *, model_uri: str, run_id: str, tags: Mapping[str, str] | None = None
) -> ModelVersion:
    """Registers a logged model (models:/m-...) as the next version of `name` and moves `challenger` to it.

    A logged model that is registered already keeps its version: calling twice does no harm.
    """
    all_tags = {RUN_TAG: run_id, MODEL_ID_TAG: model_uri.removeprefix("models:/"), **(tags or {})}
    version = tracker.patiently(lambda: _registered(tracker, name, model_uri, run_id, all_tags))
    tracker.patiently(lambda: tracker.client.set_registered_model_alias(name, CHALLENGER, str(version)))
    return load_version(tracker, name, version)


def load_version(tracker: Tracker, name: str, version: int) -> ModelVersion:
    """One version by number; TrackingError where there is none."""
    return _converted(tracker.patiently(lambda: tracker.client.get_model_version(name, str(version))))


def find_alias(tracker: Tracker, name: str, alias: str) -> ModelVersion | None:
    """The version that an alias points to; None where the model or the alias does not exist."""

    def find() -> MlflowVersion | None:
        try:
            return tracker.client.get_model_version_by_alias(name, alias)
        except MlflowException as error:
            # A missing model and a missing alias have different codes.
            if error.error_code in ("RESOURCE_DOES_NOT_EXIST", "INVALID_PARAMETER_VALUE"):
                return None
            raise

    found = tracker.patiently(find)
    # The answer by alias leaves out the version's other aliases.
    return None if found is None else load_version(tracker, name, int(found.version))


def resolve_version(tracker: Tracker, name: str, reference: str) -> ModelVersion:
    """The version of the registered model `name` that an alias or a number names.

    models:/NAME/VERSION and models:/NAME@ALIAS name one of any registered model. TrackingError where there is none.
    """
    scheme, _, rest = reference.partition(":/")
    if scheme == "models":
        name, separator, key = rest.rpartition("@") if "@" in rest else rest.rpartition("/")
        if not separator:
            raise TrackingError(
                f"A registered version is named as models:/NAME/VERSION or models:/NAME@ALIAS, got {reference!r}."
            )
    else:
        key = reference
    try:
        number = int(key)
    except ValueError:
        found = find_alias(tracker, name, key)
    else:
        found = next((each for each in list_versions(tracker, name) if each.version == number), None)
    if found is None:
        raise TrackingError(_render_missing(tracker, name, key))
    return load_version(tracker, found.name, found.version)


def list_versions(tracker: Tracker, name: str) -> list[ModelVersion]:
    """All versions in order of their numbers, without their aliases; none where there is no such model."""

    def search() -> list[MlflowVersion]:
        found: list[MlflowVersion] = []
        token: str | None = None
        while True:
            page = tracker.client.search_model_versions(f"name = '{name}'", page_token=token)
            found += page
            token = page.token
            if not token:
                return found

    versions = map(_converted, tracker.patiently(search))
    return sorted((replace(each, aliases=()) for each in versions), key=lambda each: each.version)


def set_version_tags(tracker: Tracker, version: ModelVersion, tags: Mapping[str, str]) -> None:
    """Sets tags of a version, in their order; each replaces the tag of its name."""

    def set_all() -> None:
        for key, value in tags.items():
            tracker.client.set_model_version_tag(version.name, str(version.version), key, value)

    tracker.patiently(set_all)


def move_alias(tracker: Tracker, version: ModelVersion, alias: str) -> None:
    """Points an alias of the model to this version."""
    tracker.patiently(lambda: tracker.client.set_registered_model_alias(version.name, alias, str(version.version)))


def link_model(tracker: Tracker, run_id: str, version: ModelVersion) -> None:
    """Makes the version's model an input of the run, so that the model's page shows the run."""
    if version.model_id is not None:
        link = LoggedModelInput(version.model_id)
        tracker.patiently(lambda: tracker.client.log_inputs(run_id, models=[link]))


def _render_missing(tracker: Tracker, name: str, key: str) -> str:
    versions = ", ".join(str(each.version) for each in list_versions(tracker, name))
    if not versions:
        return f"There is no registered model {name!r} to take {key!r} of; `dogbreed tune` makes one from its config."
    what = f"no version {key}" if key.lstrip("-").isdigit() else f"no alias {key!r}"
    return f"The registered model {name!r} has {what}; it has the versions {versions}."


def _registered(tracker: Tracker, name: str, model_uri: str, run_id: str, tags: dict[str, str]) -> int:
    try:
        tracker.client.create_registered_model(name)
    except MlflowException as error:
        if error.error_code != "RESOURCE_ALREADY_EXISTS":
            raise
    model_id = model_uri.removeprefix("models:/")
    if "/" in model_id or not model_uri.startswith("models:/"):
        raise TrackingError(f"model_uri must be that of a logged model, models:/m-..., got {model_uri!r}.")
    # Not models:/m-...: a database store would look that up in the global tracking URI, not in its own.
    source = tracker.client.get_logged_model(model_id).artifact_location
    for version in tracker.client.search_model_versions(f"name = '{name}' and run_id = '{run_id}'"):
        if version.source == source:
            return int(version.version)
    made = tracker.client.create_model_version(name, source=source, run_id=run_id, tags=tags, model_id=model_id)
    return int(made.version)


def _converted(version: MlflowVersion) -> ModelVersion:
    # The database gives the version as a number, the server as text.
    return ModelVersion(
        version.name,
        int(version.version),
        tuple(sorted(version.aliases)),
        version.run_id or None,
        dict(version.tags),
        # MLflow's database store takes a model_id and forgets it.
        version.model_id or version.tags.get(MODEL_ID_TAG),
    )
