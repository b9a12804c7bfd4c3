"""Stage `verify`: the gates once more, over HTTP, on what was exported. `release.json` makes the release final.

It starts `python -m serve` on the exported folder as an operator would, and lets simulated customers talk to it through
the openai client.
"""

from __future__ import annotations

import contextlib
import json
import socket
import subprocess
import sys
import time
import urllib.request
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import openai
from omegaconf import OmegaConf

from data_prep.artifacts import StageError, outputs_hash, read_manifest, require, stage_dir, stage_output
from data_prep.company.pack import load_pack
from data_prep.conversation import Message, chat_message, write_json
from eval.metrics import HARMS, SIMULATED
from eval.simulator import draw_talks, simulate
from serve.engine import Completion, Sampling

START_SECONDS = 120


class OverHttp:
    """An engine that is somewhere else: any OpenAI-compatible endpoint."""

    def __init__(self, base_url: str, model: str):
        self.client, self.model = openai.OpenAI(base_url=base_url, api_key="none", max_retries=0, timeout=120), model

    def generate(self, conversations: list[list[Message]], sampling: Sampling) -> list[Completion]:
        with ThreadPoolExecutor(4) as pool:
            return list(pool.map(lambda c: self._one(c, sampling), conversations))

    def _one(self, messages: list[Message], sampling: Sampling) -> Completion:
        made = self.client.chat.completions.create(model=self.model, messages=[chat_message(m) for m in messages], temperature=sampling.temperature, max_tokens=sampling.max_tokens)
        choice = made.choices[0]
        calls = "".join(f'<tool_call>{{"name": {json.dumps(c.function.name)}, "arguments": {c.function.arguments}}}</tool_call>' for c in choice.message.tool_calls or [])
        return Completion((choice.message.content or "") + calls, choice.finish_reason, made.usage.prompt_tokens, made.usage.completion_tokens)


@contextlib.contextmanager
def served(model: Path) -> Iterator[str]:
    """`python -m serve` on a free port of this machine; yields its base URL. Raises: StageError when it does not come up."""
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        port = probe.getsockname()[1]
    process = subprocess.Popen([sys.executable, "-m", "serve", f"model={model}", f"port={port}", "served_model_name=supportloop"], stdout=subprocess.DEVNULL, stderr=subprocess.PIPE)
    try:
        deadline = time.time() + START_SECONDS
        while True:
            try:
                urllib.request.urlopen(f"http://127.0.0.1:{port}/health", timeout=1)
                break
            except OSError:
                if process.poll() is not None:
                    raise StageError(f"python -m serve stopped at once: {process.stderr.read().decode().strip().splitlines()[-1:]}") from None
                if time.time() > deadline:
                    raise StageError(f"python -m serve did not answer within {START_SECONDS} s") from None
                time.sleep(0.2)
        yield f"http://127.0.0.1:{port}/v1"
    finally:
        process.terminate()
        process.wait(10)


def run(config) -> None:
    export = require(config, "export", "verify")
    facts = json.loads((export / "export.json").read_text())
    before = json.loads((require(config, "evaluate", "verify") / "scorecard.json").read_text())["candidates"][facts["winner"]]
    pack, settings = load_pack(config.company), config.evaluate
    with stage_output(config, "verify") as out:
        with served(export / "model") as url:
            talks = draw_talks(pack, config.verify.conversations, "unseen", settings.seed)
            outcomes = simulate(OverHttp(url, "supportloop"), talks, batch_size=16, max_replies=settings.max_replies, sampling=Sampling(max_tokens=config.model.max_new_tokens), label="over HTTP")
        measured = {name: metric(outcomes) for name, metric in SIMULATED.items()}
        held, failed = [], []
        for name, threshold in OmegaConf.to_container(settings.gates).items():
            if name not in measured:
                continue        # exposure is read from the weights, regurgitation with the training set: a client has neither
            # A few conversations cannot show the threshold itself; they must not contradict it.
            metric = measured[name]
            contradicts = metric["value"] is None or (metric["low"] > threshold if name in HARMS else metric["high"] < threshold)
            (failed if contradicts else held).append(name)
        gap = before["success"]["value"] - measured["success"]["value"] if before["success"]["value"] is not None else 0.0
        if gap > config.verify.max_difference:
            failed.append(f"success over HTTP is {gap:.2f} below the evaluated one")
        manifest = read_manifest(stage_dir(config, "export"))
        write_json(out / "release.json", {"winner": facts["winner"], "forced": facts["forced"], "served": outputs_hash(manifest), "held": held, "failed": failed, "measured": measured})
        if failed and not facts["forced"]:
            raise StageError(f"what is served does not hold its gates: {', '.join(failed)}; the release is not final, see {out.path}/release.json")
        out.summary(f"{facts['winner']} over HTTP: success {measured['success']['value']:.0%} of {measured['success']['n']}; gates held: {', '.join(held)}" + (f"; FAILED: {', '.join(failed)}" if failed else ""))
