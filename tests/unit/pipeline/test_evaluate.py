"""`dogbreed evaluate` on a store of its own: what it measures, where it is found again, what it refuses."""

import json
import shutil
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from mlflow import MlflowClient
from sklearn.metrics import f1_score, log_loss
from torchvision.models import ResNet

from dogbreed_ml.backend import available_backends
from dogbreed_ml.checkpoint import Checkpoint, load_checkpoint, save_checkpoint
from dogbreed_ml.config import ExperimentConfig, with_values
from dogbreed_ml.context import Context
from dogbreed_ml.data.sources import load_splits
from dogbreed_ml.data.splits import Splits
from dogbreed_ml.errors import CheckpointError, DataError, TrackingError
from dogbreed_ml.model import Network, build_resnet50
from dogbreed_ml.options import EvaluateOptions
from dogbreed_ml.pipeline.evaluate import evaluate, find_subject
from dogbreed_ml.pyfunc import fetch_checkpoint, log_model
from dogbreed_ml.registry import load_version, register_challenger
from dogbreed_ml.serve import Predictor
from dogbreed_ml.tracking import Tracker
from dogbreed_ml.transforms import Preprocessing, decode_image, to_square

CONFIG = with_values(
    ExperimentConfig(name="dogs"),
    {
        "data.num_breeds": 3,
        "data.num_per_breed": 8,
        "data.image_size": 32,
        "data.valid_share": 0.25,
        "data.test_share": 0.5,
        "tracking.system_metrics": False,
        "deploy.backend": "torch-fp32",
        "deploy.min_probability": 0.4,
    },
)


@dataclass(frozen=True)
class Project:
    context: Context
    checkpoint_path: Path
    splits: Splits
    model_uri: str

    @property
    def client(self) -> MlflowClient:
        return MlflowClient(self.context.tracking_uri, registry_uri=self.context.tracking_uri)

    def evaluate(self, config: ExperimentConfig = CONFIG, **options: Any) -> Any:
        return evaluate(config, EvaluateOptions(**options), context=self.context)


def _spread_answers(resnet: ResNet, splits: Splits) -> None:
    """Scales and centres the head so that a random network's logits differ from image to image."""
    squares = [to_square(decode_image(s.path.read_bytes()), Preprocessing(32)) for s in splits.test.samples]
    network = Network(resnet, "head").eval()
    with torch.inference_mode():
        logits = network(torch.from_numpy(np.stack(squares)).permute(0, 3, 1, 2))
    with torch.no_grad():
        scale = 1.5 / logits.std(dim=0)
        resnet.fc.weight.mul_(scale[:, None])
        resnet.fc.bias.sub_(logits.mean(dim=0)).mul_(scale)


@pytest.fixture(scope="module")
def project(tmp_path_factory: pytest.TempPathFactory) -> Project:
    """A store with one registered version, of a random network that is right now and then."""
    folder = tmp_path_factory.mktemp("project")
    context = Context(folder, argv=("dogbreed", "evaluate"))
    splits = load_splits(CONFIG.data, project_dir=folder)
    torch.manual_seed(0)
    resnet = build_resnet50(3, resnet_version="1.5")
    _spread_answers(resnet, splits)
    checkpoint = Checkpoint(
        dict(resnet.state_dict()),
        splits.classes,
        Preprocessing(image_size=32),
        "1.5",
        CONFIG,
        temperature=1.5,
        data_fingerprint=splits.fingerprint,
    )
    path = save_checkpoint(checkpoint, folder / "models" / "checkpoint.pt")
    with Tracker.open(project_dir=folder, config=CONFIG.tracking) as tracker:
        with tracker.start_run("dogs", run_name="train") as run:
            run.flush()
            model_uri = log_model(run.run_id, path, tracking_uri=tracker.tracking_uri)
        register_challenger(tracker, CONFIG.registered_model_name, model_uri=model_uri, run_id=run.run_id)
    return Project(context, path, splits, model_uri)


@pytest.fixture(scope="module")
def summary(project: Project) -> Any:
    return project.evaluate(version="challenger")


def test_evaluation_is_what_the_predictor_answers_on_the_test_images(project: Project, summary: Any) -> None:
    samples = project.splits.test.samples
    labels = [sample.label for sample in samples]
    predictor = Predictor.load(project.checkpoint_path, backend="torch-fp32")
    answers = predictor.predict([sample.path.read_bytes() for sample in samples], top_k=3)
    breeds = [project.splits.classes[label] for label in labels]
    right = [answer.breed == breed for answer, breed in zip(answers, breeds, strict=True)]
    probabilities = [[dict(answer.top5)[breed] for breed in project.splits.classes] for answer in answers]
    assert summary.num_images == len(samples) == 12
    assert summary.metrics["accuracy_top1"] == pytest.approx(np.mean(right))
    assert summary.metrics["loss"] == pytest.approx(log_loss(labels, probabilities, labels=range(3)), rel=1e-4)
    predicted = [project.splits.classes.index(answer.breed) for answer in answers]
    assert summary.metrics["f1_macro"] == pytest.approx(f1_score(labels, predicted, average="macro"))
    sure = np.array([answer.probability >= 0.4 for answer in answers])
    assert summary.answered == pytest.approx((sure.mean(), np.mean(np.array(right)[sure])))


def test_evaluation_is_a_run_with_tables_figures_and_its_data_set(project: Project, summary: Any) -> None:
    run = project.client.get_run(summary.run_id)
    assert run.info.status == "FINISHED"
    assert run.info.run_name == "evaluate"
    for name in ("accuracy_top1", "accuracy_top5", "f1_macro", "loss", "ece"):
        assert run.data.metrics[f"test/{name}"] == pytest.approx(summary.metrics[name])
    assert run.data.metrics["images_per_s"] == summary.images_per_s > 0
    tags = run.data.tags
    assert (tags["model.name"], tags["model.version"]) == ("dogs-resnet50", "1")
    assert tags["evaluation.data"] == "the test split that training left out"
    files = {file.path for file in project.client.list_artifacts(summary.run_id, "evaluation")}
    tables = ("breeds.csv", "coverage.csv", "reliability.csv", "mistakes.csv", "summary.json")
    figures = ("confusion.png", "breeds.png", "reliability.png", "coverage.png", "mistakes.png")
    assert {f"evaluation/{name}" for name in (*tables, *figures)} <= files
    assert run.inputs is not None
    assert [each.dataset.digest for each in run.inputs.dataset_inputs] == [project.splits.fingerprint]


def test_evaluation_is_found_from_the_model_and_its_version(project: Project, summary: Any) -> None:
    model_id = project.model_uri.removeprefix("models:/")
    run = project.client.get_run(summary.run_id)
    assert run.inputs is not None
    assert [each.model_id for each in run.inputs.model_inputs] == [model_id]
    logged = {metric.key: metric.value for metric in project.client.get_logged_model(model_id).metrics or []}
    assert logged["test/accuracy_top1"] == pytest.approx(summary.metrics["accuracy_top1"])
    with Tracker.attach(project.context.tracking_uri, config=CONFIG.tracking) as tracker:
        tags = load_version(tracker, "dogs-resnet50", 1).tags
    assert tags["evaluation.run_id"] == summary.run_id
    assert float(tags["evaluation.accuracy_top1"]) == pytest.approx(summary.metrics["accuracy_top1"], rel=1e-4)
    assert tags["evaluation.backend"] == "torch-fp32"


def test_evaluation_answers_as_text_and_as_json(summary: Any) -> None:
    text = summary.render()
    assert f"top-1   {summary.metrics['accuracy_top1']:.2%}" in text
    assert "unsure  below 0.4" in text
    told = json.loads(json.dumps(summary.to_dict()))
    assert told["metrics"]["accuracy_top1"] == summary.metrics["accuracy_top1"]
    assert told["answered"] == {"coverage": summary.answered[0], "accuracy": summary.answered[1]}


@pytest.mark.parametrize("reference", ["1", "challenger", "models:/dogs-resnet50@challenger", "logged model"])
def test_subject_is_found_by_each_name_of_a_model(project: Project, reference: str, tmp_path: Path) -> None:
    name = project.model_uri if reference == "logged model" else reference
    with Tracker.attach(project.context.tracking_uri, config=CONFIG.tracking) as tracker:
        subject = find_subject(name, CONFIG, tmp_path, tracker=tracker, context=project.context)
    assert subject.model_id == project.model_uri.removeprefix("models:/")
    assert (subject.version is None) == (reference == "logged model")
    assert load_checkpoint(subject.checkpoint_path).classes == project.splits.classes


def test_evaluation_of_a_checkpoint_file_with_mirror_images(project: Project, summary: Any) -> None:
    flipped = project.evaluate(version="models/checkpoint.pt", flip=True)
    inputs = project.client.get_run(flipped.run_id).inputs
    assert inputs is not None
    assert not inputs.model_inputs
    predictor = Predictor.load(project.checkpoint_path, backend="torch-fp32", flip=True)
    labels = project.splits.test.labels
    squares = np.stack([predictor.decode(s.path.read_bytes()) for s in project.splits.test.samples])
    expected = torch.nn.functional.cross_entropy(
        torch.from_numpy(predictor.logits(squares) / np.float32(1.5)), torch.from_numpy(labels)
    )
    assert flipped.metrics["loss"] == pytest.approx(float(expected), rel=1e-4)
    assert flipped.metrics["loss"] != pytest.approx(summary.metrics["loss"], rel=1e-4)


def test_evaluation_on_other_data_warns_and_is_marked(project: Project, caplog: pytest.LogCaptureFixture) -> None:
    other = project.evaluate(with_values(CONFIG, {"data.test_share": 0.4}), version="models/checkpoint.pt")
    assert "may have been trained on some of these test images" in caplog.text
    tags = project.client.get_run(other.run_id).data.tags
    assert tags["evaluation.data"].startswith("other data than the model was trained on")


def test_evaluation_on_a_folder_leaves_the_versions_tags(project: Project) -> None:
    folder = project.context.project_dir / "some"
    samples = project.splits.test.samples[:3]
    for sample in samples:
        breed = folder / project.splits.classes[sample.label]
        breed.mkdir(parents=True, exist_ok=True)
        shutil.copy(sample.path, breed)
    with Tracker.attach(project.context.tracking_uri, config=CONFIG.tracking) as tracker:
        before = load_version(tracker, "dogs-resnet50", 1).tags
        found = project.evaluate(version="challenger", folder=Path("some"))
        assert load_version(tracker, "dogs-resnet50", 1).tags == before
    assert (found.num_images, found.split, found.data) == (3, "folder", "folder some")
    assert "folder/accuracy_top1" in project.client.get_run(found.run_id).data.metrics
    (folder / "Dingo").mkdir()
    shutil.copy(samples[0].path, folder / "Dingo")
    with pytest.raises(DataError, match="does not know: 'Dingo'"):
        project.evaluate(version="challenger", folder=Path("some"))


def test_evaluation_of_what_is_not_there_is_refused_and_makes_no_run(project: Project) -> None:
    experiment = project.client.get_experiment_by_name("dogs")
    assert experiment is not None
    before = len(project.client.search_runs([experiment.experiment_id]))
    with pytest.raises(TrackingError, match="no alias 'champion'"):
        project.evaluate(version="champion")
    with pytest.raises(CheckpointError, match="must be an existing file"):
        project.evaluate(version="nowhere/checkpoint.pt")
    assert len(project.client.search_runs([experiment.experiment_id])) == before


@pytest.mark.slow
@pytest.mark.skipif("openvino-fp32" not in available_backends(torch.device("cpu")), reason="needs OpenVINO and NNCF")
def test_evaluation_with_int8_adds_it_to_the_model_and_serves_it(project: Project, tmp_path: Path) -> None:
    answer = project.evaluate(version="challenger", int8=True)
    assert answer.int8 is not None
    assert answer.int8.num_valid == len(project.splits.valid)
    fetched = fetch_checkpoint(project.model_uri, tmp_path, tracking_uri=project.context.tracking_uri)
    report = json.loads((fetched.parent / "int8" / "report.json").read_text())
    assert report == answer.int8.to_dict()
    assert load_checkpoint(fetched).classes == project.splits.classes
    assert (fetched.parent / "int8" / "model.bin").is_file() == answer.int8.accepted
    with Tracker.attach(project.context.tracking_uri, config=CONFIG.tracking) as tracker:
        tags = load_version(tracker, "dogs-resnet50", 1).tags
    assert tags["int8.accepted"] == str(answer.int8.accepted).lower()
    assert "int8    " in answer.render()
