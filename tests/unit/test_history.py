"""What `dogbreed history` prints."""

import json
from datetime import UTC, datetime, timedelta

from dogbreed_ml.pipeline.history import DeploymentRecord, GateRecord, History
from dogbreed_ml.reigns import Reign

START = datetime(2026, 11, 21, 10, 0, tzinfo=UTC)
LATER = START + timedelta(days=2, seconds=5)
REIGNS = (
    Reign(1, "passed", START, until=LATER, by="ann", run_id="r1", figures={"accuracy_top1": 0.8125, "p95_ms": 9.04}),
    Reign(2, "forced", LATER, by="bob", reason="the fair is tomorrow", run_id="r2"),
)
VERDICT = GateRecord(
    time=LATER.isoformat(),
    model="dogs-resnet50",
    version=2,
    against="1",
    outcome="refused",
    dry_run=True,
    reasons=f"breeds: {'Boxer 80% to 50%, ' * 20}",
    run_id="0123456789abcdef",
)


def _squeezed(line: str) -> str:
    return " ".join(line.split())


def test_history_without_champions_says_so() -> None:
    assert History("dogs-resnet50", None, (), ()).render() == "dogs-resnet50: no champion"


def test_history_shows_reigns_with_their_grounds() -> None:
    lines = History("dogs-resnet50", 2, REIGNS, ()).render().splitlines()
    assert lines[0] == "dogs-resnet50: version 2 is champion"
    assert _squeezed(lines[3]) == "1 2026-11-21 10:00:00Z 2026-11-23 10:00:05Z passed 81.25% 9.0 ms ann"
    assert _squeezed(lines[4]) == "2 2026-11-23 10:00:05Z now forced - - bob the fair is tomorrow"


def test_history_tells_what_it_cannot_know() -> None:
    moved = (*REIGNS, Reign(1, "outside", None))
    lines = History("dogs-resnet50", 1, moved, ()).render().splitlines()
    assert lines[4].split()[3] == "unknown"
    assert _squeezed(lines[5]) == "1 unknown now outside - - - the alias was moved by other means"
    gone = History("dogs-resnet50", None, REIGNS, ()).render().splitlines()
    assert gone[0] == "dogs-resnet50: no champion"
    assert gone[4].split()[3] == "unknown"


def test_history_shows_verdicts_and_deployments() -> None:
    deployment = DeploymentRecord(2, "dogs-8080", "openvino-int8", START.isoformat(), None, "ann", "a demo")
    history = History("dogs-resnet50", 2, REIGNS, (VERDICT,), (deployment,))
    lines = history.render().splitlines()
    verdict = next(line for line in lines if "0123456789abcdef" in line)
    assert verdict.startswith("2026-11-23 10:00:05Z  2        1        refused (dry run)")
    assert verdict.endswith("...")
    assert len(verdict) < 160
    assert _squeezed(lines[-1]) == "2 2026-11-21 10:00:00Z open dogs-8080 openvino-int8 ann a demo"


def test_history_is_plain_json_with_all_that_it_knows() -> None:
    deployment = DeploymentRecord(2, "dogs-8080", "torch-bf16", START.isoformat(), LATER.isoformat(), "ann", None)
    told = json.loads(json.dumps(History("dogs-resnet50", 2, REIGNS, (VERDICT,), (deployment,)).to_dict()))
    assert (told["model"], told["champion"]) == ("dogs-resnet50", 2)
    assert told["reigns"][1]["reason"] == "the fair is tomorrow"
    assert told["reigns"][0]["until"] == told["reigns"][1]["since"] == LATER.isoformat()
    assert told["verdicts"][0]["reasons"] == VERDICT.reasons
    assert told["deployments"][0]["until"] == LATER.isoformat()
