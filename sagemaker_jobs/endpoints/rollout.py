"""`dogbreed deploy --target sagemaker`: a first endpoint, or an update that proves itself before it gets the traffic.

A first endpoint has no callers yet: it is asked for the example images itself, and deleted where it fails, by the
command that made it. An update is tried on a short-lived endpoint NAME-smoke beside the one in service, then rolled out
blue/green under alarms. Whatever ends it, the event's run says how far it came, and what may still be live.
"""

import logging
from collections.abc import Sequence
from dataclasses import dataclass, replace
from datetime import UTC, datetime, timedelta
from pathlib import Path
from typing import TYPE_CHECKING

from dogbreed_ml.cloudconfig import HostingConfig
from dogbreed_ml.deployments import Action, EventRecord, mark_ended, mark_live, recorded
from dogbreed_ml.errors import CloudError, ConfigError
from sagemaker_jobs.client import Aws
from sagemaker_jobs.endpoints import endpoint as endpoints
from sagemaker_jobs.endpoints.change import Change
from sagemaker_jobs.endpoints.deployed import Deployed
from sagemaker_jobs.endpoints.endpoint_request import SMOKE_SUFFIX, EndpointPlan
from sagemaker_jobs.endpoints.guards import put_alarms, put_scaling, remove_scaling, ringing
from sagemaker_jobs.endpoints.leases import Lease, render_end
from sagemaker_jobs.endpoints.model_archive import Example
from sagemaker_jobs.endpoints.smoke import Smoke, async_invoker, invoker, smoke_test
from sagemaker_jobs.endpoints.standing import Standing
from sagemaker_jobs.storage import Storage, split_uri

if TYPE_CHECKING:
    from dogbreed_ml.registry import ModelVersion
    from dogbreed_ml.tracking import Tracker

logger = logging.getLogger(__name__)

SMOKE_LEASE = timedelta(hours=1)
"""After which `dogbreed endpoints --reap` takes a smoke endpoint that its command could not delete."""

BACKEND = "sagemaker"
"""What the version's tag says for the back end, which the container chooses when it starts."""


@dataclass(frozen=True, kw_only=True)
class Rollout:
    """One deployment with all that it needs."""

    aws: Aws
    storage: Storage
    """Its bucket need not be there yet."""
    tracker: "Tracker"
    version: "ModelVersion"
    plan: EndpointPlan
    hosting: HostingConfig
    archive_path: Path
    examples: Sequence[Example]
    why: str | None = None
    """The reason that --unmeasured needs."""
    waits: bool = True
    """False returns once the last request is sent: a first endpoint is not smoke-tested then."""
    must_be_first: bool = False
    """Whether the name must not be taken yet."""

    def run(self) -> Deployed:
        """Raises CloudError with the cause, where the version is not live at the end."""
        before = Standing.of(self.aws, self.tracker, self.plan)
        is_first = before is None or before.is_first
        if self.must_be_first and not is_first:
            raise ConfigError(
                f"The endpoint {self.plan.name} must not be there yet, and is; give another name, or update it."
            )
        if before is not None and before.is_settled:
            return self._renew(before)
        if before is not None:
            before.require_changeable()
        self.storage.ensure_bucket()
        action: Action = "deploy" if is_first else "update"
        replaced = None if before is None or is_first else before.replaced
        with recorded(
            self.tracker, action, target="sagemaker", endpoint=self.plan.name, version=self.version, why=self.why
        ) as event:
            event.note(endpoint_config=self.plan.config_name, replaced_config=replaced, backend=BACKEND)
            self._prepare()
            if before is None or is_first:
                smoke = self._create(event, is_new=before is None)
            else:
                smoke = self._update(event, before)
            lease = self._settle(before) if self.waits else self._promised(before)
            made = self._deployed(action, replaced=replaced, smoke=smoke, run_id=event.run_id)
            return replace(made, lease=lease)

    def _renew(self, before: Standing) -> Deployed:
        """What is live already, with the lease, the alarms and the scaling that are asked for."""
        self._put_guards()
        lease = replace(before.lease, expires=self.plan.lease.expires or before.lease.expires)
        if lease != before.lease:
            endpoints.write_lease(self.aws, before.arn, lease)
        if self.plan.scaling is None:
            self._remove_added_instances(before)
        return replace(self._deployed("none", replaced=None, smoke=None, run_id=None), lease=lease, is_settled=True)

    def _put_guards(self) -> None:
        put_alarms(self.aws, self.plan.alarms, tags=self.plan.endpoint["Tags"])
        if self.plan.scaling is None:
            remove_scaling(self.aws, self.plan.name)
        else:
            put_scaling(self.aws, self.plan.scaling)

    def _remove_added_instances(self, before: Standing) -> None:
        """Those that a scaling which is no more had added: nothing else would end them."""
        name, (variant, *_) = self.plan.name, self.plan.config["ProductionVariants"]
        wanted, now = variant.get("InitialInstanceCount"), before.num_instances
        if wanted is None or now is None or now <= wanted:
            return
        logger.info("%s goes from %d instances to %d, which nothing scales any more", name, now, wanted)
        change = {"VariantName": variant["VariantName"], "DesiredInstanceCount": wanted}
        request = {"EndpointName": name, "DesiredWeightsAndCapacities": [change]}
        self.aws.create("UpdateEndpointWeightsAndCapacities", request, doing=f"resize the endpoint {name}")
        if self.waits:
            endpoints.wait_settled(self.aws, name, timeout_s=self.hosting.timeout_s)

    # The two ways ---------------------------------------------------------------------------------------------------

    def _prepare(self) -> None:
        _, key = split_uri(self.plan.model["PrimaryContainer"]["ModelDataUrl"])
        self.storage.upload(self.archive_path, key.removeprefix(f"{self.storage.prefix}/"))
        endpoints.ensure_parts(self.aws, self.plan)

    def _create(self, event: EventRecord, *, is_new: bool) -> Smoke | None:
        """The first endpoint, up and proven; otherwise deleted, where this command made it.

        One that an earlier command made may have callers by now.
        """
        name = self.plan.name
        try:
            if is_new:
                is_new = endpoints.create(self.aws, self.plan.endpoint)
            if not self.waits:
                event.note(outcome="under way", smoke="not done: nobody waited")
                logger.warning("Nobody waits for %s: the same command proves it later, with alarms and scaling.", name)
                return None
            return self._prove(event, name)
        except BaseException:
            if is_new:
                self._take_back(event, name)
            else:
                _tell_left(event, name)
            raise

    def _update(self, event: EventRecord, before: Standing) -> Smoke | None:
        """All traffic on the plan's endpoint config; an update that an earlier command sent is waited for."""
        name, smoke = self.plan.name, None
        change = Change(
            aws=self.aws, event=event, arn=before.arn, lease=before.lease, expires=self.plan.lease.expires
        )  # fmt: skip
        if before.is_in_service and not before.has_plan:
            self._require_silence()
            smoke = self._prove_beside(event)
            put_alarms(self.aws, self.plan.alarms, tags=self.plan.endpoint["Tags"])
            change.send(self.plan.update, serving=before.config_name)
        else:
            change.write_end()
            event.note(smoke=None if before.earlier is None else before.earlier.smoke)
        if not self.waits:
            event.note(outcome="under way")
            logger.warning("Nobody waits for the update of %s: the same command sees its end, and sets scaling.", name)
            change.tell_unwaited()
            return smoke
        settled = change.wait(timeout_s=self.hosting.timeout_s + 2 * self.hosting.bake_s)
        serving = settled["EndpointConfigName"]
        if settled["EndpointStatus"] != endpoints.IN_SERVICE or serving != self.plan.config_name:
            reason = settled.get("FailureReason", "SageMaker gave no reason")
            event.note(outcome="rolled back", why=reason)
            change.put_back()
            raise CloudError(f"{name} was rolled back and serves {serving} as before: {reason}")
        return smoke

    def _settle(self, before: Standing | None) -> Lease:
        """What holds once the version is live: alarms, scaling, tags, and the versions' own words. Returns the tags."""
        name = self.plan.name
        self._put_guards()
        found = endpoints.describe(self.aws, name)
        if found is None:
            raise endpoints.GoneError(name)
        proven = self._promised(before).proven()
        endpoints.write_lease(self.aws, found["EndpointArn"], proven)
        mark_live(
            self.tracker, self.version, endpoint=name, backend=BACKEND, since=proven.deployed_at,
            unmeasured_reason=self.why,
        )  # fmt: skip
        if before is not None and not before.is_same_version:
            mark_ended(self.tracker, before.lease.model, int(before.lease.version), endpoint=name)
        return proven

    def _promised(self, before: Standing | None) -> Lease:
        """Without --expires, the end that it had."""
        known = "" if before is None else before.lease.expires
        return replace(self.plan.lease, expires=self.plan.lease.expires or known)

    # The proof ------------------------------------------------------------------------------------------------------

    def _require_silence(self) -> None:
        rings = ringing(self.aws, self.plan.name)
        if rings:
            raise CloudError(
                f"{' and '.join(rings)} must be silent before an update, which they would roll back at once; `dogbreed "
                f"rollback --endpoint {self.plan.name}` needs no silence, or wait until they are."
            )

    def _prove_beside(self, event: EventRecord) -> Smoke:
        """The new endpoint config on one instance that nobody else knows of, gone afterwards."""
        lease, name = self.plan.lease, f"{self.plan.name}{SMOKE_SUFFIX}"
        expires = render_end(SMOKE_LEASE, now=datetime.now(UTC))
        tags = replace(lease, endpoint=name, expires=expires).to_tags()
        config_name = self.plan.smoke_config["EndpointConfigName"]
        # It may be what another update of this version left, and be what a rollback goes back to.
        is_new = config_name != self.plan.config_name and endpoints.describe_config(self.aws, config_name) is None
        self._clear_place(name)
        endpoints.ensure_parts(self.aws, self.plan, for_smoke=True)
        request = {
            "EndpointName": name,
            "EndpointConfigName": config_name,
            "Tags": [each for each in self.plan.endpoint["Tags"] if each["Key"] not in tags]
            + [{"Key": key, "Value": value} for key, value in tags.items()],
        }
        is_ours = True
        try:
            is_ours = endpoints.create(self.aws, request)
            if not is_ours:
                raise CloudError(f"{name} was made meanwhile, by somebody else; try again when that has ended.")
            return self._prove(event, name)
        finally:
            if is_ours:
                self._take_back(event, name)
            if is_new:
                endpoints.delete_part(self.aws, "DeleteEndpointConfig", {"EndpointConfigName": config_name})

    def _clear_place(self, name: str) -> None:
        """Deletes what an earlier command left under the smoke endpoint's name; raises CloudError where it is not."""
        found = endpoints.describe(self.aws, name)
        if found is None:
            return
        if endpoints.read_lease(self.aws, found["EndpointArn"]) is None:
            raise CloudError(
                f"The endpoint {name} must be free for the smoke test, and is not this project's: it has none of its "
                f"tags; give another --endpoint."
            )
        endpoints.delete(self.aws, name, timeout_s=self.hosting.timeout_s)

    def _prove(self, event: EventRecord, name: str) -> Smoke:
        settled = endpoints.wait_settled(self.aws, name, timeout_s=self.hosting.timeout_s)
        if settled["EndpointStatus"] != endpoints.IN_SERVICE:
            raise CloudError(f"{name} did not come up: {settled.get('FailureReason', settled['EndpointStatus'])}")
        is_async = self.hosting.kind == "async"
        invoke = async_invoker(self.aws, name, self.storage) if is_async else invoker(self.aws, name)
        smoke = smoke_test(invoke, self.examples)
        event.note(smoke=smoke.render())
        if not smoke.is_passed:
            event.note(outcome="smoke failed", why=smoke.problems[0])
            raise CloudError(f"{self.plan.lease.model} version {self.plan.lease.version}: smoke test {smoke.render()}")
        return smoke

    def _take_back(self, event: EventRecord, name: str) -> None:
        """Deletes an endpoint that must not stay; where that does not succeed, the record and the user know."""
        is_gone = False
        try:
            endpoints.delete(self.aws, name, timeout_s=self.hosting.timeout_s)
            is_gone = True
        except CloudError as error:
            logger.warning("%s could not be deleted: %s", name, error)
        finally:
            if not is_gone:
                _tell_left(event, name)

    def _deployed(self, action: str, *, replaced: str | None, smoke: Smoke | None, run_id: str | None) -> Deployed:
        return Deployed(
            lease=self.plan.lease,
            action=action,
            endpoint_config=self.plan.config_name,
            replaced_config=replaced,
            smoke=None if smoke is None else smoke.render(),
            run_id=run_id,
            is_settled=self.waits,
            console_url=self.aws.console_url(f"endpoints/{self.plan.name}"),
        )


def _tell_left(event: EventRecord, name: str) -> None:
    event.note(left=name)
    logger.warning("%s may be live, and cost money: `dogbreed delete %s --target sagemaker`", name, name)
