"""Traces for who collects them (OpenTelemetry): a span for every request, under the caller's where it names one, and on to the upstream. A span has the route, the status, the time and the request's id, and no words of anybody's."""

from __future__ import annotations

from importlib.metadata import version

from opentelemetry.exporter.otlp.proto.http.trace_exporter import OTLPSpanExporter
from opentelemetry.instrumentation.asgi import OpenTelemetryMiddleware
from opentelemetry.sdk.resources import Resource
from opentelemetry.sdk.trace import TracerProvider
from opentelemetry.sdk.trace.export import BatchSpanProcessor

UNSEEN = "health,ready,ping,metrics"           # asked every few seconds, by machines


def traced(app, collector: str):
    """(the application, inside of spans that go to a collector's address such as http://127.0.0.1:4318; what sends the last ones when the endpoint stops)."""
    provider = TracerProvider(resource=Resource.create({"service.name": "supportloop", "service.version": version("supportloop")}))
    provider.add_span_processor(BatchSpanProcessor(OTLPSpanExporter(f"{collector.rstrip('/')}/v1/traces")))
    inside = OpenTelemetryMiddleware(app, excluded_urls=UNSEEN, tracer_provider=provider, exclude_spans=["receive", "send"], http_capture_headers_server_request=[], http_capture_headers_server_response=["x-request-id"])
    return inside, provider.shutdown
