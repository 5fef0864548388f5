"""Profiles of training jobs: statuses, places in S3, and the judge's part of the work, without a process."""

import json
from pathlib import Path
from typing import Any

import pytest
from profilerfiles import steps, write_machine, write_trace

from dogbreed_ml.errors import ProfileError
from dogbreed_ml.profiling.rules import RULES
from dogbreed_ml.profiling.verdicts import Status, Verdict
from sagemaker_jobs.local.profiles import profiling_status, rule_output_uri, rule_status, rule_statuses
from sagemaker_jobs.local.rulejudge import RECORDED_DIR, choose, judge_all, summarize

OUTPUT = "s3://dogs-bucket/profile"


def _rule(name: str, **members: Any) -> dict[str, Any]:
    return {"RuleConfigurationName": name, "RuleEvaluatorImage": "image", **members}


@pytest.mark.parametrize(
    ("config", "status"),
    [
        ({"S3OutputPath": OUTPUT}, "Enabled"),
        ({"S3OutputPath": OUTPUT, "DisableProfiler": False}, "Enabled"),
        ({"S3OutputPath": OUTPUT, "DisableProfiler": True}, "Disabled"),
        ({"ProfilingIntervalInMilliseconds": 500}, "Disabled"),
    ],
)
def test_profiling_needs_a_place_and_no_refusal(config: dict[str, Any], status: str) -> None:
    assert profiling_status({"ProfilerConfig": config}) == status


def test_job_without_a_profiler_has_no_rule_members() -> None:
    assert profiling_status({}) == "Disabled"
    assert rule_statuses({}, time_s=1.0) == {}


def test_rules_are_in_progress_from_the_start_and_tensor_rules_say_why_not() -> None:
    params = {
        "ProfilerConfig": {"S3OutputPath": OUTPUT},
        "ProfilerRuleConfigurations": [_rule("report")],
        "DebugRuleConfigurations": [_rule("loss")],
    }
    found = rule_statuses(params, time_s=5.0)
    expected = {"RuleConfigurationName": "report", "RuleEvaluationStatus": "InProgress", "LastModifiedTime": 5.0}
    assert found["ProfilerRuleEvaluationStatuses"] == [expected]
    (debug,) = found["DebugRuleEvaluationStatuses"]
    assert debug["RuleEvaluationStatus"] == "Stopped"
    assert "no tensors" in debug["StatusDetails"]


def test_rules_of_a_job_that_is_not_profiled_are_stopped() -> None:
    found = rule_statuses({"ProfilerRuleConfigurations": [_rule("report")]}, time_s=5.0)
    (status,) = found["ProfilerRuleEvaluationStatuses"]
    assert status["RuleEvaluationStatus"] == "Stopped"
    assert "S3OutputPath" in status["StatusDetails"]


def test_status_details_fit_their_shape() -> None:
    details = rule_status("report", "Error", "one\ntwo " + "x" * 2000, time_s=1.0)["StatusDetails"]
    assert details.startswith("one two x")
    assert len(details) == 1024


@pytest.mark.parametrize(
    ("rule", "uri"),
    [
        (_rule("report"), f"{OUTPUT}/job/rule-output/report"),
        (_rule("report", S3OutputPath="s3://other/rules/"), "s3://other/rules/job/rule-output/report"),
    ],
)
def test_report_belongs_below_rule_output(rule: dict[str, Any], uri: str) -> None:
    assert rule_output_uri({"ProfilerConfig": {"S3OutputPath": f"{OUTPUT}/"}}, "job", rule) == uri


@pytest.mark.parametrize(
    ("parameters", "chosen"),
    [
        ({"rule_to_invoke": "ProfilerReport"}, ("ProfilerReport", {})),
        (
            {"rule_to_invoke": "ProfilerReport", "CPUBottleneck_cpu_threshold": "80"},
            ("ProfilerReport", {"CPUBottleneck_cpu_threshold": 80}),
        ),
        ({"rule_to_invoke": "StepOutlier", "stddev": "2.5"}, ("StepOutlier", {"StepOutlier_stddev": 2.5})),
        ({"rule_to_invoke": "StepOutlier", "StepOutlier_stddev": "2"}, ("StepOutlier", {"StepOutlier_stddev": 2})),
        ({"rule_to_invoke": "StepOutlier", "mode": "TRAIN"}, ("StepOutlier", {"StepOutlier_mode": "TRAIN"})),
    ],
)
def test_rule_parameters_become_the_rules_own(parameters: dict[str, str], chosen: tuple[str, dict[str, Any]]) -> None:
    assert choose(parameters) == chosen


@pytest.mark.parametrize("parameters", [{}, {"rule_to_invoke": "MyRule"}])
def test_rule_that_is_not_known_is_named(parameters: dict[str, str]) -> None:
    with pytest.raises(ProfileError, match="rule_to_invoke must be one of ProfilerReport, StepOutlier"):
        choose(parameters)


def _verdict(rule: str, status: Status) -> Verdict:
    return Verdict(rule, status, f"{rule} says so.")


@pytest.mark.parametrize(
    ("statuses", "status", "details"),
    [
        (["NoIssuesFound", "Error", "IssuesFound"], "IssuesFound", "R2: R2 says so."),
        (["NoIssuesFound", "Error"], "Error", "R1: R1 says so."),
        (["NoIssuesFound", "NotApplicable"], "NoIssuesFound", "1 rules judged, no issue found; 1 not applicable."),
        (["NotApplicable"], "Stopped", "R0: R0 says so."),
        (["NoIssuesFound"], "NoIssuesFound", "R0: R0 says so."),
    ],
)
def test_worst_verdict_is_the_status(statuses: list[Status], status: str, details: str) -> None:
    verdicts = [_verdict(f"R{number}", each) for number, each in enumerate(statuses)]
    assert summarize(verdicts) == {"status": status, "details": details}


def test_each_configuration_is_judged_with_its_own_parameters(tmp_path: Path) -> None:
    recorded = tmp_path / RECORDED_DIR
    write_machine(recorded, cpus={"cpu0": [20.0] * 40})
    write_trace(recorded, steps([10_000] * 100 + [40_000] * 2 + [10_000] * 100))
    rules = [
        {"rule_to_invoke": "ProfilerReport"},
        {"rule_to_invoke": "StepOutlier", "stddev": "3", "n_outliers": "1"},
        {"rule_to_invoke": "StepOutlier", "stddev": "5", "n_outliers": "3"},
        {"rule_to_invoke": "StepOutlier", "stddev": "50", "n_outliers": "1"},
        {"rule_to_invoke": "StepOutlier", "no_such": "1"},
        {"rule_to_invoke": "MyRule"},
    ]
    summaries = judge_all(tmp_path, rules, title="a-job")
    statuses = [each["status"] for each in summaries]
    assert statuses[1:] == ["IssuesFound", "NoIssuesFound", "Stopped", "Error", "Error"]
    assert summaries[3]["details"].startswith("StepOutlier: not applicable: a short run, of 202 steps")
    assert "no_such" in summaries[4]["details"]
    report_dir = tmp_path / "reports" / "0" / "profiler-output"
    assert "a-job" in (report_dir / "profiler-report.html").read_text(encoding="utf-8")
    assert {path.stem for path in (report_dir / "profiler-reports").iterdir()} == set(RULES)
    for number, stddev in ((1, 3), (2, 5)):
        reports_dir = tmp_path / "reports" / str(number) / "profiler-output" / "profiler-reports"
        (path,) = reports_dir.iterdir()
        assert path.name == "StepOutlier.json"
        assert f"stddev:{stddev}" in json.loads(path.read_text(encoding="utf-8"))["RuleParameters"].splitlines()


def test_damaged_recording_is_an_error_that_names_the_file(tmp_path: Path) -> None:
    path = write_trace(tmp_path / RECORDED_DIR, steps([10_000] * 3))
    path.write_text('[{"ph": "X"},\n1]', encoding="utf-8")
    (summary,) = judge_all(tmp_path, [{"rule_to_invoke": "ProfilerReport"}], title="a-job")
    assert summary["status"] == "Error"
    assert path.name in summary["details"]


def test_recording_without_files_is_an_error_for_each_rule(tmp_path: Path) -> None:
    (tmp_path / RECORDED_DIR).mkdir()
    summaries = judge_all(tmp_path, [{"rule_to_invoke": "ProfilerReport"}] * 2, title="a-job")
    assert [each["status"] for each in summaries] == ["Error", "Error"]
    assert "must hold profiler files" in summaries[0]["details"]
