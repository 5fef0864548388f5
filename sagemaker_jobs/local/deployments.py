"""How an endpoint comes to serve a config: brought up, or blue/green beside the fleet before, or rolled back."""

import logging
import threading
import time
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

from botocore.exceptions import BotoCoreError, ClientError

from dogbreed_ml.errors import DogbreedError
from sagemaker_jobs.local.alarms import AlarmClock
from sagemaker_jobs.local.fleets import Fleet, Traffic
from sagemaker_jobs.local.hosting import num_instances, traffic_shares
from sagemaker_jobs.local.processes import Process

logger = logging.getLogger(__name__)


class Cancelled(Exception):
    """The endpoint is deleted, or the server ends, while a deployment is under way."""


class RolledBack(DogbreedError):
    """The message is the endpoint's FailureReason."""


@dataclass(eq=False)
class Hosted:
    """An endpoint that is alive in this server."""

    name: str
    traffic: Traffic = field(default_factory=Traffic)
    cancelled: threading.Event = field(default_factory=threading.Event)
    fleets: list[Fleet] = field(default_factory=list)
    """Every fleet that may have processes."""
    thread: threading.Thread | None = None
    """The deployment under way."""
    deleter: threading.Thread | None = None
    num_instances: int = 0
    """Of all fleets, those to come included."""
    alarm_names: Sequence[str] = ()
    _helper: Process | None = None

    def watch(self, process: Process) -> None:
        """A process that a deployment waits for, such as pip; `stop` ends it."""
        self._helper = process
        if self.cancelled.is_set():
            process.kill()

    def stop(self) -> None:
        """Ends the deployment and every process; may be called from several threads."""
        self.cancelled.set()
        if self._helper is not None:
            self._helper.kill()
        self.traffic.settle(None)
        thread = self.thread
        while True:
            for fleet in list(self.fleets):
                fleet.stop()
            if thread is None or thread is threading.current_thread() or not thread.is_alive():
                break
            # It may have been about to start one more fleet.
            thread.join(0.05)
        for fleet in list(self.fleets):
            fleet.stop()


@dataclass(frozen=True)
class Rollout:
    """The steps of one deployment; `report` is told the status of the new variants."""

    hosted: Hosted
    build: Callable[[], Fleet]
    """Fetches the models and makes the fleet, without starting it; raises DogbreedError."""
    timeouts_s: Mapping[str, float]
    report: Callable[[Fleet, str], None]
    alarms: AlarmClock
    alarm_interval_s: float
    drain_s: float
    clock: Callable[[], float] = time.monotonic

    def bring_up(self) -> Fleet:
        """A new fleet that answers; raises DogbreedError with the reason, and leaves nothing, where it does not."""
        fleet = self.build()
        self.hosted.fleets.append(fleet)
        try:
            self._check_cancelled()
            self.report(fleet, "Creating")
            fleet.start(timeouts_s=self.timeouts_s)
        except DogbreedError:
            self._discard(fleet)
            self._check_cancelled()
            raise
        return fleet

    def create(self) -> Fleet:
        """The first fleet gets all traffic as soon as it answers."""
        fleet = self.bring_up()
        self.hosted.traffic.settle(fleet)
        return fleet

    def update(self, deployment: Mapping[str, Any]) -> Fleet:
        """Shifts traffic to a new fleet and ends the one before; raises RolledBack, with the one before as it was.

        `deployment` is a DeploymentConfig. The fleet before answers until the new one has all traffic and has baked.
        """
        traffic = self.hosted.traffic
        before = traffic.fleet
        assert before is not None
        policy = deployment.get("BlueGreenUpdatePolicy", {})
        routing = policy.get("TrafficRoutingConfiguration", {})
        names = [alarm["AlarmName"] for alarm in deployment.get("AutoRollbackConfiguration", {}).get("Alarms", ())]
        fleet = self.bring_up()
        try:
            self._require_silence(names)
            for share in traffic_shares(routing, num_instances(fleet.config))[:-1]:
                self.report(fleet, "ActivatingTraffic")
                traffic.split(fleet, share)
                self._bake(fleet, names, routing["WaitIntervalInSeconds"])
            traffic.split(fleet, 1.0)
            self._bake(fleet, names, policy.get("TerminationWaitInSeconds", 0))
        except RolledBack:
            traffic.settle(before)
            fleet.stop(drain_s=self.drain_s)
            self.hosted.fleets.remove(fleet)
            raise
        traffic.settle(fleet)
        before.stop(drain_s=self.drain_s)
        self.hosted.fleets.remove(before)
        return fleet

    def rescale(self, config: Mapping[str, Any]) -> None:
        """Gives the fleet that answers the weights and counts of `config`; raises DogbreedError, with it as it was."""
        fleet = self.hosted.traffic.fleet
        assert fleet is not None
        try:
            fleet.grow(config, timeouts_s=self.timeouts_s)
        except DogbreedError:
            self._check_cancelled()
            raise
        for server in self.hosted.traffic.rescale(fleet, config):
            server.stop(drain_s=self.drain_s)

    def _bake(self, fleet: Fleet, alarm_names: Sequence[str], wait_s: float) -> None:
        self.report(fleet, "Baking")
        deadline = self.clock() + wait_s
        while (left_s := deadline - self.clock()) > 0:
            if self.hosted.cancelled.wait(min(left_s, self.alarm_interval_s) if alarm_names else left_s):
                raise Cancelled
            self._require_silence(alarm_names)
        self._require_silence(alarm_names)

    def _require_silence(self, alarm_names: Sequence[str]) -> None:
        self._check_cancelled()
        if not alarm_names:
            return
        try:
            ringing = self.alarms.ringing(alarm_names)
        except (BotoCoreError, ClientError) as error:
            raise RolledBack(f"The alarms of the deployment could not be read: {error}") from error
        if ringing:
            raise RolledBack(f"One or more alarms ({', '.join(ringing)}) went off; the update was rolled back.")

    def _check_cancelled(self) -> None:
        if self.hosted.cancelled.is_set():
            raise Cancelled

    def _discard(self, fleet: Fleet) -> None:
        fleet.stop()
        self.hosted.fleets.remove(fleet)
