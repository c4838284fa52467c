"""What a server tells Prometheus."""

from prometheus_client import CollectorRegistry, Counter, Gauge, Histogram, generate_latest

BUCKETS = (0.005, 0.01, 0.025, 0.05, 0.1, 0.25, 0.5, 1.0, 2.5, 5.0, 10.0, 30.0)


class Metrics:
    """The figures of one server."""

    def __init__(self) -> None:
        self.registry = registry = CollectorRegistry()
        self.clients = Gauge("visuomotor_clients", "Clients that are connected.", registry=registry)
        self.requests = Counter(
            "visuomotor_requests",
            "Requests by kind, and by outcome: answered, refused (bad), late (timed out), failed (our fault).",
            ["kind", "outcome"],
            registry=registry,
        )
        self.bad_frames = Counter("visuomotor_bad_frames", "Messages that ended their connection.", registry=registry)
        self.unauthorized = Counter("visuomotor_unauthorized", "Connections without the token.", registry=registry)
        self.calls = Counter("visuomotor_network_calls", "Calls of the policy's network.", registry=registry)
        self.rows = Counter("visuomotor_rows", "Chunks of actions that they computed.", registry=registry)
        self.seconds = Histogram(
            "visuomotor_request_seconds", "From a request to its reply.", registry=registry, buckets=BUCKETS
        )

    def text(self) -> bytes:
        """All of them, in Prometheus's format."""
        return generate_latest(self.registry)
