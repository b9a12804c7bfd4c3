from __future__ import annotations

import contextlib
import json
import threading
import time

import httpx
import openai
import pytest
import uvicorn
from hypothesis import given
from hypothesis import strategies as st

from data_prep.conversation import tool_call
from data_prep.hermes import parse_reply
from serve.app import create_app, events, releasable
from serve.engine import Completion
from serve.handoff import TRANSFER, policy_of

CALL = '<tool_call>{"name": "get_order", "arguments": {"order_number": "48213"}}</tool_call>'


def test_a_tool_call_is_parsed_and_the_words_beside_it_kept():
    message = parse_reply(f"One moment. {CALL}")
    assert message["content"] == "One moment."
    assert message["tool_calls"] == [tool_call("get_order", {"order_number": "48213"})]


@pytest.mark.parametrize("text", ["<tool_call>{broken</tool_call>", '<tool_call>{"name": "x"}</tool_call>', "<tool_call>[1]</tool_call>", "plain", "<tool_call>"])
def test_what_is_no_tool_call_stays_text(text):
    assert parse_reply(text) == {"role": "assistant", "content": text}


@given(st.text(max_size=40), st.booleans(), st.integers(1, 7))
def test_streamed_text_and_calls_add_up_to_the_plain_reply(text, with_call, step):
    whole = text + (CALL if with_call else "")
    pieces = [whole[i:i + step] for i in range(0, len(whole), step)]
    lines = list(events(iter([*pieces, Completion(whole, "stop", 1, 1)]), "m", True))
    assert lines[-1] == "data: [DONE]\n\n"
    chunks = [json.loads(line[6:]) for line in lines[:-1]]
    deltas = [c["choices"][0]["delta"] for c in chunks if c["choices"]]
    expected = parse_reply(whole)
    assert "".join(d.get("content") or "" for d in deltas) == expected["content"]
    calls = [c for d in deltas for c in d.get("tool_calls", [])]
    assert [c["function"] for c in calls] == [c["function"] for c in expected.get("tool_calls", [])]
    assert len({c["id"] for c in chunks}) == 1
    assert chunks[-1]["usage"]["total_tokens"] == 2


def test_the_start_of_a_call_is_never_released():
    assert releasable("Hello <tool") == "Hello"
    assert releasable(f"Hello {CALL}") == "Hello"
    assert releasable("Hello there") == "Hello there"


@contextlib.contextmanager
def listening(app):
    """A real server on a socket; yields its address."""
    server = uvicorn.Server(uvicorn.Config(app, port=0, log_level="error"))
    thread = threading.Thread(target=server.run, daemon=True)
    thread.start()
    while not server.started:
        time.sleep(0.01)
    yield f"http://127.0.0.1:{server.servers[0].sockets[0].getsockname()[1]}/v1"
    server.should_exit = True
    thread.join()


@pytest.fixture
def endpoint(scripted):
    """Around a scripted engine; yields (openai client, engine)."""
    engine = scripted(["Hello!"])
    with listening(create_app(engine, "supportloop", 64)) as url:
        yield openai.OpenAI(base_url=url, api_key="none", max_retries=0), engine


ASK = [{"role": "user", "content": "hi"}]


def test_the_openai_client_gets_a_reply(endpoint):
    client, engine = endpoint
    made = client.chat.completions.create(model="supportloop", messages=ASK)
    assert made.choices[0].message.content == "Hello!"
    assert made.choices[0].finish_reason == "stop"
    assert (made.usage.prompt_tokens, made.usage.total_tokens) == (7, 8)
    assert engine.asked == [[{"role": "user", "content": "hi"}]]


def test_the_openai_client_gets_tool_calls(endpoint):
    client, engine = endpoint
    engine.replies = [CALL]
    choice = client.chat.completions.create(model="supportloop", messages=ASK).choices[0]
    assert choice.finish_reason == "tool_calls"
    assert choice.message.content is None
    assert choice.message.tool_calls[0].function.name == "get_order"
    assert json.loads(choice.message.tool_calls[0].function.arguments) == {"order_number": "48213"}


def test_the_openai_client_streams(endpoint):
    client, engine = endpoint
    engine.replies = [f"One moment. {CALL}"]
    chunks = list(client.chat.completions.create(model="supportloop", messages=ASK, stream=True, stream_options={"include_usage": True}))
    assert "".join(c.choices[0].delta.content or "" for c in chunks if c.choices) == "One moment."
    assert [c.choices[0].finish_reason for c in chunks if c.choices][-1] == "tool_calls"
    assert chunks[-1].usage.total_tokens > 0


def test_the_guard_stands_before_the_customer_streaming_and_not(scripted, pack):
    """The engine never hands over; the customer gets a person all the same, and a stream holds nothing of what was not to be said."""
    with listening(create_app(scripted(["You will get the money back."]), "supportloop", 64, policy_of(pack))) as url:
        client = openai.OpenAI(base_url=url, api_key="none", max_retries=0)
        for text, reason in (("I want to talk to a real person", "human"), ("What about my refund?", "promise")):
            asked = {"model": "supportloop", "messages": [{"role": "user", "content": text}]}
            choice = client.chat.completions.create(**asked).choices[0]
            chunks = [c.choices[0] for c in client.chat.completions.create(**asked, stream=True) if c.choices]
            said = "".join(c.delta.content or "" for c in chunks)
            calls = [call for c in chunks for call in c.delta.tool_calls or []]
            assert choice.finish_reason == chunks[-1].finish_reason == "tool_calls"
            for call in (choice.message.tool_calls[0], calls[0]):
                assert call.function.name == TRANSFER
                assert json.loads(call.function.arguments)["reason"] == reason
            assert said == choice.message.content
            assert "money" not in said
        assert client.chat.completions.create(model="supportloop", messages=[{"role": "user", "content": "Where is my parcel, number 48213?"}]).choices[0].finish_reason == "tool_calls", "a promise"


def test_calls_that_are_not_quite_openais_are_understood_or_refused_and_never_a_500(scripted, pack):
    with listening(create_app(scripted(["Hello!"]), "supportloop", 64, policy_of(pack))) as url:
        def post(call):
            asked = [{"role": "user", "content": "hi"}, {"role": "assistant", "content": None, "tool_calls": [call]}, {"role": "tool", "tool_call_id": "call_0", "content": "{}"}, {"role": "user", "content": [{"type": "text", "text": None}]}]
            return httpx.post(f"{url}/chat/completions", json={"messages": asked}).status_code

        assert post({"function": {"name": "get_order", "arguments": {"order_number": "1"}}}) == 200
        assert post({"id": "a", "type": "function", "function": {"name": "get_order", "arguments": "{"}}) == 200
        assert post({"id": "a", "function": {"arguments": "{}"}}) == post({"id": "a"}) == 400


def test_models_and_health(endpoint):
    client, _ = endpoint
    assert [m.id for m in client.models.list()] == ["supportloop"]
    assert client.get("../health", cast_to=object) == {"status": "ok"}


@pytest.mark.parametrize(("change", "status", "says"), [
    ({"model": "gpt"}, 404, "does not exist"), ({"messages": []}, 400, "messages"), ({"temperature": 9}, 400, "temperature"),
    ({"messages": [{"role": "boss", "content": "x"}]}, 400, "role"), ({"max_tokens": 0}, 400, "max_tokens"), ({"n": 3}, 400, "n")])
def test_a_bad_request_is_400_with_openais_error_shape(endpoint, change, status, says):
    client, _ = endpoint
    with pytest.raises(openai.APIStatusError) as error:
        client.chat.completions.create(**{"model": "supportloop", "messages": ASK, **change})
    assert error.value.status_code == status
    assert says in error.value.body["message"]
    assert set(error.value.body) == {"message", "type", "param", "code"}


def test_a_tool_conversation_is_passed_on_as_it_came(endpoint):
    client, engine = endpoint
    messages = [{"role": "user", "content": [{"type": "text", "text": "where?"}]}, {"role": "assistant", "content": None, "tool_calls": [tool_call("get_order", {"order_number": "1"})]},
                {"role": "tool", "tool_call_id": "call_0", "content": "{}"}]
    client.chat.completions.create(model="supportloop", messages=messages)
    assert engine.asked[-1][0]["content"] == "where?"
    assert engine.asked[-1][1]["tool_calls"][0]["function"]["name"] == "get_order"
    assert engine.asked[-1][2] == {"role": "tool", "content": "{}", "tool_call_id": "call_0"}


def test_a_model_without_what_the_guard_needs_is_not_served_by_default(tmp_path, capsys):
    from serve.__main__ import main

    (tmp_path / "config.json").write_text("{}")
    assert main([f"model={tmp_path}"]) == 1
    assert "handoff.json is missing" in capsys.readouterr().err


def test_serving_a_folder_that_is_no_model_is_one_line(capsys):
    from serve.__main__ import main

    assert main(["model=nowhere"]) == 1
    assert capsys.readouterr().err == "error: model=nowhere is no exported model (it has no config.json): run `make train` first, or give the folder\n"
