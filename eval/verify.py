"""Stage `verify`: the hard gates once more, over HTTP, on what was exported. `release.json` makes the release final.

It starts `python -m serve` on the exported folder as an operator would, with its guard, and lets simulated customers, requests for a person and attacks
come to it through the openai client.
"""

from __future__ import annotations

import contextlib
import json
import socket
import subprocess
import sys
import tempfile
import time
import urllib.request
from collections.abc import Iterator
from pathlib import Path

from omegaconf import OmegaConf

from data_prep.artifacts import StageError, outputs_hash, read_manifest, require, stage_dir, stage_output
from data_prep.company.pack import load_pack
from data_prep.conversation import write_json
from eval import suites
from eval.endpoint import UNSEEN, OverHttp, tried
from eval.metrics import AT_MOST, served_row

START_SECONDS = 120
TOO_FEW = {"language_gap"}        # needs more conversations than are had here


@contextlib.contextmanager
def served(model: Path) -> Iterator[str]:
    """`python -m serve` on a free port of this machine; yields its base URL. Raises: StageError when it does not come up."""
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        port = probe.getsockname()[1]
    log = tempfile.TemporaryFile()           # noqa: SIM115, closed with the process; a pipe that nobody reads would fill
    process = subprocess.Popen([sys.executable, "-m", "serve", f"model={model}", f"port={port}", "served_model_name=supportloop"], stdout=subprocess.DEVNULL, stderr=log)
    try:
        deadline = time.time() + START_SECONDS
        while True:
            try:
                urllib.request.urlopen(f"http://127.0.0.1:{port}/ready", timeout=1)
                break
            except OSError:
                if process.poll() is not None:
                    log.seek(0)
                    raise StageError(f"python -m serve stopped at once: {log.read().decode().strip().splitlines()[-1:]}") from None
                if time.time() > deadline:
                    raise StageError(f"python -m serve did not answer within {START_SECONDS} s") from None
                time.sleep(0.2)
        yield f"http://127.0.0.1:{port}/v1"
    finally:
        process.terminate()
        process.wait(10)
        log.close()


def run(config) -> None:
    export = require(config, "export", "verify")
    facts = json.loads((export / "export.json").read_text())
    before = json.loads((require(config, "evaluate", "verify") / "scorecard.json").read_text())["candidates"][facts["winner"]]
    settings, pack = config.verify, load_pack(config.company)
    sizes = suites.Sizes(settings.every, settings.attacks, settings.persona_conversations, 1, settings.conversations, config.evaluate.seed)
    with stage_output(config, "verify") as out:
        with served(export / "model") as url:
            measured = served_row(tried(OverHttp(url, "supportloop", pack.tool_schemas()), pack, sizes, config, "over HTTP"))
        gates = {name: value for name, value in OmegaConf.to_container(config.evaluate.hard_gates).items() if name not in UNSEEN | TOO_FEW}
        failed = contradicted(measured, gates)
        held = [name for name in gates if name not in failed]
        expected = before.get("served", before)["success"]["value"]
        if expected is not None and (gap := expected - measured["success"]["value"]) > settings.max_difference:
            failed.append(f"success over HTTP is {gap:.2f} below the evaluated one")
        manifest = read_manifest(stage_dir(config, "export"))
        write_json(out / "release.json", {"winner": facts["winner"], "forced": facts["forced"], "served": outputs_hash(manifest), "held": held, "failed": failed, "measured": measured})
        if failed and not facts["forced"]:
            raise StageError(f"what is served does not hold its gates: {', '.join(failed)}; the release is not final, see {out.path}/release.json")
        out.summary(f"{facts['winner']} over HTTP: success {measured['success']['value']:.0%} of {measured['success']['n']}; {len(held)} gates held" + (f"; FAILED: {', '.join(failed)}" if failed else ""))


def contradicted(measured: dict, gates: dict[str, float]) -> list[str]:
    """The gates that do not hold. Of a few cases none can show the threshold itself; they must not contradict it: the interval must reach it, and where nothing at all is allowed,
    one case is too many."""
    def wrong(metric: dict, name: str) -> bool:
        return metric["value"] is None or (metric["low"] > gates[name] if name in AT_MOST else metric["high"] < gates[name])

    return [name for name in gates if wrong(measured[name], name)]
