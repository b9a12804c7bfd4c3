"""The engine of evaluation: transformers in this process, a batch of conversations at a time."""

from __future__ import annotations

import threading
from pathlib import Path

import torch
from transformers import AutoModelForCausalLM, AutoTokenizer

from data_prep.conversation import Message
from serve.engine import Completion, Sampling
from serve.engine.decoding import decode, pick
from serve.text import Text


class Embedded:
    """A model and its tokenizer. One generation at a time (a lock): CPU threads are shared by a whole batch anyway."""

    def __init__(self, model, tokenizer, max_tokens: int):
        self.model, self.tokenizer, self.max_tokens, self.text = model.eval(), tokenizer, max_tokens, Text(tokenizer, max_tokens)
        self.lock = threading.Lock()

    @classmethod
    def load(cls, folder: str | Path, max_tokens: int) -> Embedded:
        """Raises: OSError where the folder holds no model."""
        tokenizer = AutoTokenizer.from_pretrained(str(folder), trust_remote_code=False)
        return cls(AutoModelForCausalLM.from_pretrained(str(folder), trust_remote_code=False, use_safetensors=True), tokenizer, max_tokens)

    def prompt(self, messages: list[Message], room: int) -> list[int]:
        """The token ids of a conversation cut so that `room` tokens of reply fit behind it."""
        return self.text.chat(messages, room)

    @torch.inference_mode()
    def generate(self, conversations: list[list[Message]], sampling: Sampling) -> list[Completion]:
        prompts = [self.prompt(c, min(sampling.max_tokens, self.max_tokens // 2)) for c in conversations]
        with self.lock:
            if sampling.seed is not None:
                torch.manual_seed(sampling.seed)
            made = decode(self.model, self.tokenizer, prompts, self._most(sampling, max(map(len, prompts))), lambda logits: pick(logits, sampling.temperature, sampling.top_p),
                          is_over=lambda said: bool(sampling.stop) and any(stop in self.tokenizer.decode(said, skip_special_tokens=True) for stop in sampling.stop))
        return [self._completion(len(prompt), reply, sampling) for prompt, [reply] in zip(prompts, made, strict=True)]

    def _most(self, sampling: Sampling, length: int) -> int:
        """The tokens that a reply may have behind a prompt of a length."""
        return max(1, min(sampling.max_tokens, self.max_tokens - length))

    def _completion(self, prompt_tokens: int, ids: list[int], sampling: Sampling) -> Completion:
        stopped = self.tokenizer.eos_token_id in ids
        kept = ids[: ids.index(self.tokenizer.eos_token_id)] if stopped else ids
        text = self.tokenizer.decode(kept, skip_special_tokens=True)
        for stop in sampling.stop:
            if stop in text:
                text, stopped = text[: text.index(stop)], True
        return Completion(text, "stop" if stopped else "length", prompt_tokens, len(kept) + stopped)

