"""Rollouts by another program: a server that speaks vLLM's language on a socket, with the adapters it is given, or with an old one."""

from __future__ import annotations

import json
import threading
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path

import pytest
import torch

from conf.load import load_config
from data_prep.artifacts import StageError, stage_dir
from serve.engine import Sampling
from serve.engine.embedded import Embedded
from tests.toys import toy_run
from training import ppo
from training.adapters import OneBase
from training.models import load_base, load_tokenizer
from training.rollouts import Local, Vllm, answer, prompt_ids, several
from training.trees import grow


class Server(ThreadingHTTPServer):
    """What of vLLM the rollouts use: load and unload adapters, completions of token ids with log-probs. `stale` goes on with the first adapter."""

    def __init__(self, config, *, stale: bool = False, status: int = 200):
        super().__init__(("127.0.0.1", 0), Handler)
        self.tokenizer = load_tokenizer(config)
        self.model, self.config, self.stale, self.status = OneBase(config, self.tokenizer), config, stale, status
        self.loaded: list[str] = []
        self.asked: list[str] = []
        self.wanted: set[int] = set()

    def speaker(self, name: str) -> str:
        return self.loaded[0] if self.stale else name


class Handler(BaseHTTPRequestHandler):
    def do_POST(self) -> None:
        body = json.loads(self.rfile.read(int(self.headers["Content-Length"])))
        server, path = self.server, self.path.removeprefix("/v1/")
        server.asked.append(path)
        if path == "load_lora_adapter":
            if not (server.stale and server.loaded):
                server.model.add(body["lora_name"], Path(body["lora_path"]))
            server.loaded.append(body["lora_name"])
            made: object = "ok"
        elif path == "unload_lora_adapter":
            made = "ok"
        else:
            made = {"choices": self.choices(body)}
        data = json.dumps(made).encode()
        self.send_response(server.status)
        self.send_header("Content-Length", str(len(data)))
        self.end_headers()
        self.wfile.write(data)

    def choices(self, body: dict) -> list[dict]:
        model, name, end = self.server.model, self.server.speaker(body["model"]), self.server.tokenizer.eos_token_id
        found = []
        self.server.wanted.add(body["n"])
        for number, turn in enumerate(Local(model, name, body["max_tokens"], body["temperature"])(body["prompt"], len(self.server.asked), body["n"])):
            tree = grow([turn.prompt + turn.reply])
            with torch.no_grad(), model.using(name):
                log_probs, _ = model.log_probs([tree], [[tree.leaves[0][-len(turn.reply):]]])
            found.append({"index": number, "token_ids": turn.reply, "finish_reason": "stop" if turn.reply[-1] == end else "length", "logprobs": {"token_logprobs": log_probs.tolist()}})
        return found[::-1]          # in any order, as the protocol allows

    def log_message(self, *_) -> None:
        pass


@pytest.fixture
def run(tmp_path):
    return toy_run(tmp_path, "ppo.steps=2", "ppo.episodes=4", "ppo.max_replies=2", "ppo.learning_rate=3e-2", "ppo.kl_budget=1e6")


def serving(server: Server) -> Server:
    threading.Thread(target=server.serve_forever, daemon=True).start()
    return server


@pytest.mark.slow
@pytest.mark.parametrize("temperature", [1.0, 0.5])
def test_a_vllm_that_loads_each_adapter_does_what_transformers_do(run, temperature):
    run.ppo.temperature, run.ppo.max_disagreement = temperature, 1e-3
    server = serving(Server(run))
    run.ppo.vllm = f"http://127.0.0.1:{server.server_port}"
    ppo.run(run)
    curve = json.loads((stage_dir(run, "ppo") / "curve.json").read_text())
    assert [entry["step"] for entry in curve] == [0, 1, 2]
    assert len(set(server.loaded)) == 3, "a new name for each step's adapter"
    assert server.asked.count("unload_lora_adapter") == 2
    assert server.wanted == {run.ppo.drafts}, "asked as n: a prompt sent twice with one seed would be answered twice alike"
    server.shutdown()


@pytest.mark.slow
@pytest.mark.parametrize("learning_rate", [3e-2, load_config([]).ppo.learning_rate])
def test_a_vllm_that_speaks_with_an_old_adapter_stops_the_run(run, learning_rate):
    """At the default rate too, where a step moves the policy by less than the disagreement that is allowed."""
    run.ppo.learning_rate = learning_rate
    server = serving(Server(run, stale=True))
    run.ppo.vllm = f"http://127.0.0.1:{server.server_port}"
    with pytest.raises(StageError, match="it speaks with an old adapter"):
        ppo.run(run)
    assert not stage_dir(run, "ppo").exists()
    server.shutdown()


def test_a_vllm_that_is_away_or_refuses_is_one_line_without_a_prompt(run):
    model = OneBase(run, load_tokenizer(run))
    model.add("policy", stage_dir(run, "sft") / "adapter")
    away = Vllm("http://127.0.0.1:9", model, "policy", Path(run.run_dir) / "v", 6)
    with pytest.raises(StageError, match=r"cannot be reached \(ConnectError\)"):
        away.refresh()
    server = serving(Server(run, status=404))
    refusing = Vllm(f"http://127.0.0.1:{server.server_port}", model, "policy", Path(run.run_dir) / "v", 6)
    with pytest.raises(StageError, match="answered load_lora_adapter with 404: start it with --enable-lora"):
        refusing.refresh()
    server.shutdown()


def test_the_same_seed_draws_the_same_replies_and_another_one_others(run):
    tokenizer = load_tokenizer(run)
    model = OneBase(run, tokenizer)
    model.add("policy", stage_dir(run, "sft") / "adapter")
    rows = [{"prompt": [{"role": "user", "content": f"question {k}"}]} for k in range(9)]

    def drawn(seed: int) -> list[list[int]]:
        return [episode.turns[0].reply for episode in answer(Local(model, "policy", 6), tokenizer, rows, list(range(5)), seed, seed, 1, 200, 6)]

    assert drawn(1) == drawn(1) != drawn(2)
    drafts = several(Local(model, "policy", 6), [[5, 6, 7], [8, 9]], 4, 0)
    assert [[turn.is_draft for turn in turns] for turns in drafts] == [[False, True, True, True]] * 2
    assert [{tuple(turn.prompt) for turn in turns} for turns in drafts] == [{(5, 6, 7)}, {(8, 9)}]
    assert all(len({tuple(turn.reply) for turn in turns}) > 1 for turns in drafts)


def test_replies_come_in_the_order_of_their_prompts_however_few_are_drawn_at_once(run):
    """At next to no temperature a reply depends on its prompt alone."""
    tokenizer = load_tokenizer(run)
    model = OneBase(run, tokenizer)
    model.add("policy", stage_dir(run, "sft") / "adapter")
    prompts = [[5 + k] * (1 + 7 * k % 11) for k in range(9)]
    made = [[(turn.prompt, turn.reply) for turn in Local(model, "policy", 6, 1e-4, size)(prompts, 0, 2)] for size in (1, 6, 64)]
    assert made[0] == made[1] == made[2]
    assert [prompt for prompt, _ in made[0]] == [prompt for prompt in prompts for _ in range(2)]


def test_a_long_conversation_is_cut_as_in_serving(run):
    tokenizer = load_tokenizer(run)
    messages = [{"role": "system", "content": "be kind"}, *({"role": role, "content": f"{role} {k} " * 5} for k in range(20) for role in ("user", "assistant")), {"role": "user", "content": "last"}]
    ids = prompt_ids(tokenizer, messages, 120, 20)
    assert len(ids) <= 100
    text = tokenizer.decode(ids)
    assert "be kind" in text
    assert "last" in text
    assert "user 0" not in text


def test_the_engine_stops_where_it_is_told_and_draws_the_same_again(run):
    """Of what it would say, all up to the first word that must not be said; and by its seed."""
    engine, asked = Embedded(load_base(run), load_tokenizer(run), 200), [[{"role": "user", "content": text}] for text in ("hello", "where is my parcel")]
    plain = engine.generate(asked, Sampling(max_tokens=12))
    assert [made.finish_reason for made in plain] == ["length", "length"]
    word = plain[1].text.strip()[3:6]
    stopped = engine.generate(asked, Sampling(max_tokens=12, stop=(word,)))[1]
    assert stopped.text == plain[1].text[:plain[1].text.index(word)]
    assert (stopped.finish_reason, stopped.completion_tokens < 12) == ("stop", True)
    drawn = [engine.generate(asked, Sampling(temperature=1.0, top_p=0.9, max_tokens=12, seed=seed)) for seed in (1, 1, 2)]
    assert drawn[0] == drawn[1] != drawn[2]
