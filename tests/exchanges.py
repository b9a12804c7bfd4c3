"""What clients ask a vLLM, one exchange each, and how answers are compared: by status, keys and types.

    make record-vllm          asks a real vLLM that serves the model of `tests/parrot.py`, and writes tests/exchanges.json
"""

from __future__ import annotations

import json
import sys
from pathlib import Path

import httpx

from tests.parrot import TALKS

RECORDED = Path(__file__).with_name("exchanges.json")
KEY = "sl-test"
TOOLS = [{"type": "function", "function": {"name": "get_order", "description": "Looks an order up.", "parameters": {"type": "object", "properties": {"order_number": {"type": "string"}}, "required": ["order_number"], "additionalProperties": False}}}]
RETURN, ORDER, GERMAN, SWEDISH, FREE, STORY = ([*talk[:2]] for talk in TALKS)
AGAIN = TALKS[1][:4]
SCHEMA = {"type": "object", "properties": {"answer": {"type": "string", "enum": ["yes", "no"]}}, "required": ["answer"], "additionalProperties": False}


def chat(messages=RETURN, **more) -> dict:
    return {"method": "POST", "path": "/v1/chat/completions", "json": {"model": "support", "messages": messages, "temperature": 0, "max_tokens": 60, **more}}


def complete(prompt="Is it", **more) -> dict:
    return {"method": "POST", "path": "/v1/completions", "json": {"model": "support", "prompt": prompt, "temperature": 0, "max_tokens": 8, **more}}


def get(path: str, **more) -> dict:
    return {"method": "GET", "path": path, **more}


def post(path: str, **more) -> dict:
    return {"method": "POST", "path": path, **more}


USAGE = {"stream": True, "stream_options": {"include_usage": True}}
EXCHANGES = {
    "models": get("/v1/models"), "models without a key": get("/v1/models", key=None), "models with a wrong key": get("/v1/models", key="nope"), "health": get("/health", key=None), "ping": post("/ping", key=None),
    "version": get("/version", key=None), "unknown path": get("/v1/nope"), "wrong method": get("/v1/chat/completions"), "embeddings": post("/v1/embeddings", json={"model": "support", "input": "a"}),
    "tokenize messages": post("/tokenize", json={"model": "support", "messages": RETURN, "return_token_strs": True}), "tokenize prompt": post("/tokenize", json={"model": "support", "prompt": "hello"}), "detokenize": post("/detokenize", json={"model": "support", "tokens": [4, 5, 6]}),
    "chat": chat(), "chat in German": chat(GERMAN), "chat in Swedish": chat(SWEDISH), "chat to its end": chat(STORY), "chat cut off": chat(STORY, max_tokens=5), "chat without a model": {**chat(), "json": {k: v for k, v in chat()["json"].items() if k != "model"}},
    "chat after a tool": chat(AGAIN, tools=TOOLS), "chat with parts": chat([{"role": "user", "content": [{"type": "text", "text": "hej"}]}]), "chat max_completion_tokens": chat(STORY, max_tokens=None, max_completion_tokens=4), "chat with an id": chat(headers={"X-Request-Id": "mine-1"}),
    "chat logprobs": chat(max_tokens=3, logprobs=True, top_logprobs=2), "chat logprobs without alternatives": chat(max_tokens=3, logprobs=True), "chat prompt logprobs": chat(max_tokens=2, prompt_logprobs=1), "chat token ids": chat(max_tokens=3, return_token_ids=True),
    "chat two choices": chat(n=2, temperature=1.0, seed=3, max_tokens=4), "chat stop string": chat(STORY, stop=["brown"]), "chat stop string kept": chat(STORY, stop=["brown"], include_stop_str_in_output=True), "chat seed": chat(temperature=1.0, seed=7, max_tokens=6),
    "chat min_tokens": chat(FREE, min_tokens=6, max_tokens=6), "chat ignore_eos": chat(FREE, ignore_eos=True, max_tokens=12), "chat top_k, min_p": chat(temperature=1.0, top_k=5, min_p=0.1, top_p=0.9, max_tokens=4, seed=1), "chat penalties": chat(presence_penalty=0.5, frequency_penalty=0.5, repetition_penalty=1.1, max_tokens=4),
    "chat logit_bias": chat(FREE, logit_bias={"5": -100}, max_tokens=4), "chat unknown field": chat(foo=1), "chat priority": chat(max_tokens=2), "chat nulls": chat(tools=None, tool_choice=None, stop=None, logprobs=None, n=None, seed=None, user=None, response_format=None),
    "chat stream": chat(stream=True), "chat stream usage": chat(**USAGE), "chat stream usage throughout": chat(stream=True, stream_options={"include_usage": True, "continuous_usage_stats": True}), "chat stream logprobs": chat(max_tokens=3, stream=True, logprobs=True, top_logprobs=1),
    "chat stream stop string": chat(STORY, stop=["brown"], **USAGE), "chat stream cut off": chat(STORY, max_tokens=5, stream=True), "chat stream two choices": chat(n=2, temperature=1.0, seed=3, max_tokens=4, stream=True), "chat stream emoji": chat(GERMAN, stream=True),
    "tool call": chat(ORDER, tools=TOOLS), "tool call, no choice given it": chat(ORDER, tools=TOOLS, tool_choice="none"), "tool call, tools unknown": chat(ORDER), "tool call named": chat(ORDER, tools=TOOLS, tool_choice={"type": "function", "function": {"name": "get_order"}}),
    "tool call required": chat(ORDER, tools=TOOLS, tool_choice="required", max_tokens=90), "tool call streamed": chat(ORDER, tools=TOOLS, **USAGE), "tools, and none called": chat(tools=TOOLS), "tools, and none called, streamed": chat(tools=TOOLS, stream=True),
    "tool_choice without tools": chat(tool_choice="required"), "tool_choice of no tool": chat(tools=TOOLS, tool_choice={"type": "function", "function": {"name": "nope"}}),
    "json schema": chat(FREE, response_format={"type": "json_schema", "json_schema": {"name": "a", "schema": SCHEMA}}), "structured json": chat(FREE, structured_outputs={"json": SCHEMA}), "structured choice": chat(FREE, structured_outputs={"choice": ["yes", "no"]}),
    "structured regex": chat(FREE, structured_outputs={"regex": "[a-c]{3}"}), "json schema without one": chat(response_format={"type": "json_schema"}), "two structures": chat(structured_outputs={"choice": ["a"], "regex": "b"}),
    "completion": complete(), "completion stream": complete(**USAGE), "completion of ids": complete([20, 21, 22]), "completion of two": complete(["Is it", "Where"]), "completion of two id lists": complete([[20, 21], [22, 23]]), "completion echo logprobs": complete([[20, 21, 22, 23]], max_tokens=1, logprobs=1, echo=True, seed=1234),
    "completion echo": complete(echo=True), "completion logprobs": complete(logprobs=2), "completion prompt_logprobs": complete(max_tokens=1, prompt_logprobs=0), "completion two choices": complete(n=2, temperature=1.0, seed=2), "completion stop": complete(stop=[" "]), "completion stop_token_ids": complete("hej", stop_token_ids=[3, 4, 5, 6, 7, 8, 9, 10, 11, 12]),
    "completion without max_tokens": {**complete(), "json": {"model": "support", "prompt": "Is it", "temperature": 0}}, "completion unknown model": complete(model="nope"), "completion empty": complete(""), "completion no prompts": complete([]), "completion suffix": complete(suffix="x"), "completion max_tokens too big": complete(max_tokens=5000),
    "unknown model": chat(model="nope"), "prompt too long": chat([{"role": "user", "content": "x y " * 1200}]), "max_tokens too big": chat(max_tokens=5000), "max_tokens 0": chat(max_tokens=0), "temperature below 0": chat(temperature=-1), "temperature too high": chat(temperature="hot"), "top_p above 1": chat(top_p=2), "n 0": chat(n=0),
    "five stops": chat(stop=["a", "b", "c", "d", "e"]), "no messages": chat([]), "messages missing": post("/v1/chat/completions", json={"model": "support"}), "unknown role": chat([{"role": "boss", "content": "x"}]), "bad JSON": post("/v1/chat/completions", content='{"model": ', headers={"content-type": "application/json"}),
    "text/plain": post("/v1/chat/completions", content="hi", headers={"content-type": "text/plain"}), "stream_options without stream": chat(stream_options={"include_usage": True}), "top_logprobs without logprobs": chat(top_logprobs=2), "too many logprobs": chat(logprobs=True, top_logprobs=50), "a template": chat(chat_template="x"),
    "top_k below -1": chat(top_k=-5), "min_p above 1": chat(min_p=2), "empty stop": chat(stop=[""]), "logit_bias out of vocabulary": chat(logit_bias={"99999": 1}), "presence_penalty too great": chat(presence_penalty=9), "repetition_penalty 0": chat(repetition_penalty=0),
}


def ask(url: str, exchange: dict) -> dict:
    """{"status", "type", "json" or "events" or "text"} of one exchange; url is without /v1."""
    body, headers = dict(exchange.get("json") or {}), dict(exchange.get("headers") or {})
    headers |= body.pop("headers", {})
    if exchange.get("key", KEY):
        headers["Authorization"] = f"Bearer {exchange.get('key', KEY)}"
    sent = {"json": body} if "json" in exchange else {"content": exchange["content"]} if "content" in exchange else {}
    answer = httpx.request(exchange["method"], url + exchange["path"], headers=headers, timeout=120, **sent)
    kind = answer.headers.get("content-type", "").partition(";")[0]
    if kind == "text/event-stream":
        lines = [line[6:] for line in answer.text.splitlines() if line.startswith("data: ")]
        return {"status": answer.status_code, "type": kind, "events": [line if line == "[DONE]" else json.loads(line) for line in lines]}
    return {"status": answer.status_code, "type": kind, **({"json": answer.json()} if kind == "application/json" else {"text": answer.text})}


def shape(value: object) -> object:
    """A JSON value's keys and types; of a list what its items are, each kind once."""
    if isinstance(value, dict):
        return {key: shape(item) for key, item in value.items()}
    if isinstance(value, list):
        kinds = [shape(item) for item in value]
        return [kind for place, kind in enumerate(kinds) if kind not in kinds[:place]]
    return "number" if isinstance(value, int | float) and not isinstance(value, bool) else type(value).__name__


def shapes(answer: dict) -> list[str]:
    """An answer's shape, or those of a stream's events, each once: how often one comes is the engine's."""
    return sorted({json.dumps(shape(event), sort_keys=True) for event in answer.get("events", [answer.get("json")])})


def text_of(answer: dict) -> list[str]:
    """What every choice says, words and calls, streamed or not."""
    said: dict[int, str] = {}
    for event in answer.get("events") or [answer.get("json") or {}]:
        for choice in event.get("choices", []) if isinstance(event, dict) else []:
            message = choice.get("message") or choice.get("delta") or choice
            calls = "".join((call["function"].get("name") or "") + (call["function"].get("arguments") or "") for call in message.get("tool_calls") or [])
            said[choice["index"]] = said.get(choice["index"], "") + (message.get("content") or message.get("text") or "") + calls
    return [said[index] for index in sorted(said)]


if __name__ == "__main__":
    made = {name: ask(sys.argv[1], exchange) for name, exchange in EXCHANGES.items()}
    for card in made["models"]["json"]["data"]:
        card["root"] = "the folder that it serves"
    RECORDED.write_text(json.dumps(made, ensure_ascii=False, indent=0, sort_keys=True) + "\n", encoding="utf-8")
    print(f"{len(EXCHANGES)} exchanges written to {RECORDED}")
