"""Traces go to a real collector on a socket, hang together, and have nobody's words in them."""

from __future__ import annotations

import contextlib
import gzip
import http.server
import signal
import threading
from collections.abc import Iterator

import httpx
import pytest
from opentelemetry.proto.collector.trace.v1.trace_service_pb2 import ExportTraceServiceRequest

from tests.serving import process

CALLERS = "00-0af7651916cd43dd8448eb211c80319c-b7ad6b7169203331-01"         # the example of W3C's Trace Context


@contextlib.contextmanager
def collector() -> Iterator[tuple[str, list[bytes]]]:
    """(its address, the bodies that it was sent)."""
    got: list[bytes] = []

    class Handler(http.server.BaseHTTPRequestHandler):
        def do_POST(self):
            body = self.rfile.read(int(self.headers["content-length"]))
            got.append(gzip.decompress(body) if self.headers.get("content-encoding") == "gzip" else body)
            assert self.path == "/v1/traces"
            self.send_response(200)
            self.end_headers()

        def log_message(self, *args):
            pass

    server = http.server.ThreadingHTTPServer(("127.0.0.1", 0), Handler)
    threading.Thread(target=server.serve_forever, daemon=True).start()
    yield f"http://127.0.0.1:{server.server_port}", got
    server.shutdown()


@pytest.mark.slow
def test_a_request_is_one_trace_from_the_caller_to_the_upstream_without_a_word(parrot, tmp_path):
    (tmp_path / "behind").mkdir()
    with collector() as (address, got):
        with process(parrot, tmp_path / "behind", guard="false", traces=address) as (behind, first), process(parrot, tmp_path, guard="false", engine=f"{behind}/v1", upstream_model="supportloop", traces=address) as (front, second):
            answer = httpx.post(f"{front}/v1/chat/completions", json={"messages": [{"role": "user", "content": "my pin is zebra-77"}], "max_tokens": 3}, headers={"traceparent": CALLERS, "x-request-id": "call-1", "authorization": "Bearer zebra-78"})
            assert answer.status_code == 200
            for running in (second, first):          # what ends sends its last spans
                running.send_signal(signal.SIGTERM)
                assert running.wait(30) == 0
        spans = [span for body in got for resource in ExportTraceServiceRequest.FromString(body).resource_spans for scope in resource.scope_spans for span in scope.spans]
        posts = {next(a.value.string_value for a in span.attributes if a.key in ("http.target", "url.path")): span for span in spans if span.trace_id.hex() == CALLERS.split("-")[1]}
        assert set(posts) == {"/v1/chat/completions", "/v1/completions"}
        chat, completion = posts["/v1/chat/completions"], posts["/v1/completions"]
        assert chat.parent_span_id.hex() == CALLERS.split("-")[2]
        assert completion.parent_span_id == chat.span_id
        assert "call-1" in str(chat.attributes)
        assert b"zebra" not in b"".join(got)
