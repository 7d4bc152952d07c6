"""What a gateway counts, in a registry of its own."""

from prometheus_client import CollectorRegistry, Counter, Gauge, Histogram, generate_latest

PREFIX = "swiftdiffusion_gateway"
SECONDS = (0.005, 0.025, 0.1, 0.25, 0.5, 1.0, 2.0, 4.0, 8.0, 16.0, 32.0, 60.0, 120.0, 300.0, 600.0)


class Metrics:
    """Its metrics.

    Attributes:
        requests: by route, method and status.
        seconds: that requests took, by route.
        refused: at the door, by reason.
        runs: pictures on their way, by pipeline.
        pictures: that ended, by pipeline and outcome.
    """

    def __init__(self) -> None:
        self.registry = registry = CollectorRegistry()
        self.requests = Counter(f"{PREFIX}_requests", "Requests", ("route", "method", "status"), registry=registry)
        self.seconds = Histogram(
            f"{PREFIX}_request_seconds", "Time of requests", ("route",), buckets=SECONDS, registry=registry
        )
        self.refused = Counter(
            f"{PREFIX}_refused", "Requests that were refused at the door", ("reason",), registry=registry
        )
        self.runs = Gauge(f"{PREFIX}_runs", "Pictures on their way", ("pipeline",), registry=registry)
        self.pictures = Counter(f"{PREFIX}_pictures", "Pictures that ended", ("pipeline", "outcome"), registry=registry)

    def text(self) -> bytes:
        """As Prometheus reads it."""
        return generate_latest(self.registry)
