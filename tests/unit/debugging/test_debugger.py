"""smdebug's hook on real trainings, and the rules on what it saved: ailments made for real, live and afterwards."""

import re
import sys
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

import pytest
import torch
from memorybatches import MemoryBatches
from torch import nn

from dogbreed_ml.config import TrainConfig
from dogbreed_ml.debugging.classnames import CLASSES_FILE
from dogbreed_ml.debugging.debugger import Debugger, judge_tensors
from dogbreed_ml.debugging.epochs import EPOCH_RULES, judge_epochs
from dogbreed_ml.errors import ConfigError, ProfileError
from dogbreed_ml.evaluation import compute_metrics
from dogbreed_ml.profiling.verdicts import Verdict
from dogbreed_ml.ruleparameters import TENSOR_RULES, RuleName
from dogbreed_ml.train import EpochResult, build_loss, evaluate, fit

# smdebug 1.0.34 with numpy 1.26.
pytestmark = pytest.mark.filterwarnings("ignore:tostring.. is deprecated:DeprecationWarning")

CPU = torch.device("cpu")
NUM_CLASSES = 4


def clusters(num: int, *, seed: int, spread: float = 0.5, num_classes: int = NUM_CLASSES) -> MemoryBatches:
    """Clusters in 32 dimensions, equally many of each; the same centres for each seed."""
    centres = torch.randn(num_classes, 32, generator=torch.Generator().manual_seed(9))
    labels = torch.arange(num) % num_classes
    noise = torch.randn(num, 32, generator=torch.Generator().manual_seed(seed))
    return MemoryBatches(centres[labels] + spread * noise, labels)


def network(seed: int = 0) -> nn.Sequential:
    torch.manual_seed(seed)
    return nn.Sequential(nn.Linear(32, 24), nn.ReLU(inplace=True), nn.Linear(24, NUM_CLASSES))


def linear(model: nn.Sequential, index: int) -> nn.Linear:
    layer = model[index]
    assert isinstance(layer, nn.Linear)
    return layer


@dataclass
class Debugged:
    """A training that the debugger watched to its end."""

    tensors_dir: Path
    results: list[EpochResult]
    verdicts: dict[str, Verdict]
    stopped_by: str | None
    notes: tuple[str, ...]

    def issues(self) -> set[str]:
        return {name for name, verdict in self.verdicts.items() if verdict.status == "IssuesFound"}


Debug = Callable[..., Debugged]


@pytest.fixture
def debug(tmp_path: Path) -> Debug:
    def run(
        model: nn.Module,
        train: MemoryBatches | None = None,
        *,
        valid: MemoryBatches | None = None,
        stop_on: tuple[RuleName, ...] = (),
        parameters: dict[str, dict[str, object]] | None = None,
        save_interval: int = 2,
        max_gib: float = 1.0,
        num_classes: int = NUM_CLASSES,
        class_names: tuple[str, ...] = (),
        **config: object,
    ) -> Debugged:
        train = train or clusters(160, seed=1)
        valid = valid or clusters(80, seed=2)
        settings = TrainConfig(**{"num_epochs": 3, "batch_size": 16, "lr": 1e-2, **config})  # type: ignore[arg-type]
        loss_function = build_loss(train.labels, settings, num_classes)
        tensors_dir = tmp_path / "tensors"
        debugger = Debugger.open(
            tensors_dir,
            save_interval=save_interval,
            max_gib=max_gib,
            stop_on=stop_on,
            parameters=parameters,
            class_names=class_names,
        )
        with debugger:
            debugger.watch(model, loss_function)
            training = fit(
                model,
                train,
                valid=valid,
                config=settings,
                metrics=compute_metrics,
                num_classes=num_classes,
                device=CPU,
                loss_function=loss_function,
            )
            results = list(debugger.epochs(training, num_epochs=settings.num_epochs))
        verdicts = {verdict.rule: verdict for verdict in debugger.verdicts}
        return Debugged(tensors_dir, results, verdicts, debugger.stopped_by, debugger.notes)

    return run


def test_healthy_training_has_no_issue(debug: Debug) -> None:
    debugged = debug(network(), parameters={"ClassImbalance": {"samples": 100}})
    assert tuple(debugged.verdicts) == TENSOR_RULES
    assert debugged.issues() == set()
    # 15 of 30 steps; a weight and a bias of 2 layers; 3 evaluations.
    assert debugged.verdicts["VanishingGradient"].datapoints == 15 * 4
    assert debugged.verdicts["DeadRelu"].datapoints == 15
    assert debugged.verdicts["Overfit"].datapoints == 3
    statuses = {verdict.status for verdict in debugged.verdicts.values()}
    assert statuses == {"NoIssuesFound", "NotApplicable"}
    assert debugged.verdicts["Overtraining"].reason.startswith("not applicable: too short to tell, 3 losses")


def test_verdicts_afterwards_are_those_of_the_run(debug: Debug) -> None:
    debugged = debug(network(), num_epochs=7)
    assert {verdict.rule: verdict for verdict in judge_tensors(debugged.tensors_dir)} == debugged.verdicts


def test_smdebugs_own_reader_finds_what_was_trained(debug: Debug) -> None:
    from dogbreed_ml.debugging.debugger import import_smdebug

    model, train = network(), clusters(160, seed=1)
    first_weight = linear(model, 0).weight.detach().clone()
    debugged = debug(model, train, num_epochs=1, save_interval=5)
    trial = import_smdebug("tensorrules").open_trial(debugged.tensors_dir)
    from smdebug import modes

    assert trial.steps(mode=modes.TRAIN) == [0, 5]
    assert torch.equal(torch.from_numpy(trial.tensor("Sequential_0.weight").value(0)), first_weight)
    labels = trial.tensor("labels").value(0)
    logits = trial.tensor("predictions").value(0)
    loss = trial.tensor("CrossEntropyLoss_output_0").value(0)
    expected = nn.functional.cross_entropy(torch.from_numpy(logits), torch.from_numpy(labels))
    assert float(loss) == pytest.approx(float(expected), rel=1e-6)
    valid_loss = trial.tensor("CrossEntropyLoss_output_0").value(0, mode=modes.EVAL)
    assert float(valid_loss) == pytest.approx(debugged.results[0].metrics["valid/loss"], rel=1e-6)
    # The input of a ReLU that works in place, not its output.
    assert trial.tensor("1.relu_input_0").value(0).min() < 0 == trial.tensor("1.relu_output_0").value(0).min()


def test_hook_changes_nothing_and_lets_go(debug: Debug) -> None:
    watched, alone, train = network(), network(), clusters(160, seed=1)
    debugged = debug(watched, train, num_epochs=2)
    config = TrainConfig(num_epochs=2, batch_size=16, lr=1e-2)
    valid = clusters(80, seed=2)
    plain = list(
        fit(alone, train, valid=valid, config=config, metrics=compute_metrics, num_classes=NUM_CLASSES, device=CPU)
    )
    assert [each.metrics for each in debugged.results] == [each.metrics for each in plain]
    relu = watched[1]
    assert isinstance(relu, nn.ReLU)
    assert relu.inplace
    assert not any(module._forward_hooks or module._forward_pre_hooks for module in watched.modules())
    assert not any(parameter._backward_hooks for parameter in watched.parameters())


def test_exploding_tensor_stops_the_training(debug: Debug) -> None:
    debugged = debug(network(), num_epochs=6, lr=1e30, optimizer="sgd", stop_on=("ExplodingTensor",))
    assert debugged.stopped_by == "ExplodingTensor"
    assert len(debugged.results) == 1
    verdict = debugged.verdicts["ExplodingTensor"]
    assert (verdict.status, verdict.evidence[0].values["step"]) == ("IssuesFound", 2.0)
    assert abs(verdict.evidence[0].start_s - debugged.tensors_dir.stat().st_mtime) < 60
    assert debugged.notes == ("The rule ExplodingTensor ended the training after epoch 0.",)


def test_rule_that_triggers_in_the_last_epoch_ended_nothing(debug: Debug) -> None:
    debugged = debug(network(), num_epochs=1, lr=1e30, optimizer="sgd", stop_on=("ExplodingTensor",))
    assert "ExplodingTensor" in debugged.issues()
    assert (debugged.stopped_by, debugged.notes) == (None, ())


def test_stopped_training_with_patience_has_the_best_epochs_weights(debug: Debug) -> None:
    generator = torch.Generator().manual_seed(3)
    train, valid = clusters(32, seed=1, spread=3.0), clusters(80, seed=2, spread=3.0)
    train.labels = torch.randint(0, NUM_CLASSES, (32,), generator=generator)
    model = network()
    stop_on: tuple[RuleName, ...] = ("Overtraining",)
    debugged = debug(model, train, valid=valid, num_epochs=25, lr=3e-2, patience=20, stop_on=stop_on)
    assert debugged.stopped_by == "Overtraining"
    best = min(debugged.results, key=lambda each: each.metrics["valid/loss"])
    assert best.epoch < debugged.results[-1].epoch
    evaluated = evaluate(model, valid, device=CPU)
    loss = compute_metrics(evaluated.logits, evaluated.labels)["loss"]
    assert loss == pytest.approx(best.metrics["valid/loss"])


def test_only_a_rule_that_was_named_stops_the_training(debug: Debug) -> None:
    debugged = debug(network(), num_epochs=2, lr=1e30, optimizer="sgd", stop_on=("Overtraining",))
    assert "ExplodingTensor" in debugged.issues()
    assert debugged.stopped_by is None
    assert len(debugged.results) == 2


def test_tensors_stay_within_their_disk_and_the_rules_say_the_same(
    debug: Debug, caplog: pytest.LogCaptureFixture
) -> None:
    caplog.set_level("INFO", logger="dogbreed_ml")
    # A saved step takes 29 kB: 17 of them in 0.5 MB.
    debugged = debug(network(), num_epochs=30, save_interval=1, max_gib=500_000 / 2**30, lr=1e-9)
    sizes = {path: path.stat().st_size for path in debugged.tensors_dir.glob("events/*/*.tfevents")}
    training = [size for size in sizes.values() if size > 5_000]
    assert 450_000 < sum(training) <= 500_000
    (note,) = debugged.notes
    assert note.startswith("Tensors were saved every 1 training steps, every 2 after step ")
    assert re.search(r"none after step \d+: they take 0\.000\d+ GiB of profile\.max_gib=0\.0004657\.$", note)
    assert "no tensors are saved after step " in caplog.text
    assert "tensors are saved every 2 training steps after step " in caplog.text
    # Losses of epochs are saved to the end, at their own steps: 10 an epoch.
    assert debugged.verdicts["Overfit"].datapoints == 30
    losses = debugged.verdicts["LossNotDecreasing"]
    assert (losses.status, losses.evidence[-1].values["step"]) == ("IssuesFound", 299)
    assert {verdict.rule: verdict for verdict in judge_tensors(debugged.tensors_dir)} == debugged.verdicts


def test_dead_relus_are_found(debug: Debug) -> None:
    model = network()
    with torch.no_grad():
        linear(model, 0).bias.fill_(-100.0)
    debugged = debug(model)
    verdict = debugged.verdicts["DeadRelu"]
    assert verdict.status == "IssuesFound"
    assert {each.where for each in verdict.evidence} == {"1.relu_output_0"}
    # Nothing comes back through dead units.
    assert {"AllZero", "VanishingGradient"} <= debugged.issues()


def test_vanishing_gradient_of_stacked_sigmoids_is_found(debug: Debug) -> None:
    torch.manual_seed(0)
    hidden = [layer for _ in range(8) for layer in (nn.Linear(32, 32), nn.Sigmoid())]
    debugged = debug(nn.Sequential(*hidden, nn.Linear(32, NUM_CLASSES)))
    verdict = debugged.verdicts["VanishingGradient"]
    assert verdict.status == "IssuesFound"
    assert verdict.evidence[0].where == "gradient/Sequential_0.bias"
    assert debugged.verdicts["DeadRelu"].reason == "not applicable: no outputs of ReLUs were saved"


def test_poor_initialization_is_found_while_the_loss_stands_still(debug: Debug) -> None:
    torch.manual_seed(0)
    model = nn.Sequential(
        *(nn.Linear(32, 32), nn.ReLU(), nn.Linear(32, 32), nn.ReLU(), nn.Linear(32, NUM_CLASSES)),
    )
    with torch.no_grad():
        linear(model, 2).weight.mul_(1e-4)
        linear(model, 2).bias.mul_(1e-4)
    ill = debug(model, lr=1e-9, save_interval=1, batch_size=160, num_epochs=8)
    verdict = ill.verdicts["PoorWeightInitialization"]
    assert verdict.status == "IssuesFound"
    assert "3.relu_input_0" in {each.where for each in verdict.evidence}


def test_loss_that_stands_still_is_found(debug: Debug) -> None:
    assert "LossNotDecreasing" in debug(network(), lr=1e-12).issues()


def test_overfit_and_overtraining_are_found(debug: Debug) -> None:
    generator = torch.Generator().manual_seed(3)
    train, valid = clusters(32, seed=1, spread=3.0), clusters(80, seed=2, spread=3.0)
    train.labels = torch.randint(0, NUM_CLASSES, (32,), generator=generator)
    debugged = debug(network(), train, valid=valid, num_epochs=25, stop_on=("Overtraining",), lr=3e-2)
    assert {"Overfit", "Overtraining"} <= debugged.issues()
    assert debugged.stopped_by == "Overtraining"
    assert len(debugged.results) < 25


@pytest.mark.parametrize(
    ("class_names", "rare"),
    [(("Airedale", "Borzoi", "Collie", "Dhole"), "Dhole"), ((), "class 3")],
    ids=["by name", "by label"],
)
def test_class_imbalance_is_found_by_counts_and_by_mistakes(
    debug: Debug, class_names: tuple[str, ...], rare: str
) -> None:
    train = clusters(160, seed=1)
    keep = torch.tensor([label != 3 or index < 24 for index, label in enumerate(train.labels.tolist())])
    few = MemoryBatches(train.inputs[keep], train.labels[keep])
    # The rare ones look like another breed.
    few.inputs[few.labels == 3] = few.inputs[few.labels == 0][: int((few.labels == 3).sum())]
    parameters = {"ClassImbalance": {"samples": 120, "threshold_imbalance": 5}}
    debugged = debug(network(), few, num_epochs=6, parameters=parameters, class_names=class_names)
    verdict = debugged.verdicts["ClassImbalance"]
    assert verdict.status == "IssuesFound"
    assert {each.where for each in verdict.evidence} == {rare}
    assert rare in verdict.reason
    afterwards = judge_tensors(debugged.tensors_dir, parameters=parameters)
    assert {each.rule: each for each in afterwards}["ClassImbalance"] == verdict
    assert any("mispredicted_share" in each.values for each in verdict.evidence)
    assert any("ratio" in each.values for each in verdict.evidence)


def test_balanced_classes_are_not_imbalanced_for_being_many(debug: Debug) -> None:
    def equals(num: int, seed: int) -> MemoryBatches:
        """120 classes, none nearer to another than the rest."""
        labels = torch.arange(120 * num) % 120
        noise = torch.randn(len(labels), 120, generator=torch.Generator().manual_seed(seed))
        return MemoryBatches(8 * torch.eye(120)[labels] + noise, labels)

    torch.manual_seed(0)
    debugged = debug(
        nn.Sequential(nn.Linear(120, 120)),
        equals(40, seed=1),
        valid=equals(2, seed=2),
        num_classes=120,
        num_epochs=2,
        batch_size=60,
        lr=2e-2,
        save_interval=1,
        stop_on=("ClassImbalance",),
    )
    assert debugged.stopped_by is None
    verdict = debugged.verdicts["ClassImbalance"]
    assert (verdict.status, verdict.datapoints) == ("NoIssuesFound", 2 * 4800)
    # The training went from knowing nothing to knowing most of it, under the rule's eyes.
    assert debugged.results[-1].metrics["valid/accuracy_top1"] > 0.9


def test_one_rare_class_of_many_is_found_once_there_are_labels_enough(debug: Debug) -> None:
    train = clusters(60 * 40, seed=1, num_classes=60)
    keep = torch.tensor([label != 7 or index < 120 for index, label in enumerate(train.labels.tolist())])
    few = MemoryBatches(train.inputs[keep], train.labels[keep])
    torch.manual_seed(0)
    model = nn.Sequential(nn.Linear(32, 60))
    debugged = debug(model, few, num_classes=60, num_epochs=1, batch_size=59, save_interval=1, lr=1e-9)
    verdict = debugged.verdicts["ClassImbalance"]
    assert (verdict.status, verdict.details["where"]) == ("IssuesFound", ["class 7"])
    # 30 labels of each of the 60.
    assert verdict.evidence[0].values["step"] >= 60 * 30 / 59 - 1
    assert verdict.evidence[-1].values == {"step": 40, "ratio": 20, "largest": 40, "smallest": 2}


def test_few_labels_of_many_classes_are_too_few_to_tell(debug: Debug) -> None:
    train = clusters(600, seed=1, num_classes=60)
    torch.manual_seed(0)
    model = nn.Sequential(nn.Linear(32, 60))
    debugged = debug(model, train, num_classes=60, num_epochs=1, batch_size=60, save_interval=1, lr=1e-9)
    assert debugged.verdicts["ClassImbalance"].reason == (
        "not applicable: too short to tell, 600 labels of 60 classes where at least 1800 are needed"
    )


def test_rules_of_epochs_say_the_same_with_and_without_tensors(debug: Debug) -> None:
    debugged = debug(network(), num_epochs=8)
    verdicts = judge_epochs(debugged.results, label_counts={str(label): 40 for label in range(NUM_CLASSES)})
    for verdict in verdicts:
        if verdict.rule in ("LossNotDecreasing", "Overfit", "Overtraining"):
            watched = debugged.verdicts[verdict.rule]
            assert (verdict.status, verdict.triggered) == (watched.status, watched.triggered)
    assert {verdict.rule for verdict in verdicts} == set(EPOCH_RULES)


def test_network_in_bfloat16_is_saved(debug: Debug) -> None:
    torch.manual_seed(0)
    model = nn.Sequential(
        nn.Unflatten(1, (2, 4, 4)), nn.Conv2d(2, 4, 3), nn.ReLU(inplace=True), nn.Flatten(), nn.Linear(16, NUM_CLASSES)
    )
    debugged = debug(model, num_epochs=1, precision="bf16")
    assert debugged.verdicts["DeadRelu"].datapoints == 5
    assert debugged.verdicts["ExplodingTensor"].status == "NoIssuesFound"


def test_frozen_layers_are_not_saved(debug: Debug) -> None:
    model = network()
    model[0].requires_grad_(False)
    debugged = debug(model, num_epochs=1)
    assert debugged.verdicts["VanishingGradient"].datapoints == 5 * 2
    # The ReLU stands before the first layer that is trained.
    assert debugged.verdicts["DeadRelu"].status == "NotApplicable"


def test_training_that_never_starts_has_verdicts_that_say_so(tmp_path: Path) -> None:
    with Debugger.open(tmp_path / "tensors", save_interval=1, max_gib=1) as debugger:
        debugger.watch(network(), nn.CrossEntropyLoss())
    assert {verdict.reason for verdict in debugger.verdicts} == {"not applicable: no step was saved"}


def test_without_smdebug_the_verdicts_say_why(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    for name in ("hook", "tensorrules"):
        monkeypatch.delitem(sys.modules, f"dogbreed_ml.debugging.{name}", raising=False)
    for name in [name for name in sys.modules if name.split(".")[0] == "smdebug"]:
        monkeypatch.delitem(sys.modules, name)
    monkeypatch.setitem(sys.modules, "smdebug", None)
    model = network()
    with Debugger.open(tmp_path / "tensors", save_interval=1, max_gib=1, stop_on=["ExplodingTensor"]) as debugger:
        debugger.watch(model, nn.CrossEntropyLoss())
        results = iter([EpochResult(0, 1, {"train/loss": 1.0}, 1.0, True)])
        assert len(list(debugger.epochs(each for each in results))) == 1
    assert len(debugger.verdicts) == len(TENSOR_RULES)
    assert all(verdict.status == "NotApplicable" for verdict in debugger.verdicts)
    assert "smdebug cannot be imported" in debugger.verdicts[0].reason
    assert "The debugger is off: smdebug cannot be imported" in caplog.text
    assert judge_tensors(tmp_path)[0].status == "NotApplicable"


def test_damaged_tensors_are_an_error_of_the_rules_that_need_them(debug: Debug) -> None:
    debugged = debug(network(), num_epochs=1)
    event = sorted(debugged.tensors_dir.glob("events/*/*.tfevents"))[0]
    event.write_bytes(event.read_bytes()[:100])
    verdicts = {verdict.rule: verdict for verdict in judge_tensors(debugged.tensors_dir)}
    assert verdicts["VanishingGradient"].status == "Error"
    assert verdicts["VanishingGradient"].reason.startswith("step 0 could not be read: ")


def test_folder_without_tensors_is_refused(tmp_path: Path) -> None:
    with pytest.raises(ProfileError, match="must hold tensors that smdebug saved"):
        judge_tensors(tmp_path)


def test_unknown_rules_are_refused(tmp_path: Path) -> None:
    with pytest.raises(ConfigError, match="must be one of LossNotDecreasing, .*, got 'Explodes'"):
        Debugger.open(tmp_path / "tensors", save_interval=1, max_gib=1, stop_on=["Explodes"])  # type: ignore[list-item]


def test_debugger_writes_nothing_to_stdout(debug: Debug, capsys: pytest.CaptureFixture[str]) -> None:
    debug(network(), num_epochs=1)
    assert capsys.readouterr().out == ""


@pytest.mark.parametrize(("text", "what"), [("[1, 2]", "must be a list of names, got [1, 2]"), ("[", "must be JSON")])
def test_names_of_classes_that_cannot_be_read_are_an_error_with_their_place(debug: Debug, text: str, what: str) -> None:
    debugged = debug(network(), num_epochs=1, class_names=("a", "b", "c", "d"))
    path = debugged.tensors_dir / CLASSES_FILE
    assert path.exists()
    path.write_text(text)
    with pytest.raises(ProfileError, match=re.escape(f"{path} {what}")):
        judge_tensors(debugged.tensors_dir)
