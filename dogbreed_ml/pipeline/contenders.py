"""Challenger and champion behind their servers, measured with the same test images."""

import logging
import tempfile
from collections.abc import Mapping, Sequence
from contextlib import AbstractContextManager, ExitStack
from dataclasses import dataclass, replace
from pathlib import Path
from typing import TYPE_CHECKING, cast

from dogbreed_ml.checkpoint import load_checkpoint
from dogbreed_ml.config import ExperimentConfig
from dogbreed_ml.context import Context
from dogbreed_ml.data.splits import Splits
from dogbreed_ml.errors import DataError, DogbreedError, ServingError
from dogbreed_ml.measurement import Answer, Measurement, Timing, choose_spread, recognise, time_until_clear
from dogbreed_ml.quantization import find_int8
from dogbreed_ml.server.process import ServerProcess, ping, start_server

if TYPE_CHECKING:
    from dogbreed_ml.policies import ServingBackendName
    from dogbreed_ml.registry import ModelVersion
    from dogbreed_ml.tracking import Tracker

logger = logging.getLogger(__name__)


@dataclass(frozen=True)
class _Contender:
    version: "ModelVersion"
    checkpoint_path: Path
    notes: tuple[str, ...]

    @property
    def number(self) -> int:
        return self.version.version


def measure(
    tracker: "Tracker",
    config: ExperimentConfig,
    challenger: "ModelVersion",
    champion: "ModelVersion | None",
    splits: Splits,
    *,
    context: Context,
    may_go_alone: bool,
) -> tuple[dict[int, Measurement], tuple[str, ...]]:
    """By version, the challenger first, and what people must know besides.

    With `may_go_alone` a champion that cannot be served is left out; else that is a ServingError.
    """
    with ExitStack() as stack:
        folder = Path(stack.enter_context(tempfile.TemporaryDirectory(prefix="dogbreed-")))
        # The challenger first: where the config is the wrong one, the champion is not to blame.
        contenders, notes = [_prepared(tracker, challenger, splits, folder)], []
        servers: dict[int, ServerProcess] = {}
        if champion is not None:
            try:
                defender = _prepared(tracker, champion, splits, folder)
                servers[champion.version] = stack.enter_context(_serve(defender, config))
                contenders.append(defender)
            except DogbreedError as error:
                message = _unservable(champion, error)
                if not may_go_alone:
                    raise ServingError(message) from error
                notes.append(f"{message} The challenger was judged alone, by the limits of a first champion.")
        servers[challenger.version] = stack.enter_context(_serve(contenders[0], config))
        if len(contenders) > 1 and _differ_by_chance(contenders, servers, config):
            names = [_backend(servers[each.number]) for each in contenders]
            servers[challenger.version].stop()
            deploy = replace(config.deploy, backend=cast("ServingBackendName", names[1]))
            servers[challenger.version] = stack.enter_context(_serve(contenders[0], replace(config, deploy=deploy)))
            notes.append(f"auto chose {names[0]} for the challenger; both were measured with {names[1]}.")
        measured = _measured(contenders, servers, splits, config=config, context=context)
    notes += [note for contender in contenders for note in contender.notes]
    for note in notes:
        logger.warning("%s", note)
    return measured, tuple(notes)


def _prepared(tracker: "Tracker", version: "ModelVersion", splits: Splits, folder: Path) -> _Contender:
    """The version's files, in a folder below `folder`; DataError where it knows none of the breeds."""
    from dogbreed_ml.pyfunc import fetch_checkpoint

    path = fetch_checkpoint(version.uri, folder / str(version.version), tracking_uri=tracker.tracking_uri)
    checkpoint = load_checkpoint(path)
    unknown = sorted(set(splits.classes) - set(checkpoint.classes))
    if len(unknown) == len(splits.classes):
        raise DataError(
            f"Version {version.version} of {version.name} knows {_render_some(checkpoint.classes)}, and the test "
            f"images show {_render_some(splits.classes)}; give the config of the data that it was trained for."
        )
    notes = []
    if unknown:
        notes.append(f"Version {version.version} does not know {_render_some(unknown)}, and mistakes all their images.")
    if checkpoint.data_fingerprint not in (None, splits.fingerprint):
        notes.append(
            f"Version {version.version} was trained on other data (fingerprint {checkpoint.data_fingerprint}) than "
            f"this config's ({splits.fingerprint}): it may have been trained on test images."
        )
    return _Contender(version, path, tuple(notes))


def _serve(contender: _Contender, config: ExperimentConfig) -> AbstractContextManager[ServerProcess]:
    version = contender.version
    return start_server(
        contender.checkpoint_path,
        config=config.deploy,
        model_name=version.name,
        model_version=str(version.version),
    )


def _differ_by_chance(
    contenders: Sequence[_Contender], servers: Mapping[int, ServerProcess], config: ExperimentConfig
) -> bool:
    """Whether `auto`, which times a few images, chose two back ends for two networks that both could run on either."""
    chosen = {_backend(servers[each.number]) for each in contenders}
    have_int8 = {find_int8(each.checkpoint_path) is not None for each in contenders}
    return config.deploy.backend == "auto" and len(chosen) > 1 and len(have_int8) == 1


def _backend(server: ServerProcess) -> str:
    return str(ping(server.settings.host, server.settings.port).told["backend"])


def _measured(
    contenders: Sequence[_Contender],
    servers: Mapping[int, ServerProcess],
    splits: Splits,
    *,
    config: ExperimentConfig,
    context: Context,
) -> dict[int, Measurement]:
    urls = {each.number: servers[each.number].url for each in contenders}
    paths = [sample.path for sample in splits.test.samples]
    try:
        answers = {number: recognise(url, paths, progress=context.progress) for number, url in urls.items()}
        gate = config.promotion
        timings = time_until_clear(
            urls,
            [path.read_bytes() for path in choose_spread(paths, gate.num_requests)],
            num_rounds=gate.num_rounds,
            num_requests=gate.num_requests,
            max_p95_ratio=gate.max_p95_ratio,
            progress=context.progress,
        )
    except ServingError as error:
        named = ", ".join(f"version {number} is {url}" for number, url in urls.items())
        raise ServingError(f"{error} ({named})") from error
    return {
        each.number: _measurement(each, servers[each.number], answers[each.number], timings[each.number])
        for each in contenders
    }


def _unservable(champion: "ModelVersion", error: DogbreedError) -> str:
    return (
        f"The champion, version {champion.version} of {champion.name}, cannot be served: {error} "
        f"`dogbreed promote --to VERSION` goes back to an earlier champion, "
        f"`dogbreed promote --force --reason TEXT` judges the challenger alone and replaces it."
    )


def _measurement(
    contender: _Contender, server: ServerProcess, answers: tuple[Answer, ...], timing: Timing
) -> Measurement:
    backend = _backend(server)
    files = [contender.checkpoint_path]
    int8_path = find_int8(contender.checkpoint_path)
    if backend == "openvino-int8" and int8_path is not None:
        files += [int8_path, int8_path.with_suffix(".bin")]
    return Measurement(answers, timing, server.startup_s, sum(path.stat().st_size for path in files), backend)


def _render_some(breeds: Sequence[str]) -> str:
    return f"{', '.join(breeds[:5])}{f' and {len(breeds) - 5} more' if len(breeds) > 5 else ''}"
