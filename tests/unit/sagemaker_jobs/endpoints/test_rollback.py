"""Which endpoint config was the one before, by the recorded events."""

import pytest

from dogbreed_ml.deployments import DeploymentEvent
from sagemaker_jobs.endpoints.rollback import previous_config


def events(*told: str) -> list[DeploymentEvent]:
    """`update:b` is done, `update:b!` is not."""
    made = []
    for each in told:
        action, _, config = each.partition(":")
        made.append(
            DeploymentEvent(
                time="2026-11-21T10:00:00+00:00",
                action=action,
                outcome="failed" if config.endswith("!") else "done",
                target="sagemaker",
                endpoint="dogs",
                model="dogs-resnet50",
                version=1,
                by="ann",
                run_id="r",
                endpoint_config=config.rstrip("!") or None,
            )
        )
    return made


@pytest.mark.parametrize(
    ("told", "current", "before"),
    [
        (("deploy:a", "update:b"), "b", "a"),
        (("deploy:a", "update:b", "update:c", "rollback:b"), "b", "a"),
        (("deploy:a", "update:b", "rollback:a", "update:c"), "c", "a"),
        (("deploy:a", "update:b!"), "a", None),
        (("deploy:a", "update:b", "update:c!"), "b", "a"),
        (("deploy:a", "update:b", "delete:b", "deploy:c"), "c", None),
        (("deploy:a", "update:b"), "made by hand", "b"),
        (("deploy:a",), "a", None),
        ((), "a", None),
    ],
)
def test_config_before_is_the_one_that_served_before(told: tuple[str, ...], current: str, before: str | None) -> None:
    assert previous_config(events(*told), current) == before
