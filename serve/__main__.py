"""Serve an exported model.

    python -m serve model=runs/dev/export/model port=8000
    python -m serve model=runs/dev/export/model engine=http://127.0.0.1:8001/v1       in front of a running `vllm serve`

Then any OpenAI client works: base_url="http://127.0.0.1:8000/v1". Every key of conf/serve/serve.yaml can be set as `key=value`.
The guard (`serve.handoff`) stands before the customer unless guard=false.
"""

from __future__ import annotations

import asyncio
import json
import os
import socket
import sys
from importlib.util import find_spec
from pathlib import Path

from conf.load import ConfigError, load_config


def main(arguments: list[str]) -> int:
    if {"-h", "--help"} & set(arguments):
        print(__doc__)
        return 0
    try:
        config = load_config(arguments, "serve")
    except ConfigError as problem:
        return refuse(str(problem))
    if not (Path(config.model) / "config.json").is_file():
        return refuse(f"model={config.model} is no exported model (it has no config.json): run `make train` first, or give the folder")
    from serve.handoff import NEEDED, POLICY  # like what is imported below, not before the help and the mistakes are answered

    policy = Path(config.model) / POLICY
    if config.guard and not policy.is_file():
        return refuse(f"{policy} is missing, and without it nothing stands between the model and the customer: export the model of a run with a company pack (company=<folder>) again, or set guard=false")
    known = json.loads(policy.read_text(encoding="utf-8")) if config.guard else None
    if known is not None and (missing := NEEDED - set(known)):
        return refuse(f"{policy} is of another version of supportloop and lacks {', '.join(sorted(missing))}: run `make export` again")
    is_upstream = config.engine.startswith(("http://", "https://"))
    if config.adapters and not is_upstream:
        if not config.base or not (Path(config.base) / "config.json").is_file():
            return refuse("adapters need base=<the folder of the model that they were trained on>: the exported model has one of them in it already")
        for name, folder in config.adapters.items():
            if not (Path(folder) / "adapter_config.json").is_file() or not (Path(folder) / "adapter_model.safetensors").is_file():
                return refuse(f"adapters.{name}={folder} is no adapter: it needs adapter_config.json and adapter_model.safetensors")
    if not is_upstream and config.engine not in ("auto", "openvino", "transformers"):
        return refuse(f"engine={config.engine} is none of auto, openvino, transformers and an address such as http://127.0.0.1:8001/v1")
    if config.engine == "openvino" and not find_spec("openvino_genai"):
        return refuse("engine=openvino needs it installed: pip install openvino-genai, or engine=transformers")
    listener = socket.socket(socket.AF_INET6 if ":" in config.host else socket.AF_INET)
    try:
        listener.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
        listener.bind((config.host, config.port))           # before the model is loaded, and before anybody may wait
    except OSError as problem:
        return refuse(f"host={config.host} port={config.port} cannot be listened on ({problem.strerror}): give another port")
    import uvloop

    from serve.app import create_app
    from serve.door import Door, log_to_stderr
    from serve.engine import EngineError
    from serve.keys import KeysError, read_keys

    try:
        door = Door(read_keys(config.api_keys) if config.api_keys else None, config.most_bytes, config.requests_per_minute)
    except KeysError as problem:
        return refuse(str(problem))
    service = service_of(config, known)
    app, end = create_app(service, door, config.completions), lambda: None
    if config.traces:
        from serve.tracing import traced

        app, end = traced(app, config.traces)
    written = log_to_stderr()
    try:
        return uvloop.run(serve(app, service.queue, door, listener, config))
    except EngineError as problem:
        return refuse(str(problem))
    finally:
        end()
        written()


def refuse(words: str) -> int:
    print(f"error: {words}", file=sys.stderr)
    return 1


def service_of(config, policy: dict | None):
    """The model, its tokenizer and its engine, not started yet."""
    from transformers import AutoTokenizer

    from data_prep.artifacts import hash_file
    from serve.engine.child import Child
    from serve.engine.upstream import Upstream
    from serve.engine.worker import Settings
    from serve.queue import Queue
    from serve.service import Service
    from serve.text import Text

    folder = Path(config.model)
    facts = json.loads((folder / "config.json").read_text(encoding="utf-8"))
    said = folder / "generation_config.json"
    defaults = {key: value for key, value in (json.loads(said.read_text(encoding="utf-8")) if said.is_file() else {}).items() if key in ("temperature", "top_p", "top_k", "min_p", "repetition_penalty") and value is not None}
    if config.engine.startswith("http"):
        engine = Upstream(config.engine, config.upstream_model or config.served_model_name, os.environ.get("SUPPORTLOOP_UPSTREAM_KEY"), dict(config.adapters))
    else:
        fast = config.engine == "openvino" or (config.engine == "auto" and find_spec("openvino_genai") is not None)
        engine = Child(Settings(str(folder), config.slots, config.threads or 0, fast, config.cache, config.base, tuple(config.adapters.items())))
    weights = sorted(folder.glob("*.safetensors"))
    return Service(Queue(engine, config.slots, config.waiting), Text(AutoTokenizer.from_pretrained(str(folder), trust_remote_code=False), config.max_tokens), config.served_model_name, facts["vocab_size"],
                   f"supportloop-{hash_file(weights[0])[:8]}" if weights else "supportloop", policy, tuple(config.adapters), defaults, engine.model if isinstance(engine, Upstream) else Path(config.base).name if config.base else None)


async def serve(app, queue, door, listener, config) -> int:
    """Until it is told to stop: /ready says no at once, new work gets a 503, what was begun ends within `drain` seconds."""
    import uvicorn

    from serve.door import only_our_lines

    class Server(uvicorn.Server):
        def handle_exit(self, sig: int, frame) -> None:
            if door.draining:            # asked twice
                super().handle_exit(sig, frame)
                return
            door.draining = True
            asyncio.get_running_loop().create_task(self.drain())

        async def drain(self) -> None:
            until = asyncio.get_running_loop().time() + config.drain
            while door.inside and asyncio.get_running_loop().time() < until:
                await asyncio.sleep(0.05)
            self.should_exit = True

    await queue.start()
    print(f"serving {config.served_model_name} with {queue.state.facts['engine']} on http://{config.host}:{config.port}/v1" + ("" if config.guard else ", without the guard") + (", any key" if not config.api_keys else ""), flush=True)
    server = Server(uvicorn.Config(app, host=config.host, port=config.port, log_level="warning", lifespan="off", timeout_graceful_shutdown=5, access_log=False))
    try:
        with only_our_lines():
            await server.serve(sockets=[listener])
    finally:
        await queue.close()
    return 0


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
