"""The engine for CPUs and small models: transformers in this process."""

from __future__ import annotations

import threading
from collections.abc import Iterator
from pathlib import Path

import torch
from transformers import AutoModelForCausalLM, AutoTokenizer, StoppingCriteria, StoppingCriteriaList, TextIteratorStreamer

from data_prep.conversation import Message, chat_message, truncate
from serve.engine import Completion, Sampling
from serve.engine.decoding import decode, pick


class Embedded:
    """A model and its tokenizer. One generation at a time (a lock): CPU threads are shared by a whole batch anyway."""

    def __init__(self, model, tokenizer, max_tokens: int):
        self.model, self.tokenizer, self.max_tokens = model.eval(), tokenizer, max_tokens
        self.lock = threading.Lock()

    @classmethod
    def load(cls, folder: str | Path, max_tokens: int) -> Embedded:
        """Raises: OSError where the folder holds no model."""
        tokenizer = AutoTokenizer.from_pretrained(str(folder), trust_remote_code=False)
        return cls(AutoModelForCausalLM.from_pretrained(str(folder), trust_remote_code=False, use_safetensors=True), tokenizer, max_tokens)

    def prompt(self, messages: list[Message], room: int) -> list[int]:
        """The token ids of a conversation cut so that `room` tokens of reply fit behind it."""
        plain = [self._as_text(chat_message(m)) for m in messages]
        cut = truncate(plain, self.max_tokens - room, lambda m: len(self._ids(m)))
        return self._ids(cut)

    def _as_text(self, message: Message) -> Message:
        """The message with the tags of a tool call, which are tokens of their own and no control tokens, parted where somebody else than the assistant wrote them."""
        if message["role"] == "assistant":
            return message
        content = message["content"]
        for token in self.tokenizer.added_tokens_encoder:
            content = content.replace(token, f"{token[0]} {token[1:]}")
        return {**message, "content": content}

    def _ids(self, messages: list[Message]) -> list[int]:
        """Control tokens that the assistant itself wrote stay text too: they open no turn."""
        return self.tokenizer.apply_chat_template(messages, add_generation_prompt=True, return_dict=True, sanitize_control_tokens=True)["input_ids"]

    @torch.inference_mode()
    def generate(self, conversations: list[list[Message]], sampling: Sampling) -> list[Completion]:
        prompts = [self.prompt(c, min(sampling.max_tokens, self.max_tokens // 2)) for c in conversations]
        with self.lock:
            if sampling.seed is not None:
                torch.manual_seed(sampling.seed)
            made = decode(self.model, self.tokenizer, prompts, self._most(sampling, max(map(len, prompts))), lambda logits: pick(logits, sampling.temperature, sampling.top_p),
                          is_over=lambda said: bool(sampling.stop) and any(stop in self.tokenizer.decode(said, skip_special_tokens=True) for stop in sampling.stop))
        return [self._completion(len(prompt), reply, sampling) for prompt, [reply] in zip(prompts, made, strict=True)]

    def stream(self, messages: list[Message], sampling: Sampling) -> Iterator[str | Completion]:
        ids = self.prompt(messages, min(sampling.max_tokens, self.max_tokens // 2))
        streamer = TextIteratorStreamer(self.tokenizer, skip_prompt=True, skip_special_tokens=True)
        cancelled, result = threading.Event(), []

        def work() -> None:
            try:
                with self.lock, torch.inference_mode():
                    batch = {"input_ids": torch.tensor([ids]), "attention_mask": torch.ones(1, len(ids), dtype=torch.long)}
                    made = self.model.generate(**batch, **self._settings(sampling, len(ids)), streamer=streamer,
                                               stopping_criteria=StoppingCriteriaList([_Cancelled(cancelled)]))
                    result.append(made[0, len(ids):].tolist())
            except Exception as error:      # handed to the reader below, who raises it
                result.append(error)
                streamer.end()

        thread = threading.Thread(target=work, daemon=True)
        thread.start()
        try:
            yield from (piece for piece in streamer if piece)
            thread.join()
            if isinstance(result[0], Exception):
                raise result[0]
            yield self._completion(len(ids), result[0], sampling)
        finally:
            cancelled.set()

    def _most(self, sampling: Sampling, length: int) -> int:
        """The tokens that a reply may have behind a prompt of a length."""
        return max(1, min(sampling.max_tokens, self.max_tokens - length))

    def _settings(self, sampling: Sampling, length: int) -> dict:
        settings = {"max_new_tokens": self._most(sampling, length), "pad_token_id": self.tokenizer.pad_token_id,
                    "eos_token_id": self.tokenizer.eos_token_id, "do_sample": sampling.temperature > 0}
        if sampling.temperature > 0:
            settings |= {"temperature": sampling.temperature, "top_p": sampling.top_p, "top_k": 0}
            if sampling.seed is not None:
                torch.manual_seed(sampling.seed)
        if sampling.stop:
            settings |= {"stop_strings": list(sampling.stop), "tokenizer": self.tokenizer}
        return settings

    def _completion(self, prompt_tokens: int, ids: list[int], sampling: Sampling) -> Completion:
        stopped = self.tokenizer.eos_token_id in ids
        kept = ids[: ids.index(self.tokenizer.eos_token_id)] if stopped else ids
        text = self.tokenizer.decode(kept, skip_special_tokens=True)
        for stop in sampling.stop:
            if stop in text:
                text, stopped = text[: text.index(stop)], True
        return Completion(text, "stop" if stopped else "length", prompt_tokens, len(kept) + stopped)


class _Cancelled(StoppingCriteria):
    """Stops a generation whose reader has gone away."""

    def __init__(self, event: threading.Event):
        self.event = event

    def __call__(self, input_ids, scores, **kwargs) -> torch.BoolTensor:
        return torch.full((input_ids.shape[0],), self.event.is_set(), dtype=torch.bool)
