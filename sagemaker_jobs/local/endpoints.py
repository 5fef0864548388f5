"""Endpoints: created, described, updated, deleted and invoked; each deployment runs in a thread of its own."""

import logging
import threading
from collections.abc import Callable, Mapping
from concurrent.futures import ThreadPoolExecutor
from functools import partial
from typing import TYPE_CHECKING, Any

from botocore.exceptions import BotoCoreError, ClientError
from werkzeug.wrappers import Request, Response

from dogbreed_ml.errors import DogbreedError
from sagemaker_jobs.local import hosting, invocations
from sagemaker_jobs.local.alarms import AlarmClock, unsupported
from sagemaker_jobs.local.backlog import Backlogs
from sagemaker_jobs.local.blueprints import build_fleet
from sagemaker_jobs.local.catalog import Catalog
from sagemaker_jobs.local.deployments import Cancelled, Hosted, Rollout
from sagemaker_jobs.local.endpointrecords import EndpointRecords
from sagemaker_jobs.local.errors import ResourceLimitExceeded, ValidationError, ValidationException
from sagemaker_jobs.local.fleets import Fleet
from sagemaker_jobs.local.publishing import Publisher

if TYPE_CHECKING:
    from sagemaker_jobs.local.service import LocalSageMaker

logger = logging.getLogger(__name__)

Answer = dict[str, Any]


class Endpoints:
    """Models, endpoint configs and endpoints of one server."""

    def __init__(self, service: "LocalSageMaker") -> None:
        self._service = service
        self._settings = service.settings.hosting
        self._hosted: dict[str, Hosted] = {}
        self._lock = threading.RLock()
        self._closed = threading.Event()
        self._records = EndpointRecords(service)
        self._backlogs = Backlogs(service, account=self._account)
        catalog = self._catalog = Catalog(service)
        self.create_model, self.describe_model = catalog.create_model, catalog.describe_model
        self.list_models, self.delete_model = catalog.list_models, catalog.delete_model
        self.create_endpoint_config = catalog.create_endpoint_config
        self.describe_endpoint_config = catalog.describe_endpoint_config
        self.list_endpoint_configs = catalog.list_endpoint_configs
        self.delete_endpoint_config = catalog.delete_endpoint_config

    def recover(self) -> None:
        """Marks the endpoints of the server before as Failed, and finishes the deletions that it had begun."""
        self._records.recover()

    def start(self) -> None:
        """Starts the threads that write metrics and look at alarms."""
        self._publisher = Publisher(self._service.cloud, interval_s=self._settings.publish_interval_s)
        self._alarms = AlarmClock(self._service.cloud.cloudwatch)
        self._publisher.start()
        self._alarm_thread = threading.Thread(target=self._watch_alarms, name="endpoint-alarms", daemon=True)
        self._alarm_thread.start()

    def close(self) -> None:
        """Ends every endpoint, as Failed, and the threads."""
        self._closed.set()
        with self._lock:
            hosted = list(self._hosted.values())
            self._hosted.clear()
        with ThreadPoolExecutor(max_workers=max(1, len(hosted))) as pool:
            list(pool.map(Hosted.stop, hosted))
        self._backlogs.close_all()
        for thread in (thread for each in hosted for thread in (each.thread, each.deleter)):
            if thread is not None:
                thread.join()
        self._alarm_thread.join()
        self._publisher.close()
        self.recover()

    def create_endpoint(self, params: Answer) -> Answer:
        name = params["EndpointName"]
        config = self._catalog.get_config(params["EndpointConfigName"])
        deployment = params.get("DeploymentConfig", {})
        self._check_deployment(deployment, config)
        with self._lock:
            hosted = Hosted(name, alarm_names=_alarm_names(deployment))
            self._records.require_free(name)
            rollout = self._rollout(hosted, config, models=self._models(config))
            self._reserve(hosted, config, hosting.num_instances(config))
            arn = self._records.create(
                name, config["EndpointConfigName"], deployment=deployment, tags=params.get("Tags", ())
            )
            self._hosted[name] = hosted
            self._launch(hosted, partial(self._create, hosted, rollout))
        return {"EndpointArn": arn}

    def describe_endpoint(self, params: Answer) -> Answer:
        return self._records.get(params["EndpointName"])

    def list_endpoints(self, params: Answer) -> Answer:
        return self._records.list(params)

    def update_endpoint(self, params: Answer) -> Answer:
        name = params["EndpointName"]
        config = self._catalog.get_config(params["EndpointConfigName"])
        with self._lock:
            record, hosted, fleet = self._in_service(name)
            hosting.check_update(config, fleet.config)
            if params.get("RetainAllVariantProperties"):
                excluded = [each["VariantPropertyType"] for each in params.get("ExcludeRetainedVariantProperties", ())]
                config = hosting.retained(config, fleet.config, excluded=excluded)
            deployment = params.get("DeploymentConfig", {})
            if not deployment and params.get("RetainDeploymentConfig"):
                deployment = record.get("LastDeploymentConfig", {})
            self._check_deployment(deployment, config)
            rollout = self._rollout(hosted, config, models=self._models(config))
            self._reserve(hosted, config, hosting.num_instances(config))
            hosted.alarm_names = _alarm_names(deployment)
            self._records.begin(name, "Updating", deployment)
            self._launch(hosted, partial(self._update, hosted, rollout, deployment))
        return {"EndpointArn": record["EndpointArn"]}

    def update_endpoint_weights_and_capacities(self, params: Answer) -> Answer:
        name = params["EndpointName"]
        with self._lock:
            record, hosted, fleet = self._in_service(name)
            config = hosting.rescaled(fleet.config, params["DesiredWeightsAndCapacities"])
            more = hosting.num_instances(config) - hosting.num_instances(fleet.config)
            self._reserve(hosted, config, max(0, more))
            # Its models' data are here already, whatever became of the models.
            rollout = self._rollout(hosted, config, models={})
            self._records.desire(name, config)
            self._launch(hosted, partial(self._rescale, hosted, rollout, config))
        return {"EndpointArn": record["EndpointArn"]}

    def delete_endpoint(self, params: Answer) -> Answer:
        name = params["EndpointName"]
        with self._lock:
            record = self._records.get(name)
            if record["EndpointStatus"] == "Deleting":
                return {}
            self._records.begin(name, "Deleting")
            hosted = self._hosted.get(name) or Hosted(name)
            hosted.cancelled.set()
            hosted.deleter = threading.Thread(
                target=self._delete, args=(hosted,), name=f"endpoint-delete-{name}", daemon=True
            )
            hosted.deleter.start()
        return {}

    def invoke(self, name: str, request: Request) -> Response:
        """Answers POST /endpoints/NAME/invocations."""
        params, body = invocations.parse_request(name, request)
        hosted, fleet = self._answering(name)
        if "AsyncInferenceConfig" in fleet.config:
            raise ValidationError(f"Endpoint {name} is asynchronous; use InvokeEndpointAsync.")
        answer = invocations.call(
            params,
            body,
            traffic=hosted.traffic,
            account=self._account,
            region=self._service.settings.region,
            timeout_s=self._settings.invocation_timeout_s,
        )
        return invocations.render(answer)

    def invoke_async(self, name: str, request: Request) -> Response:
        """Answers POST /endpoints/NAME/async-invocations: with the places where the answer or the failure will be."""
        params = invocations.parse_async_request(name, request)
        hosted, fleet = self._answering(name)
        if "AsyncInferenceConfig" not in fleet.config:
            raise ValidationError(f"Endpoint {name} is not asynchronous; its config has no AsyncInferenceConfig.")
        return self._backlogs.accept(hosted, params, config=fleet.config)

    def servers(self, name: str) -> list[Mapping[str, Any]]:
        """The processes that answer for an endpoint now: variant, url and pid of each; for `status` and benchmarks."""
        hosted = self._hosted.get(name)
        fleet = hosted.traffic.fleet if hosted else None
        return [
            {"variant": variant.name, "url": server.url, "pid": server.pid}
            for variant in (fleet.variants.values() if fleet else ())
            for server in variant.servers
        ]

    @property
    def _account(self) -> str:
        return self._service.arn("endpoint", "").split(":")[4]

    def _create(self, hosted: Hosted, rollout: Rollout) -> None:
        try:
            fleet = rollout.create()
        except DogbreedError as error:
            with self._lock:
                hosted.num_instances = 0
            self._records.fail(hosted.name, str(error))
        else:
            self._settle(hosted, fleet)

    def _update(self, hosted: Hosted, rollout: Rollout, deployment: Mapping[str, Any]) -> None:
        before = hosted.traffic.fleet
        assert before is not None
        try:
            fleet = rollout.update(deployment)
        except DogbreedError as error:
            logger.warning("endpoint %s: update rolled back: %s", hosted.name, error)
            self._settle(hosted, before, reason=str(error))
        else:
            self._settle(hosted, fleet)

    def _rescale(self, hosted: Hosted, rollout: Rollout, config: Mapping[str, Any]) -> None:
        fleet = hosted.traffic.fleet
        assert fleet is not None
        try:
            rollout.rescale(config)
        except DogbreedError as error:
            logger.warning("endpoint %s: not rescaled: %s", hosted.name, error)
            self._settle(hosted, fleet, reason=str(error))
        else:
            self._settle(hosted, fleet)

    def _settle(self, hosted: Hosted, fleet: Fleet, *, reason: str | None = None) -> None:
        with self._lock:
            hosted.num_instances = hosting.num_instances(fleet.config)
        self._records.settle(hosted.name, fleet, reason=reason)

    def _delete(self, hosted: Hosted) -> None:
        hosted.stop()
        self._backlogs.close(hosted.name)
        with self._lock:
            if self._closed.is_set():
                return
            self._hosted.pop(hosted.name, None)
            self._records.delete(hosted.name)

    def _launch(self, hosted: Hosted, work: Callable[[], None]) -> None:
        def run() -> None:
            try:
                work()
            except Cancelled:
                logger.info("endpoint %s: deployment cancelled", hosted.name)

        hosted.thread = threading.Thread(target=run, name=f"endpoint-{hosted.name}", daemon=True)
        hosted.thread.start()

    def _models(self, config: Mapping[str, Any]) -> dict[str, Answer]:
        """Raises ValidationException for one that is gone."""
        names = {variant["ModelName"] for variant in config["ProductionVariants"]}
        return {name: self._catalog.get_model(name) for name in names}

    def _rollout(self, hosted: Hosted, config: Mapping[str, Any], *, models: Mapping[str, Answer]) -> Rollout:
        return Rollout(
            hosted,
            lambda: build_fleet(
                self._service, hosted.name, config, models=models, publisher=self._publisher, watch=hosted.watch
            ),
            {
                variant["VariantName"]: variant.get(
                    "ContainerStartupHealthCheckTimeoutInSeconds", self._settings.ping_timeout_s
                )
                for variant in config["ProductionVariants"]
            },
            partial(self._records.report, hosted.name),
            self._alarms,
            self._settings.alarm_interval_s,
            self._settings.invocation_timeout_s,
        )

    def _check_deployment(self, deployment: Mapping[str, Any], config: Mapping[str, Any]) -> None:
        hosting.check_deployment(deployment, hosting.num_instances(config))
        names = _alarm_names(deployment)
        found = self._alarms.describe(names) if names else {}
        for name in names:
            if name not in found:
                raise ValidationException(f"The alarm {name} of AutoRollbackConfiguration does not exist.")
            problem = unsupported(found[name])
            if problem:
                raise ValidationException(f"The local SageMaker cannot evaluate the alarm {name}: {problem}.")

    def _in_service(self, name: str) -> tuple[Answer, Hosted, Fleet]:
        """Of an endpoint that can be updated: its record, and what is alive of it."""
        record, hosted = self._records.get(name), self._hosted.get(name)
        fleet = hosted.traffic.fleet if hosted else None
        if record["EndpointStatus"] != "InService" or hosted is None or fleet is None:
            raise ValidationException(
                f'Cannot update endpoint "{record["EndpointArn"]}" in status {record["EndpointStatus"]}.'
            )
        return record, hosted, fleet

    def _answering(self, name: str) -> tuple[Hosted, Fleet]:
        """Raises ValidationError, the runtime's word, for an endpoint that answers nobody."""
        hosted = self._hosted.get(name)
        fleet = hosted.traffic.fleet if hosted else None
        if hosted is None or fleet is None:
            raise ValidationError(f"Endpoint {name} of account {self._account} not found.")
        return hosted, fleet

    def _reserve(self, hosted: Hosted, config: Mapping[str, Any], wanted: int) -> None:
        used = sum(each.num_instances for each in self._hosted.values())
        if used + wanted > self._settings.max_instances:
            kind = config["ProductionVariants"][0].get("InstanceType", "serverless")
            raise ResourceLimitExceeded(
                f"The account-level service limit '{kind} for endpoint usage' is {self._settings.max_instances} "
                f"Instances, with current utilization of {used} Instances and a request delta of {wanted} Instances."
            )
        hosted.num_instances += wanted

    def _watch_alarms(self) -> None:
        """The state of the alarms that endpoints in service name; a deployment looks at its own, and more often."""
        while not self._closed.wait(self._settings.idle_alarm_interval_s):
            with self._lock:
                names = sorted({name for hosted in self._hosted.values() for name in hosted.alarm_names})
            try:
                if names:
                    self._alarms.ringing(names)
            except (BotoCoreError, ClientError) as error:
                logger.warning("The alarms could not be evaluated: %s", error)


def _alarm_names(deployment: Mapping[str, Any]) -> list[str]:
    return [alarm["AlarmName"] for alarm in deployment.get("AutoRollbackConfiguration", {}).get("Alarms", ())]
