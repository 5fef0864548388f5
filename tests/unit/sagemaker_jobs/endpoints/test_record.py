"""What the recorded events say of an endpoint: the config before, what was proven, the change that nobody saw end."""

from dataclasses import replace

import pytest

from dogbreed_ml.deployments import DeploymentEvent
from sagemaker_jobs.endpoints.record import is_proven, previous_config, unfinished


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
        (("deploy:a", "update:b", "update:a"), "a", "b"),
        (("deploy:a", "update:b", "update:a", "update:c", "rollback:a"), "a", "b"),
        (("deploy:a",), "a", None),
        ((), "a", None),
    ],
)
def test_config_before_is_the_one_that_served_before(told: tuple[str, ...], current: str, before: str | None) -> None:
    assert previous_config(events(*told), current) == before


@pytest.mark.parametrize(
    ("told", "config_name", "action"),
    [
        (("deploy:a", "update:b!"), "b", "update"),
        (("deploy:a", "update:b", "rollback:a!"), "a", "rollback"),
        # What failed since does not matter, what was done since does.
        (("deploy:a", "update:b!", "update:c!"), "b", "update"),
        (("deploy:a", "update:b!", "update:b"), "b", None),
        (("deploy:a", "update:b!", "update:c"), "b", None),
        (("deploy:a", "update:b!"), "a", None),
        (("deploy:a", "update:!"), None, None),
        ((), "a", None),
    ],
)
def test_change_that_nobody_saw_end_is_found(
    told: tuple[str, ...], config_name: str | None, action: str | None
) -> None:
    found = unfinished(events(*told), config_name)
    assert (found.action if found else None) == action


def test_config_is_proven_by_the_smoke_test_that_it_passed() -> None:
    deploy, update, rollback = events("deploy:a", "update:b", "rollback:a")
    told = [
        replace(deploy, smoke="not done: nobody waited"),
        replace(update, smoke="passed: 2 example images as expected, 9 ms each"),
        rollback,
    ]
    assert [is_proven(told, name) for name in ("a", "b", "c")] == [False, True, False]
    told[0] = replace(deploy, smoke="failed: 1 of 2 example images: the answer is Chow")
    assert not is_proven(told, "a")
