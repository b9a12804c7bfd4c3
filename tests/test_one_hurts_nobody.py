"""No request, however odd or long, and no reader, however slow, hurts those who ask beside it: found by a review that tried."""

from __future__ import annotations

import asyncio
import contextlib
import http.server
import json
import re
import threading
import time

import httpx
import pytest

from data_prep.conversation import truncate
from serve.engine import EngineError, Job, Sampling, State, Step
from serve.engine.grammar import ebnf, is_plain
from serve.engine.upstream import Upstream
from serve.handoff import amount, guarded, policy_of
from serve.queue import Full, Queue
from tests.exchanges import RETURN, STORY
from tests.serving import listening, process, saying, scripted_app
from tests.test_engine import engine_of
from tests.test_serve import ASK, Slow, wait_until

USER = {"role": "user", "content": "hi"}


class Counting:
    """An engine of three steps a job, which says how many it has made."""

    def __init__(self, fails: str | None = None):
        self.state, self.made, self.fails = State(ready=True, progressed=time.monotonic()), 0, fails

    async def start(self):
        pass

    async def close(self):
        pass

    async def run(self, job):
        if self.fails and job.id.startswith(self.fails):
            raise EngineError("broken")
        if self.fails:
            await asyncio.sleep(3600)
        for number in range(3):
            self.made += 1
            yield Step((number,), finish="length" if number == 2 else None)


def job(name: str = "a") -> Job:
    return Job(name, (1,), Sampling())


def test_a_reader_who_reads_no_more_keeps_no_place():
    async def scene():
        engine = Counting()
        queue = Queue(engine, 1, 0)
        slow = queue.run(job())
        await anext(slow)
        await asyncio.sleep(0.05)
        assert (queue.running, engine.made) == (0, 3), "it is all made, and waits"
        assert len([step async for step in queue.run(job("b"))]) == 3
        assert len([step async for step in slow]) == 2

    asyncio.run(scene())


def test_no_more_wait_than_may_however_many_come_at_once():
    async def scene():
        queue = Queue(Counting(fails="nobody"), 2, 3)
        asked = [asyncio.create_task(anext(queue.run(job(str(number))))) for number in range(20)]
        await asyncio.sleep(0.05)
        assert (queue.running, queue.waiting) == (2, 3)
        assert sum(isinstance(task.exception(), Full) for task in asked if task.done()) == 15
        for task in asked:
            task.cancel()
        await asyncio.gather(*asked, return_exceptions=True)
        assert (queue.running, queue.waiting) == (0, 0)

    asyncio.run(scene())


def test_a_choice_that_fails_takes_its_siblings_with_it():
    app, engine = scripted_app(["Hello!"])
    engine.run = Counting(fails="chatcmpl-mine-0-").run
    with listening(app) as url:
        root = url.removesuffix("/v1")
        assert httpx.post(f"{url}/chat/completions", json={"messages": ASK, "n": 4}, headers={"X-Request-Id": "mine"}).status_code == 503
        wait_until(lambda: httpx.get(f"{root}/ready").json()["running"] == 0)
        counted = httpx.get(f"{root}/metrics").text
        assert re.search(r'request_success_total\{.*finished_reason="error"[^}]*\} 1', counted), "the engine's fault is no reader's who went away"


def test_cutting_takes_a_few_looks_however_many_turns_there_are():
    looks = 0

    def length(messages):
        nonlocal looks
        looks += 1
        return len(messages)

    messages = [{"role": ("user", "assistant")[k % 2], "content": str(k)} for k in range(20_000)]
    assert truncate(messages, 100, length) == messages[-100:]
    assert looks < 20


@pytest.mark.slow
def test_a_long_conversation_and_a_long_number_keep_nobody_waiting(pack):
    began = time.perf_counter()
    assert amount("1." + "0" * 40_000 + "1") == "1." + "0" * 40_000 + "1"
    assert amount("1250.00") == amount("1.250") == "1250"
    pasted = [USER | {"content": "I bought a lamp. " * 6000}]
    guarded(pasted, {"role": "assistant", "content": "All is well."}, policy_of(pack))
    assert time.perf_counter() - began < 5
    with saying(["All is well. It comes soon."], policy=policy_of(pack), max_tokens=1024) as url:
        root, worst, done = url.removesuffix("/v1"), 0.0, threading.Event()
        sent = [[{"role": ("user", "assistant")[k % 2], "content": "a"} for k in range(2001)], [USER | {"content": "1." + "0" * 40_000 + "1"}, {"role": "assistant", "content": "ok"}, USER]]
        statuses: list[int] = []

        def ask():
            statuses.extend(httpx.post(f"{url}/chat/completions", json={"messages": messages, "n": 3}, timeout=120).status_code for messages in sent)
            done.set()

        threading.Thread(target=ask).start()
        while not done.is_set():
            began = time.perf_counter()
            httpx.get(f"{root}/health", timeout=120)
            worst = max(worst, time.perf_counter() - began)
        assert statuses == [200, 200]
        assert worst < 1.5


def test_a_system_message_is_read_in_no_time_however_it_is_written(pack):
    policy, reply = policy_of(pack), {"role": "assistant", "content": "The fee is 9 euro."}
    for system in ("Support of Brindle Pay for 1" * 40 + ". Returns: 1" * 40 + " days. Extension: 1" * 40 + " days, once. Late fee: 1" * 40, "Returns: " + "9" * 4400 + " days. Late fee: 9 euro."):
        began = time.perf_counter()
        guarded([{"role": "system", "content": system}, USER], reply, policy)
        assert time.perf_counter() - began < 1


def nested(depth: int) -> str:
    return '{"type":"object","properties":{"a":' * depth + '{"type":"string"}' + "}}" * depth


@pytest.mark.parametrize("asked", [{"structured_outputs": {"json": nested(400)}}, {"structured_outputs": {"regex": "(" * 200 + "a" + ")" * 200}}, {"structured_outputs": {"choice": ["a" * 40_000]}}])
def test_structures_that_take_seconds_are_refused(asked):
    with saying(["hi"]) as url:
        began = time.perf_counter()
        assert httpx.post(f"{url}/chat/completions", json={"messages": ASK, **asked}).status_code == 400
        assert time.perf_counter() - began < 2


@pytest.mark.parametrize(("kind", "text", "plain"), [("json", '{"type":"object","properties":{"n":{"type":"integer"}},"required":["n"]}', True), ("regex", "[a-c]{4}(x|y){2,8}", True), ("choice", '["a{9999}(b", "c"]', True),
                                                    ("json", '{"type":"string","pattern":"^[0-9]{5}$"}', False), ("regex", "(((a{1,1000}){1,1000}){1,1000}){1,1000}", False)])
def test_the_fast_engine_gets_structures_that_its_reader_knows(kind, text, plain):
    assert is_plain(ebnf(kind, text)) == plain


@pytest.fixture(scope="module")
def running(parrot, tmp_path_factory):
    with process(parrot, tmp_path_factory.mktemp("one"), guard="false") as both:
        yield both


def ask(url: str, headers: dict | None = None, **more) -> httpx.Response:
    return httpx.post(f"{url}/v1/chat/completions", json={"messages": STORY, "temperature": 0, "max_tokens": 30, **more}, headers=headers, timeout=60)


@pytest.mark.slow
@pytest.mark.parametrize(("more", "status"), [
    ({"response_format": {"type": "json_schema", "json_schema": {"name": "zip", "schema": {"type": "string", "pattern": "^[0-9]{5}$"}}}}, 200),
    ({"structured_outputs": {"regex": "(((a{1,1000}){1,1000}){1,1000}){1,1000}"}}, 200),
    ({"tools": [{"type": "function", "function": {"name": "f", "parameters": {"type": "object", "properties": {"zip": {"type": "string", "pattern": "^[0-9]{5}$"}}, "required": ["zip"]}}}], "tool_choice": "required"}, 200),
    ({"top_k": 10 ** 30, "temperature": 1}, 200), ({"top_k": 2 ** 64, "temperature": 1, "logprobs": True}, 200), ({"top_p": 1e-300, "min_p": 1, "logprobs": True, "temperature": 1}, 200),
    ({"logit_bias": {str(number): 1 for number in range(400)}}, 200), ({"logit_bias": {"0" * number + "7": 1 for number in range(1100)}}, 400), ({"logit_bias": {"0" * 21 + "999999": 1}}, 400), ({"logit_bias": {"0" * 5000 + "7": 1}}, 200), ({"logit_bias": {"9" * 5000: 1}}, 400)])
def test_no_request_ends_the_engine(running, more, status):
    url, server = running
    before, began = engine_of(server).pid, time.perf_counter()
    assert ask(url, **more).status_code == status
    assert engine_of(server).pid == before
    assert ask(url).status_code == 200
    assert time.perf_counter() - began < 20


@pytest.mark.slow
def test_what_follows_a_pattern_is_what_it_says(running):
    url, _ = running
    made = ask(url, response_format={"type": "json_schema", "json_schema": {"name": "zip", "schema": {"type": "string", "pattern": "^[0-9]{5}$"}}}).json()["choices"][0]["message"]["content"]
    assert re.fullmatch(r'"[0-9]{5}"', made)


@pytest.mark.slow
def test_two_requests_of_one_id_do_not_mix(running):
    url, _ = running
    alone = [ask(url, messages=messages).json()["choices"][0]["message"]["content"] for messages in (STORY, RETURN)]
    made: dict[int, str] = {}

    def one(number: int) -> None:
        made[number] = ask(url, {"X-Request-Id": "pair"}, messages=(STORY, RETURN)[number % 2]).json()["choices"][0]["message"]["content"]

    threads = [threading.Thread(target=one, args=(number,)) for number in range(8)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join(30)
    assert [made[number] for number in range(8)] == alone * 4


@contextlib.contextmanager
def upstream(says: bytes | None):
    """A server that lists its model, and to a completion says this and no more; None: nothing at all."""
    class Handler(http.server.BaseHTTPRequestHandler):
        def do_GET(self):
            self.answer(b'{"data": [{"id": "support"}]}')

        def do_POST(self):
            self.rfile.read(int(self.headers["content-length"]))
            if says is None:
                time.sleep(30)
            else:
                self.answer(says)

        def answer(self, body: bytes):
            self.send_response(200)
            self.send_header("content-type", "application/json")
            self.send_header("content-length", str(len(body)))
            self.end_headers()
            self.wfile.write(body)

        def log_message(self, *args):
            pass

    server = http.server.ThreadingHTTPServer(("127.0.0.1", 0), Handler)
    server.daemon_threads = True
    threading.Thread(target=server.serve_forever, daemon=True).start()
    yield f"http://127.0.0.1:{server.server_port}/v1"
    server.shutdown()


@pytest.mark.parametrize("says", [b"data: {oops\n\n", b'data: {"nothing": 1}\n\n', b'data: {"choices": [7]}\n\n', b"<html>", None])
def test_an_upstream_that_says_nothing_or_nonsense_is_given_up(says, monkeypatch):
    monkeypatch.setattr("serve.engine.upstream.SILENT", 0.5)

    async def scene(address):
        engine = Upstream(address, "support")
        await engine.start()
        try:
            with contextlib.suppress(EngineError):
                assert [step.finish async for step in engine.run(job())][-1] == "error"
        finally:
            await engine.close()

    began = time.perf_counter()
    with upstream(says) as address:
        asyncio.run(scene(address))
    assert time.perf_counter() - began < 5


def test_a_million_mistakes_are_told_as_one():
    with saying(["hi"]) as url:
        for path, body in (("chat/completions", {"messages": [None] * 200_000}), ("completions", {"prompt": [None] * 200_000})):
            began = time.perf_counter()
            answer = httpx.post(f"{url}/{path}", json=body, timeout=60)
            assert (answer.status_code, len(answer.text) < 2000) == (400, True)
            assert time.perf_counter() - began < 2


def test_a_slow_engine_is_no_reason_to_fail():
    app, engine = scripted_app(["Hello!"])
    slow = Slow(engine)
    with listening(app) as url:
        threading.Timer(0.5, slow.open.set).start()
        assert json.loads(httpx.post(f"{url}/chat/completions", json={"messages": ASK}, timeout=30).text)["choices"][0]["message"]["content"] == "Hello!"
