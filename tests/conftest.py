"""What the tests share: small things made for real, in the open."""

from __future__ import annotations

import json
import os
from pathlib import Path

import pytest
from hypothesis import settings

from conf.load import load_config
from data_prep.company.pack import load_pack
from data_prep.conversation import write_jsonl
from data_prep.ingest import Reader
from serve.engine import Completion, Sampling

os.environ["HF_HUB_DISABLE_TELEMETRY"] = "1"
os.environ["HF_HUB_OFFLINE"] = "1"
settings.register_profile("any machine", deadline=None)      # a busy machine is no bug
settings.load_profile("any machine")
ROOT = Path(__file__).resolve().parent.parent


@pytest.fixture(scope="session")
def pack():
    return load_pack(str(ROOT / "data_prep/company/sample"))


@pytest.fixture
def config(tmp_path):
    """The default configuration in a folder of its own, with a fingerprint as the pipeline would give."""
    made = load_config([f"run_dir={tmp_path}/run"])
    made.fingerprint = {"seed": 0}
    made.anonymise.workers, made.anonymise.canaries = 1, 24
    return made


@pytest.fixture
def source(tmp_path):
    """A reader of a format over records that are written for it; further data.* settings by name."""
    def make(name: str, records: list, users: list | None = None, suffix: str = ".jsonl", **data):
        path = tmp_path / f"export{suffix}"
        if suffix == ".json":
            path.write_text(json.dumps(records[0] if len(records) == 1 else records))
        else:
            path.write_text("".join((r if isinstance(r, str) else json.dumps(r)) + "\n" for r in records))
        config = load_config([f"data={name}", f"data.conversations={path}", f"run_dir={tmp_path}/run"])
        if users:
            write_jsonl(tmp_path / "users.jsonl", users)
            config.data.users = str(tmp_path / "users.jsonl")
        for key, value in {"max_bad_fraction": 1.0, **data}.items():
            config.data[key] = value
        return Reader(config)

    return make


class ScriptedEngine:
    """An engine that says what it is told to, one reply after the other."""

    def __init__(self, replies: list[str]):
        self.replies = list(replies)
        self.asked: list[list[dict]] = []

    def generate(self, conversations: list[list[dict]], sampling: Sampling) -> list[Completion]:
        return [self._next(c) for c in conversations]

    def _next(self, messages: list[dict]) -> Completion:
        self.asked.append(messages)
        text = self.replies.pop(0) if len(self.replies) > 1 else self.replies[0]
        return Completion(text, "stop", 7, len(text.split()))


@pytest.fixture
def scripted():
    return ScriptedEngine


@pytest.fixture(scope="session")
def parrot(tmp_path_factory):
    """The folder of a model that has learned six conversations by heart (tests/parrot.py)."""
    from tests.parrot import make

    if made := os.environ.get("PARROT"):          # what a vLLM beside these tests serves
        return Path(made)
    return make(tmp_path_factory.mktemp("parrot") / "model")
