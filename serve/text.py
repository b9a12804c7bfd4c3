"""Conversations and prompts as token ids, and token ids as text: what the endpoint and evaluation share of a tokenizer."""

from __future__ import annotations

import re
from bisect import bisect_right
from collections.abc import Sequence

from jinja2 import TemplateError
from tokenizers.decoders import DecodeStream

from data_prep.conversation import Message, chat_message, truncate


class NoText(ValueError):
    """What was given cannot be read: it is no Unicode, half of a surrogate pair say, or nothing that the chat template has a form for."""


class Text:
    """A tokenizer with its chat template. max_tokens: what the model holds of prompt and reply together."""

    def __init__(self, tokenizer, max_tokens: int):
        self.tokenizer, self.max_tokens = tokenizer, max_tokens
        self.gap = "\n" if re.search(r"<tool_call>(\\n|\n)", tokenizer.chat_template or "") else ""         # between a call's tags and what they hold, as the model writes it
        self.signs = {token: f"{token[0]} {token[1:]}" for token in tokenizer.added_tokens_encoder}

    def chat(self, messages: list[Message], room: int, tools: list[dict] | None = None, **template) -> list[int]:
        """The token ids of a conversation, cut so that `room` tokens of reply fit behind it. template: what the chat template is given beside it. Raises: NoText."""
        whole = self.whole(messages, tools, **template)
        if len(whole) <= self.max_tokens - room:
            return whole
        return self.whole(truncate(messages, self.max_tokens - room, lambda m: len(self.whole(m, tools, **template))), tools, **template)

    def whole(self, messages: list[Message], tools: list[dict] | None = None, **template) -> list[int]:
        """The token ids of a conversation, however long."""
        return self._ids([self._parted(chat_message(m)) for m in messages], tools, template)

    def _parted(self, message: Message) -> Message:
        """The message with the tags of a tool call, which are tokens of their own and no control tokens, parted where somebody else than the assistant wrote them."""
        if message["role"] == "assistant":
            return message
        content = message["content"]
        for token, parted in self.signs.items():
            content = content.replace(token, parted)
        return {**message, "content": content}

    def _ids(self, messages: list[Message], tools: list[dict] | None, template: dict) -> list[int]:
        """Control tokens that the assistant itself wrote stay text too: they open no turn. Raises: NoText."""
        try:
            return self.tokenizer.apply_chat_template(messages, tools=tools, return_dict=True, sanitize_control_tokens=True, **{"add_generation_prompt": True, **template})["input_ids"]
        except (TypeError, ValueError, RecursionError, TemplateError) as problem:
            raise NoText("the chat template can make no prompt of these messages: is their text valid Unicode, and the last one what it should go on from?") from problem

    def ids(self, text: str, special: bool = True) -> list[int]:
        """Raises: NoText."""
        try:
            return self.tokenizer(text, add_special_tokens=special)["input_ids"]
        except (TypeError, UnicodeError) as problem:
            raise NoText("the text is not valid Unicode") from problem

    def within(self, ids: list[int], length: int) -> int:
        """How many of the ids say no more than so many characters, special tokens aside."""
        return bisect_right(range(1, len(ids) + 1), length, key=lambda count: len(self.of(ids[:count], True)))

    def of(self, ids: Sequence[int], skip_special: bool = False) -> str:
        return self.tokenizer.decode(list(ids), skip_special_tokens=skip_special)


class Reader:
    """Token ids as text as they come: a character is given out when all its tokens are there."""

    def __init__(self, text: Text, skip_special: bool = True):
        self.backend, self.stream, self.text, self.skip, self.held = text.tokenizer.backend_tokenizer, DecodeStream(skip_special_tokens=skip_special), text, skip_special, []

    def read(self, token: int) -> str:
        self.held.append(token)
        if (piece := self.stream.step(self.backend, token)) is None:
            return ""
        self.held = []
        return piece

    def rest(self) -> str:
        """What was held back and never became whole: a reply that was cut within a character ends before it."""
        return self.text.of(self.held, self.skip).rstrip("\ufffd") if self.held else ""
