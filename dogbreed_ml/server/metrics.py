"""What /metrics shows, in Prometheus' text format."""

from prometheus_client import CollectorRegistry, Counter, Gauge, Histogram, Info, generate_latest

from dogbreed_ml.server.messages import Recognised

CONTENT_TYPE = "text/plain; version=0.0.4; charset=utf-8"

_SECONDS = (0.002, 0.005, 0.01, 0.02, 0.03, 0.05, 0.075, 0.1, 0.15, 0.25, 0.5, 1, 2.5, 5, 10)
_BATCH_SIZES = (1, 2, 4, 8, 16, 32, 64, 128, 256)


class Metrics:
    """One server's counters; its own registry, so that two servers of one process do not mix theirs."""

    def __init__(self) -> None:
        self._registry = registry = CollectorRegistry()
        self.requests = Counter("dogbreed_requests", "Answered requests.", ("path", "status"), registry=registry)
        self.request_seconds = Histogram(
            "dogbreed_request_seconds", "From a request's first byte to its answer.", ("path",), buckets=_SECONDS,
            registry=registry,
        )  # fmt: skip
        self.images = Counter("dogbreed_images", "Recognised images.", registry=registry)
        self.decode_seconds = Histogram(
            "dogbreed_decode_seconds", "Decoding one image.", buckets=_SECONDS, registry=registry
        )
        self.forward_seconds = Histogram(
            "dogbreed_forward_seconds", "The forward pass of the batch that an image was in.", buckets=_SECONDS,
            registry=registry,
        )  # fmt: skip
        self.batch_size = Histogram(
            "dogbreed_batch_size", "Images recognised together with an image, itself included.", buckets=_BATCH_SIZES,
            registry=registry,
        )  # fmt: skip
        self.restarts = Counter("dogbreed_worker_restarts", "Workers that died and were replaced.", registry=registry)
        self.waiting = Gauge("dogbreed_waiting_images", "Images in the queue.", registry=registry)
        self.in_flight = Gauge("dogbreed_images_in_flight", "Images that workers have.", registry=registry)
        self.workers_ready = Gauge("dogbreed_workers_ready", "Workers that can answer.", registry=registry)
        self.model = Info("dogbreed_model", "What is served.", registry=registry)

    def observe(self, message: Recognised) -> None:
        self.images.inc()
        self.decode_seconds.observe(message.decode_s)
        self.forward_seconds.observe(message.forward_s)
        self.batch_size.observe(message.batch_size)

    def render(self) -> bytes:
        return generate_latest(self._registry)
