"""What `dogbreed history` prints."""

import json
from datetime import UTC, datetime, timedelta
from typing import Any

from dogbreed_ml.deployments import DeploymentEvent
from dogbreed_ml.pipeline.history import GateRecord, History
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


def event(action: str, *, minutes: int, **fields: Any) -> DeploymentEvent:
    return DeploymentEvent(
        **{
            "time": (START + timedelta(minutes=minutes)).isoformat(),
            "action": action,
            "outcome": "done",
            "target": "sagemaker",
            "endpoint": "dogs",
            "model": "dogs-resnet50",
            "version": 2,
            "by": "ann",
            "run_id": "r3",
            **fields,
        }
    )


def test_history_shows_models_and_endpoints_in_one_line_of_time() -> None:
    local = event("deploy", minutes=5, target="local", endpoint="dogs-8080", backend="openvino-int8", why="a demo")
    update = event("update", minutes=9000, endpoint_config="dogs-v2-b", replaced_config="dogs-v1-a", smoke="passed")
    failed = event("deploy", minutes=9001, outcome="interrupted", left="dogs")
    lines = History("dogs-resnet50", 2, REIGNS, (VERDICT,), (local, update, failed)).render().splitlines()
    verdict = next(line for line in lines if "0123456789abcdef" in line)
    assert verdict.startswith("2026-11-23 10:00:05Z  2        1        refused (dry run)")
    assert verdict.endswith("...")
    assert len(verdict) < 160
    assert [_squeezed(line) for line in lines[-5:]] == [
        "2026-11-21 10:00:00Z champion 1 ann passed",
        "2026-11-21 10:05:00Z deploy 2 dogs-8080 ann local; openvino-int8; a demo",
        "2026-11-23 10:00:05Z champion 2 bob the fair is tomorrow",
        "2026-11-27 16:00:00Z update 2 dogs ann sagemaker; dogs-v2-b; in place of dogs-v1-a; smoke test passed",
        "2026-11-27 16:01:00Z deploy: interrupted 2 dogs ann sagemaker; may still be live: dogs",
    ]


def test_history_is_plain_json_with_all_that_it_knows() -> None:
    deployed = event("deploy", minutes=0, endpoint_config="dogs-v2-b")
    told = json.loads(json.dumps(History("dogs-resnet50", 2, REIGNS, (VERDICT,), (deployed,)).to_dict()))
    assert (told["model"], told["champion"]) == ("dogs-resnet50", 2)
    assert told["reigns"][1]["reason"] == "the fair is tomorrow"
    assert told["reigns"][0]["until"] == told["reigns"][1]["since"] == LATER.isoformat()
    assert told["verdicts"][0]["reasons"] == VERDICT.reasons
    assert told["deployments"][0]["endpoint_config"] == "dogs-v2-b"
    assert told["deployments"][0]["outcome"] == "done"
