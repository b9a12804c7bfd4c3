"""`/metrics`: vLLM's names and labels, so that its dashboards and scaling rules work, and a counter of our own for replies that nobody waited for."""

from __future__ import annotations

import time

from prometheus_client import CollectorRegistry, Counter, Gauge, Histogram, generate_latest
from prometheus_client.exposition import CONTENT_TYPE_LATEST

from serve.engine import Job
from serve.queue import Queue

LABELS = ("model_name", "engine")
SECONDS = (0.001, 0.005, 0.01, 0.02, 0.04, 0.06, 0.08, 0.1, 0.25, 0.5, 0.75, 1.0, 2.5, 5.0, 7.5, 10.0, 20.0, 40.0, 80.0, 160.0, 640.0, 2560.0)       # vLLM's, of the time to a first token
TOKENS = (1, 2, 5, 10, 20, 50, 100, 200, 500, 1000, 2000, 5000, 10000, 20000, 50000, 100000)


class Metrics:
    """One endpoint's counts, in a registry of its own."""

    def __init__(self, name: str, queue: Queue):
        self.registry, self.labels = CollectorRegistry(), (name, "0")

        def gauge(metric: str, words: str, read) -> None:
            Gauge(f"vllm:{metric}", words, LABELS, registry=self.registry).labels(*self.labels).set_function(read)

        def counter(metric: str, words: str, *more: str) -> Counter:
            return Counter(f"vllm:{metric}", words, (*LABELS, *more), registry=self.registry)

        def histogram(metric: str, words: str, buckets: tuple = SECONDS) -> Histogram:
            return Histogram(f"vllm:{metric}", words, LABELS, registry=self.registry, buckets=buckets).labels(*self.labels)

        gauge("num_requests_running", "Requests at work", lambda: queue.running)
        gauge("num_requests_waiting", "Requests that wait", lambda: queue.waiting)
        Gauge("supportloop:ready", "Whether the engine answers", LABELS, registry=self.registry).labels(*self.labels).set_function(lambda: float(queue.state.ready))
        self.prompt_tokens, self.generation_tokens = (counter(f"{kind}_tokens", f"{kind} tokens").labels(*self.labels) for kind in ("prompt", "generation"))
        self.success = counter("request_success", "Requests that ended, by how", "finished_reason")
        for reason in ("stop", "length", "abort", "error"):
            self.success.labels(*self.labels, reason)
        self.rejections = Counter("vllm:admission_rejections", "Requests that the queue had no room for", ("model_name", "reason"), registry=self.registry)
        self.aborted = Counter("supportloop:aborted", "Replies whose reader went away before they were whole", LABELS, registry=self.registry).labels(*self.labels)
        self.first, self.between, self.whole = (histogram(*one) for one in (("time_to_first_token_seconds", "To the first token"), ("inter_token_latency_seconds", "Between two tokens"), ("e2e_request_latency_seconds", "Of a whole request")))
        self.asked, self.made = (histogram(f"request_{kind}_tokens", f"{kind} tokens of a request", TOKENS) for kind in ("prompt", "generation"))
        self.most = histogram("request_params_max_tokens", "max_tokens of a request", TOKENS)

    def meter(self, job: Job) -> Meter:
        return Meter(self, job)

    def rejected(self) -> None:
        self.rejections.labels(self.labels[0], "max_num_queued_reqs").inc()

    def text(self) -> tuple[bytes, str]:
        return generate_latest(self.registry), CONTENT_TYPE_LATEST


class Meter:
    """Counts one reply: `made` at every piece, `end` when it is over or its reader has gone."""

    def __init__(self, metrics: Metrics, job: Job):
        self.metrics, self.began, self.last, self.tokens, self.finish = metrics, time.monotonic(), None, 0, None
        metrics.prompt_tokens.inc(len(job.prompt))
        metrics.asked.observe(len(job.prompt))
        metrics.most.observe(job.sampling.max_tokens)

    def made(self, tokens: int, finish: str | None) -> None:
        now = time.monotonic()
        if tokens:
            if self.last is None:
                self.metrics.first.observe(now - self.began)
            else:
                self.metrics.between.observe((now - self.last) / tokens)
            self.last = now
        self.tokens, self.finish = self.tokens + tokens, finish
        self.metrics.generation_tokens.inc(tokens)

    def end(self) -> None:
        self.metrics.success.labels(*self.metrics.labels, self.finish or "abort").inc()
        if self.finish is None:
            self.metrics.aborted.inc()
        self.metrics.made.observe(self.tokens)
        self.metrics.whole.observe(time.monotonic() - self.began)
