"""A job's log lines, page by page as CloudWatch answers them."""

from typing import Any

from botocore.stub import Stubber

from dogbreed_ml.cloudconfig import SagemakerConfig
from sagemaker_jobs.client import Aws
from sagemaker_jobs.training.joblogs import JobLogs

STREAM = "dogs-train-1/algo-1-1234567890"


def page(token: str, *lines: str) -> dict[str, Any]:
    return {"events": [{"message": f"{line}\n"} for line in lines], "nextForwardToken": token}


def test_lines_after_an_empty_page_are_read_at_the_same_look() -> None:
    with Aws.open(SagemakerConfig(region="us-west-2")) as aws, Stubber(aws.client("logs")) as played:
        logs = JobLogs(aws, "dogs-train-1")
        looks = [
            [page("f/1", "epoch=0"), page("f/2"), page("f/3", "epoch=1"), page("f/3")],
            [page("f/3")],
            [page("f/4"), page("f/5", "the end"), page("f/5")],
        ]
        told = []
        for pages in looks:
            played.add_response("describe_log_streams", {"logStreams": [{"logStreamName": STREAM}]})
            for each in pages:
                played.add_response("get_log_events", each)
            told.append(logs.read())
            played.assert_no_pending_responses()
    assert told == [["epoch=0", "epoch=1"], [], ["the end"]]
