"""The endpoint beside vLLM on the same CPU, over HTTP, in one run: tokens a second and time to the first token, with 1, 8 and 32 requests in flight.

    make bench-serve                                      all three models, into benchmarks/serve.md
    python -m benchmarks.serve vllm=.venv-vllm/bin/vllm run_dir=runs/dev out=benchmarks/serve.md

A Llama of 31.6 million random weights, the same stored in 16 bits as the models of hubs are, and the model that a run exported. Prompts of 60 to 160 tokens, 48 tokens out, streamed; both servers get the same
requests, in turn, each alone on the machine. Every figure is of the better of two rounds of each server, so that a disturbance of one counts for neither.
"""

from __future__ import annotations

import asyncio
import contextlib
import json
import os
import random
import signal
import statistics
import subprocess
import sys
import tempfile
import time
import urllib.request
from collections.abc import Iterator
from pathlib import Path

from conf.load import load_config
from data_prep.company.pack import load_pack
from data_prep.company.talk import draw_talk

OUT = 48              # tokens of a reply
FLIGHTS = (1, 8, 32)
REQUESTS = {1: 12, 8: 64, 32: 192}
PORT = 8231
PACE = 0.02           # seconds between two tokens of the paced upstream
WORDS = ["order", "parcel", "return", "invoice", "late", "fee", "shoes", "lamp", "please", "where", "when", "how", "days", "pay", "card", "address", "refund", "euro", "number", "today"]


def random_llama(folder: Path, dtype: str) -> Path:
    """31.6 M parameters, with a tokenizer of whole words, so that every token is text at once."""
    import torch
    from tokenizers import Tokenizer, decoders, models, pre_tokenizers
    from transformers import LlamaConfig, LlamaForCausalLM, PreTrainedTokenizerFast

    words = ["<|endoftext|>", "<|im_start|>", "<|im_end|>", "<unk>", "user", "assistant", *WORDS]
    words += [f"word{number}" for number in range(11520 - len(words))]
    made = Tokenizer(models.WordLevel({word: number for number, word in enumerate(words)}, unk_token="<unk>"))
    made.pre_tokenizer, made.decoder = pre_tokenizers.WhitespaceSplit(), decoders.WordPiece(prefix="##")
    made.add_special_tokens(words[:3])
    tokenizer = PreTrainedTokenizerFast(tokenizer_object=made, eos_token="<|im_end|>", pad_token="<|endoftext|>", unk_token="<unk>")
    tokenizer.chat_template = "{% for m in messages %}<|im_start|>{{ m.role }}\n{{ m.content }}<|im_end|>\n{% endfor %}{% if add_generation_prompt %}<|im_start|>assistant\n{% endif %}"
    torch.manual_seed(0)
    model = LlamaForCausalLM(LlamaConfig(vocab_size=11520, hidden_size=512, intermediate_size=1408, num_hidden_layers=8, num_attention_heads=8, num_key_value_heads=8, max_position_embeddings=1024, tie_word_embeddings=True, eos_token_id=2, pad_token_id=0, bos_token_id=None))
    model.to(getattr(torch, dtype)).save_pretrained(folder)
    tokenizer.save_pretrained(folder)
    return folder


def prompts(count: int, seed: int) -> list[str]:
    rng = random.Random(seed)
    return [" ".join(rng.choices(WORDS, k=rng.randint(50, 150))) for _ in range(count)]


def chats(texts: list[str]) -> list[dict]:
    return [{"messages": [{"role": "user", "content": text}]} for text in texts]


async def post(path: str, body: bytes, port: int = PORT) -> tuple[asyncio.StreamReader, asyncio.StreamWriter]:
    """A request on a connection of its own, sent; a client library would be most of what is measured."""
    reader, writer = await asyncio.open_connection("127.0.0.1", port)
    writer.write(b"POST %s HTTP/1.1\r\nHost: a\r\nContent-Type: application/json\r\nConnection: close\r\nContent-Length: %d\r\n\r\n" % (path.encode(), len(body)) + body)
    return reader, writer


async def ask(path: str, asked: dict, tokens: int | None, port: int = PORT) -> tuple[float, float, int]:
    """(seconds to the first words, seconds in all, tokens) of one streamed request, over a connection of its own. tokens: how many there must be."""
    body = json.dumps({"model": "support", "max_tokens": OUT, "ignore_eos": tokens is not None, "temperature": 0, "stream": True, "stream_options": {"include_usage": True}, **asked}).encode()
    began, first, made = time.perf_counter(), None, 0
    reader, writer = await post(path, body, port)
    async for line in reader:
        if line.startswith(b"data: {"):
            event = json.loads(line[6:])
            if first is None and event["choices"] and (event["choices"][0].get("text") or (event["choices"][0].get("delta") or {}).get("content") or (event["choices"][0].get("delta") or {}).get("tool_calls")):
                first = time.perf_counter() - began
            if event.get("usage"):
                made = event["usage"]["completion_tokens"]
    writer.close()
    if first is None or tokens not in (None, made):
        sys.exit(f"error: asked for {tokens} tokens, got {made}, the first {'never' if first is None else 'in time'}: figures of such a run mean nothing")
    return first, time.perf_counter() - began, made


async def load(requests: list[dict], flight: int, path: str = "/v1/chat/completions", tokens: int | None = OUT, port: int = PORT, spread: float = 0.0) -> dict:
    """Tokens a second, and the median time to first words, with so many requests in flight. spread: seconds within which the clients come, not all at one moment."""
    waiting, made, rng = list(requests), [], random.Random(0)

    async def one() -> None:
        await asyncio.sleep(rng.random() * spread)
        while waiting:
            made.append(await ask(path, waiting.pop(), tokens, port))

    began = time.perf_counter()
    await asyncio.gather(*(one() for _ in range(flight)))
    seconds = time.perf_counter() - began
    firsts = sorted(first for first, *_ in made)
    return {"tokens_per_second": sum(count for *_, count in made) / seconds, "first": statistics.median(firsts), "first_p95": firsts[int(0.95 * len(firsts))], "whole": statistics.median(whole for _, whole, _ in made), "n": len(made)}


@contextlib.contextmanager
def server(command: list[str], ready: str, port: int = PORT) -> Iterator[None]:
    """A server, of ours or vLLM's, as long as it is needed: up when the path `ready` answers."""
    quiet = {"HF_HUB_OFFLINE": "1", "VLLM_NO_USAGE_STATS": "1", "VLLM_CPU_KVCACHE_SPACE": "1", "VLLM_CPU_OMP_THREADS_BIND": "nobind", "OMP_NUM_THREADS": "2", "VLLM_HOST_IP": "127.0.0.1"}
    with tempfile.TemporaryFile() as log:
        process = subprocess.Popen(command, env={**os.environ, **quiet}, stdout=log, stderr=log, start_new_session=True)
        try:
            until = time.time() + 300
            while True:
                try:
                    urllib.request.urlopen(f"http://127.0.0.1:{port}/{ready}", timeout=1)
                    break
                except OSError:
                    if process.poll() is not None or time.time() > until:
                        log.seek(0)
                        sys.exit(f"error: {command[0]} did not start:\n{log.read().decode()[-2000:]}")
                    time.sleep(0.3)
            yield
        finally:
            os.killpg(process.pid, signal.SIGKILL)
            process.wait()


def endpoint(model: Path, *settings: str) -> list[str]:
    return [sys.executable, "-m", "serve", f"model={model}", f"port={PORT}", "served_model_name=support", "threads=2", *settings]


def measured(command: list[str], ready: str) -> dict[int, dict]:
    """Start a server, warm it up, load it at every number in flight, and stop it."""
    with server(command, ready):
        asyncio.run(load(chats(prompts(8, 99)), 4))
        found = {}
        for flight in FLIGHTS:
            found[flight] = asyncio.run(load(chats(prompts(REQUESTS[flight], flight)), flight))
            print(f"  {flight} in flight: {found[flight]['tokens_per_second']:.0f} tokens/s, first after {1000 * found[flight]['first']:.0f} ms", flush=True)
        return found


def beside_vllm(models: dict[str, Path], vllm: str) -> list[str]:
    lines = ["| model | in flight | ours, tokens/s | vLLM, tokens/s | ratio | ours, first token ms (p95) | vLLM, first token ms (p95) | ratio | requests |", "|---|---|---|---|---|---|---|---|---|"]
    for name, model in models.items():
        theirs = [vllm, "serve", str(model), "--served-model-name", "support", "--dtype", "float32", "--enforce-eager", "--max-model-len", "1024", "--max-num-seqs", "32", "--port", str(PORT)]
        rounds: dict[str, list] = {"ours": [], "vllm": []}
        for number in range(2):
            for who, command, ready in (("ours", endpoint(model, "guard=false"), "ready"), ("vllm", theirs, "health")):
                print(f"{name}, {who}, round {number + 1}", flush=True)
                rounds[who].append(measured(command, ready))
        for flight in FLIGHTS:
            a, b = ({"speed": max(r[flight]["tokens_per_second"] for r in rounds[who]), **min((r[flight] for r in rounds[who]), key=lambda one: one["first"])} for who in ("ours", "vllm"))
            lines.append(f"| {name} | {flight} | {a['speed']:.0f} | {b['speed']:.0f} | {a['speed'] / b['speed']:.2f} | {1000 * a['first']:.0f} ({1000 * a['first_p95']:.0f}) | {1000 * b['first']:.0f} ({1000 * b['first_p95']:.0f}) | {a['first'] / b['first']:.2f} | {REQUESTS[flight]} |")
    return lines


async def paced(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
    """An upstream that costs nothing: it answers every request with 48 tokens, one every 20 ms."""
    head = (await reader.readuntil(b"\r\n\r\n")).decode("latin-1").lower()
    if "content-length: " in head:
        await reader.readexactly(int(head.split("content-length: ")[1].split("\r\n")[0]))
    kind = "text/event-stream" if head.startswith("post") else "application/json"
    writer.write(f"HTTP/1.1 200 OK\r\nContent-Type: {kind}\r\nConnection: close\r\n\r\n".encode())
    if head.startswith("post"):
        for number in range(OUT):
            await asyncio.sleep(PACE)
            choice = {"index": 0, "text": " order", "token_ids": [6], "finish_reason": "length" if number == OUT - 1 else None, "logprobs": None}
            writer.write(b"data: " + json.dumps({"choices": [choice]}).encode() + b"\n\n")
            await writer.drain()
        writer.write(b'data: {"choices": [], "usage": {"completion_tokens": %d}}\n\ndata: [DONE]\n\n' % OUT)
    else:
        writer.write(b'{"data": [{"id": "support"}]}')
    await writer.drain()
    writer.close()


def our_layer(model: Path) -> list[str]:
    """What this endpoint adds in front of an upstream, asked for completions directly and through it, in turns."""
    upstream, lines = PORT + 1, ["| in flight | first token, directly and through it, ms | added, ms | whole reply, ms | added, ms | tokens/s | less |", "|---|---|---|---|---|---|---|"]
    with server([sys.executable, "-m", "benchmarks.serve", "paced", str(upstream)], "v1/models", upstream), server(endpoint(model, "guard=false", f"engine=http://127.0.0.1:{upstream}/v1", "upstream_model=support"), "ready"):
        for flight in (1, 32):
            found: dict[int, list[dict]] = {upstream: [], PORT: []}
            for _ in range(4):
                for port, rounds in found.items():
                    rounds.append(asyncio.run(load([{"prompt": [6] * 80}] * (4 * flight), flight, "/v1/completions", OUT, port, spread=OUT * PACE)))
            a, b = ({key: statistics.median(one[key] for one in rounds) for key in ("first", "whole", "tokens_per_second")} for rounds in found.values())
            lines.append(f"| {flight} | {1000 * a['first']:.1f}, {1000 * b['first']:.1f} | {1000 * (b['first'] - a['first']):.1f} | {1000 * a['whole']:.0f}, {1000 * b['whole']:.0f} | {1000 * (b['whole'] - a['whole']):.1f} | {a['tokens_per_second']:.0f}, {b['tokens_per_second']:.0f} | {1 - b['tokens_per_second'] / a['tokens_per_second']:.1%} |")
    return lines


def with_the_guard(model: Path) -> list[str]:
    """Time to the first words with the guard, which lets sentences out, and without."""
    pack = load_pack(load_config([]).company)
    talks = [draw_talk(pack, number, "unseen", 5, "unseen_weight").messages for number in range(96)]
    lines = ["| guard | in flight | first words, ms (p95) | whole reply, ms | requests |", "|---|---|---|---|---|"]
    for guard in ("false", "true"):
        with server(endpoint(model, f"guard={guard}"), "ready"):
            asyncio.run(load([{"messages": talk, "tools": pack.tool_schemas()} for talk in talks[:16]], 4, tokens=None))
            for flight in (1, 8):
                m = asyncio.run(load([{"messages": talk, "tools": pack.tool_schemas()} for talk in talks], flight, tokens=None))
                lines.append(f"| {'on' if guard == 'true' else 'off'} | {flight} | {1000 * m['first']:.1f} ({1000 * m['first_p95']:.1f}) | {1000 * m['whole']:.1f} | {m['n']} |")
    return lines


def main(arguments: list[str]) -> None:
    if arguments[:1] == ["paced"]:
        async def forever() -> None:
            await (await asyncio.start_server(paced, "127.0.0.1", int(arguments[1]))).serve_forever()

        asyncio.run(forever())
    given = dict(one.split("=", 1) for one in arguments)
    out, run = given.get("out"), Path(given.get("run_dir", "runs/dev"))
    exported = run / "export/model"
    with tempfile.TemporaryDirectory() as folder:
        llama, half = (random_llama(Path(folder) / dtype, dtype) for dtype in ("float32", "bfloat16"))
        made = {f"Beside vLLM on a CPU: 2 threads each, reckoned in fp32, streamed, prompts of 60 to 160 tokens, {OUT} out, the better of two rounds of each": beside_vllm({"31.6 M random Llama": llama, "the same, stored in bf16": half, "the export": exported}, given.get("vllm", ".venv-vllm/bin/vllm")),
                f"What the endpoint adds in front of an upstream that makes a token every {1000 * PACE:.0f} ms; the median of four rounds": our_layer(llama), "What the guard costs: openings of the sample company's customers, to the export": with_the_guard(exported)}
    text = "\n".join(["# The endpoint, measured", "", f"`python -m benchmarks.serve {' '.join(arguments)}`", *(line for title, lines in made.items() for line in ("", f"## {title}", "", *lines))]) + "\n"
    print(text)
    if out:
        Path(out).write_text(text, encoding="utf-8")


if __name__ == "__main__":
    main(sys.argv[1:])
