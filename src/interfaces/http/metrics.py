"""What `/metrics` tells Prometheus."""

from prometheus_client import CollectorRegistry, Counter, Gauge, Histogram

FIRST_TOKEN = (0.01, 0.03, 0.1, 0.3, 1.0, 3.0, 10.0, 30.0)
NEXT_TOKEN = (0.001, 0.003, 0.01, 0.03, 0.1, 0.3, 1.0)


class Metrics:
    """One server's figures, in a registry of their own."""

    def __init__(self) -> None:
        self.registry = CollectorRegistry()
        self.requests = Counter(
            "smallgpt_requests", "Answers by path and status.", ["path", "status"], registry=self.registry
        )
        self.sequences = Counter(
            "smallgpt_sequences",
            "Sequences by how they ended: stop, length, left, failed, refused.",
            ["outcome"],
            registry=self.registry,
        )
        self.tokens = Counter("smallgpt_tokens", "Tokens generated.", registry=self.registry)
        self.prompt_tokens = Counter("smallgpt_prompt_tokens", "Tokens of prompts taken in.", registry=self.registry)
        self.waiting = Gauge("smallgpt_waiting", "Sequences that wait for a stream.", registry=self.registry)
        self.active = Gauge("smallgpt_active_streams", "Sequences being continued.", registry=self.registry)
        self.first_token = Histogram(
            "smallgpt_first_token_seconds",
            "From a sequence's arrival to its first token.",
            buckets=FIRST_TOKEN,
            registry=self.registry,
        )
        self.next_token = Histogram(
            "smallgpt_next_token_seconds",
            "Between two tokens of a sequence.",
            buckets=NEXT_TOKEN,
            registry=self.registry,
        )
