"""Serve an exported model.

    python -m serve model=runs/dev/export/model port=8000

Then any OpenAI client works: base_url="http://127.0.0.1:8000/v1". Every key of conf/serve/serve.yaml can be set as `key=value`.
The guard (`serve.handoff`) stands before the customer unless guard=false.
"""

from __future__ import annotations

import json
import sys
from pathlib import Path

from conf.load import ConfigError, load_config


def main(arguments: list[str]) -> int:
    if {"-h", "--help"} & set(arguments):
        print(__doc__)
        return 0
    try:
        config = load_config(arguments, "serve")
    except ConfigError as problem:
        print(f"error: {problem}", file=sys.stderr)
        return 1
    if not (Path(config.model) / "config.json").is_file():
        print(f"error: model={config.model} is no exported model (it has no config.json): run `make train` first, or give the folder", file=sys.stderr)
        return 1
    from serve.handoff import POLICY  # like what is imported below, not before the help and the mistakes are answered

    policy = Path(config.model) / POLICY
    if config.guard and not policy.is_file():
        print(f"error: {policy} is missing, and without it nothing stands between the model and the customer: export the model of a run with a company pack (company=<folder>) again, "
              "or set guard=false", file=sys.stderr)
        return 1
    import torch
    import uvicorn

    from serve.app import create_app
    from serve.engine.embedded import Embedded

    if config.threads:
        torch.set_num_threads(config.threads)
    name = config.served_model_name
    app = create_app(Embedded.load(config.model, config.max_tokens), name, config.max_tokens, json.loads(policy.read_text(encoding="utf-8")) if config.guard else None)
    print(f"serving {name} on http://{config.host}:{config.port}/v1" + ("" if config.guard else ", without the guard"), flush=True)
    uvicorn.run(app, host=config.host, port=config.port, log_level="warning")
    return 0


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
