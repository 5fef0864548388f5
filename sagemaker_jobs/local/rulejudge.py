"""The process beside a profiled training job: samples the machine while it runs, judges its rules once it has ended.

python -m sagemaker_jobs.local.rulejudge sample FOLDER --interval-ms N --until-fd FD algo-1 ...
python -m sagemaker_jobs.local.rulejudge judge FOLDER --title NAME

FOLDER/profiler-output/ has the recording; `judge` reads FOLDER/rules.json, the RuleParameters of each configuration,
and leaves FOLDER/verdicts.json and FOLDER/reports/NUMBER/profiler-output/. Of the local SageMaker, this alone knows the
project's profiler.
"""

import argparse
import json
import os
from collections.abc import Mapping, Sequence
from contextlib import ExitStack
from pathlib import Path
from typing import Any, Final

from dogbreed_ml.errors import ProfileError
from dogbreed_ml.profiling.recordings import Recording
from dogbreed_ml.profiling.rules import RULES, judge, profiler_report
from dogbreed_ml.profiling.verdicts import Verdict

RECORDED_DIR: Final = "profiler-output"
_REPORT: Final = "ProfilerReport"
_NO_PARAMETERS: Final = ("rule_to_invoke", "action_json")


def choose(parameters: Mapping[str, str]) -> tuple[str, dict[str, Any]]:
    """(Rule, RULE_PARAMETER values) of a configuration's RuleParameters; raises ProfileError.

    A single rule's parameters come plain, as SageMaker's SDK sends them, or with the rule's name before.
    """
    rule = parameters.get("rule_to_invoke", "")
    if rule not in (_REPORT, *RULES):
        raise ProfileError(f"rule_to_invoke must be one of {', '.join((_REPORT, *RULES))}, got {rule!r}.")
    given = {name: _value(text) for name, text in parameters.items() if name not in _NO_PARAMETERS}
    if rule != _REPORT:
        given = {f"{rule}_{name.removeprefix(f'{rule}_')}": value for name, value in given.items()}
    return rule, given


def judge_configuration(recording: Recording, parameters: Mapping[str, str]) -> tuple[Verdict, ...]:
    """All rules for a ProfilerReport, else the one rule; raises ProfileError for parameters that they do not take."""
    rule, given = choose(parameters)
    verdicts = judge(recording, [profiler_report(given)])
    return tuple(each for each in verdicts if rule in (_REPORT, each.rule))


def summarize(verdicts: Sequence[Verdict]) -> dict[str, str]:
    """The RuleEvaluationStatus of several verdicts, and its details."""
    for status in ("IssuesFound", "Error"):
        found = [each for each in verdicts if each.status == status]
        if found:
            return {"status": status, "details": "; ".join(f"{each.rule}: {each.reason}" for each in found)}
    if len(verdicts) == 1:
        only = verdicts[0]
        # SageMaker's word for a rule that was never judged.
        status = "Stopped" if only.status == "NotApplicable" else "NoIssuesFound"
        return {"status": status, "details": f"{only.rule}: {only.reason}"}
    num_judged = sum(each.status == "NoIssuesFound" for each in verdicts)
    details = f"{num_judged} rules judged, no issue found; {len(verdicts) - num_judged} not applicable."
    return {"status": "NoIssuesFound", "details": details}


def judge_all(folder: Path, rules: Sequence[Mapping[str, str]], *, title: str) -> list[dict[str, str]]:
    """Writes the reports; one summary a configuration, an Error where it cannot be judged."""
    from dogbreed_ml.profiling.readers import read_recording
    from dogbreed_ml.profiling.report import REPORT_FILE, save_profiler_report

    try:
        recording = read_recording(folder / RECORDED_DIR)
    except ProfileError as error:
        return [{"status": "Error", "details": str(error)} for _ in rules]
    summaries = []
    for number, parameters in enumerate(rules):
        try:
            verdicts = judge_configuration(recording, parameters)
        except ProfileError as error:
            summaries.append({"status": "Error", "details": str(error)})
            continue
        # The page beside profiler-reports/, where SageMaker has it.
        reports_dir = folder / "reports" / str(number)
        page = save_profiler_report(reports_dir, recording, verdicts, title=title)
        os.replace(page, reports_dir / RECORDED_DIR / REPORT_FILE)
        summaries.append(summarize(verdicts))
    return summaries


def sample(folder: Path, *, interval_ms: float, nodes: Sequence[str], until_fd: int) -> None:
    """Samples until the other end of `until_fd` is closed; each node is this machine."""
    from dogbreed_ml.profiling.sampler import SystemSampler
    from dogbreed_ml.profiling.timeline import Clock

    clock = Clock.start()
    with ExitStack() as stack:
        for node in nodes:
            root = folder / RECORDED_DIR
            sampler = SystemSampler(root, interval_ms=interval_ms, clock=clock, node=node, has_process=False)
            stack.enter_context(sampler)
        os.read(until_fd, 1)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    verbs = parser.add_subparsers(dest="verb", required=True)
    sampling, judging = verbs.add_parser("sample"), verbs.add_parser("judge")
    for verb in (sampling, judging):
        verb.add_argument("folder", type=Path)
    sampling.add_argument("nodes", nargs="+")
    sampling.add_argument("--interval-ms", type=float, required=True)
    sampling.add_argument("--until-fd", type=int, required=True)
    judging.add_argument("--title", required=True)
    args = parser.parse_args()
    if args.verb == "sample":
        sample(args.folder, interval_ms=args.interval_ms, nodes=args.nodes, until_fd=args.until_fd)
        return
    rules = json.loads((args.folder / "rules.json").read_text(encoding="utf-8"))
    summaries = judge_all(args.folder, rules, title=args.title)
    (args.folder / "verdicts.json").write_text(json.dumps(summaries), encoding="utf-8")


def _value(text: str) -> Any:
    """A number where the text is one."""
    try:
        value = json.loads(text)
    except ValueError:
        return text
    return value if isinstance(value, int | float) and not isinstance(value, bool) else text


if __name__ == "__main__":
    main()
