"""Stage `pretrain`, for a model from scratch: a tokenizer and a small base that knows how, not when.

Practice conversations are the archive's own with, before every reply, a system message that gives the next decision
away ("Next: get_order"). Half of the decisions are some other one put in its place. So the base learns to read,
copy, call tools and write the company's sentences on demand, while what to do when is left for SFT to learn. For half of the
decisions the whole reply is given away, which is where copying is learned first; for the others only its beginning.
"""

from __future__ import annotations

import itertools
import json
import random
import re
from collections import defaultdict
from collections.abc import Iterator
from pathlib import Path

import torch
from datasets import Dataset
from omegaconf import OmegaConf
from tokenizers import Regex, Tokenizer, decoders, models, pre_tokenizers, trainers
from transformers import DataCollatorForSeq2Seq, PreTrainedTokenizerFast, Qwen3Config, Qwen3ForCausalLM, Trainer, TrainingArguments

from data_prep.artifacts import ROOT, require, stage_output
from data_prep.conversation import read_jsonl
from training.models import IGNORE, conversations_of, train, trainer_arguments

PAD, START, STOP = "<|endoftext|>", "<|im_start|>", "<|im_end|>"
_number = re.compile(r"\d+")


def build_tokenizer(texts: Iterator[str], vocab_size: int, chat_template: str) -> PreTrainedTokenizerFast:
    """Byte-level BPE over the archive, each digit a token of its own, so that numbers can be copied digit by digit."""
    tokenizer = Tokenizer(models.BPE())
    tokenizer.pre_tokenizer = pre_tokenizers.Sequence([pre_tokenizers.Split(Regex(r"\d"), "isolated"), pre_tokenizers.ByteLevel(add_prefix_space=False)])
    tokenizer.decoder = decoders.ByteLevel()
    tags = ["<tool_call>", "</tool_call>"]
    tokenizer.train_from_iterator(texts, trainers.BpeTrainer(
        vocab_size=vocab_size - len(tags), special_tokens=[PAD, START, STOP], initial_alphabet=pre_tokenizers.ByteLevel.alphabet(), show_progress=False))
    fast = PreTrainedTokenizerFast(tokenizer_object=tokenizer, eos_token=STOP, pad_token=PAD, chat_template=chat_template)
    fast.add_tokens(tags)      # plain tokens: special ones would vanish when a reply is decoded
    return fast


def texts_of(conversations: list[list[dict]]) -> Iterator[str]:
    for messages in conversations:
        for message in messages:
            yield f"{message['role']}\n"
            yield message["content"]
            for call in message.get("tool_calls") or []:
                yield f'{{"name": "{call["function"]["name"]}", "arguments": {call["function"]["arguments"]}}}'
    yield from ["Next:"] * 100


def beginning(reply: dict) -> str:
    """A decision given away in short: the tool's name, the first three words."""
    calls = [call["function"]["name"] for call in reply.get("tool_calls") or []]
    return " ".join(calls + reply["content"].split()[:3])


def whole(reply: dict) -> str:
    """A decision given away in full."""
    calls = [f"{call['function']['name']} {call['function']['arguments']}" for call in reply.get("tool_calls") or []]
    return " ".join([reply["content"], *calls]).strip()


def fitted(reply: dict, values: dict, context: str) -> dict | None:
    """Somebody else's reply with this conversation's values in its tool arguments; None where a number of it is not known here."""
    calls = []
    for call in reply.get("tool_calls") or []:
        arguments = {key: values.get(key, value) for key, value in json.loads(call["function"]["arguments"]).items()}
        calls.append({**call, "function": {**call["function"], "arguments": json.dumps(arguments, ensure_ascii=False)}})
    text = reply["content"] + " ".join(call["function"]["arguments"] for call in calls)
    known = set(_number.findall(context))
    return {**reply, "tool_calls": calls} if set(_number.findall(text)) <= known else None


def practise(messages: list[dict], others: list[dict], swapped: float, rng: random.Random) -> list[dict]:
    """One practice conversation: a decision given away before each reply, some of them another's decision."""
    values = {k: v for m in messages for call in m.get("tool_calls") or [] for k, v in json.loads(call["function"]["arguments"]).items()}
    practice, context, answer_is_void = [], "", False
    for message in messages:
        if message["role"] == "assistant":
            reply, answer_is_void = message, False
            if rng.random() < swapped:
                tries = (fitted(rng.choice(others), values, context) for _ in range(6))
                other = next((t for t in tries if t is not None), None)
                if other is not None:
                    reply, answer_is_void = other, bool(message.get("tool_calls"))
            hint = whole(reply) if rng.random() < 0.5 else beginning(reply)
            practice += [{"role": "system", "content": f"Next: {hint}"}, reply]
        elif message["role"] != "tool" or not answer_is_void:
            practice.append(message)
        context += " " + message["content"]
    return practice


def spoken_labels(tokenizer, ids: list[int]) -> list[int]:
    """Labels for what customers and assistant say: not for the hints, which would teach when, nor for tools' results.

    Predicting customers' words is how the base comes to know what they are about.
    """
    start, system, tool = tokenizer.convert_tokens_to_ids([START, "system", "tool"])
    labels, is_spoken = [], True
    for position, token in enumerate(ids):
        if token == start:
            is_spoken = ids[position + 1] not in (system, tool)
        labels.append(token if is_spoken else IGNORE)
    return labels


class MuonAndAdamW(torch.optim.Optimizer):
    """Muon on the weight matrices, AdamW on everything else (Jordan et al. 2024, https://kellerjordan.github.io/posts/muon).

    With it the small base learns to copy digits in half the tokens that AdamW alone needs.
    """

    def __init__(self, model: torch.nn.Module, lr: float, weight_decay: float):
        matrices = [p for name, p in model.named_parameters() if p.ndim == 2 and "embed" not in name]
        others = [p for name, p in model.named_parameters() if p.ndim != 2 or "embed" in name]
        self.parts = [torch.optim.Muon(matrices, lr=1.6 * lr, weight_decay=weight_decay, adjust_lr_fn="match_rms_adamw"),
                      torch.optim.AdamW(others, lr=lr, weight_decay=weight_decay, betas=(0.9, 0.98))]
        super().__init__([p for part in self.parts for group in part.param_groups for p in group["params"]], {})
        self.param_groups = [group for part in self.parts for group in part.param_groups]

    def step(self, closure=None):
        for part in self.parts:
            part.step()

    def state_dict(self):
        return {"parts": [part.state_dict() for part in self.parts]}

    def load_state_dict(self, state):
        for part, saved in zip(self.parts, state["parts"], strict=True):
            part.load_state_dict(saved)
        self.param_groups = [group for part in self.parts for group in part.param_groups]


class Pretrainer(Trainer):
    """transformers' Trainer with the loss of labelled positions only: on a CPU the logits of all the others cost a third."""

    def compute_loss(self, model, inputs, return_outputs=False, num_items_in_batch=None):
        # Padding stands on the right, so causal attention needs no mask.
        hidden = model.model(input_ids=inputs["input_ids"]).last_hidden_state[:, :-1]
        labels = inputs["labels"][:, 1:]
        learned = labels != IGNORE
        return torch.nn.functional.cross_entropy(model.lm_head(hidden[learned]), labels[learned])


def run(config) -> None:
    settings, rng = config.pretrain, random.Random(config.seed)
    rows = [row for _, row in read_jsonl(require(config, "prepare", "pretrain") / "sft" / "train.jsonl")]
    locales = {row["conversation_id"]: row["locale"] for row in rows}
    names = list(dict.fromkeys(row["conversation_id"] for row in rows))
    conversations = dict(zip(names, (messages for messages, _ in conversations_of(rows)), strict=True))
    template = (ROOT / config.model.chat_template).read_text(encoding="utf-8")
    tokenizer = build_tokenizer(texts_of(list(conversations.values())), config.model.vocab_size, template)
    replies = defaultdict(list)
    for row in rows:
        replies[row["locale"]] += row["completion"]
    examples = []
    for name in itertools.islice(itertools.cycle(names), settings.conversations):
        practice = practise(conversations[name], replies[locales[name]], settings.swapped, rng)
        ids = tokenizer.apply_chat_template(practice, return_dict=True)["input_ids"][: config.model.max_tokens]
        examples.append({"input_ids": ids, "labels": spoken_labels(tokenizer, ids)})
    architecture = OmegaConf.to_container(config.model.architecture)
    model = Qwen3ForCausalLM(Qwen3Config(vocab_size=len(tokenizer), bos_token_id=None, eos_token_id=tokenizer.eos_token_id, pad_token_id=tokenizer.pad_token_id, **architecture))
    with stage_output(config, "pretrain") as out:
        arguments = trainer_arguments(config, "pretrain", Path(out), TrainingArguments)
        optimizer = MuonAndAdamW(model, arguments.learning_rate, arguments.weight_decay)
        collator = DataCollatorForSeq2Seq(tokenizer, padding=True, label_pad_token_id=IGNORE)
        trainer = Pretrainer(model, arguments, train_dataset=Dataset.from_list(examples), data_collator=collator, optimizers=(optimizer, None))
        curve = train(trainer, Path(out))
        model.save_pretrained(out / "model")
        tokenizer.save_pretrained(out / "model")
        parameters = sum(p.numel() for p in model.parameters())
        out.summary(f"{len(examples)} practice conversations → a base of {parameters / 1e6:.2f} M parameters, vocabulary {len(tokenizer)}, loss {curve[-1]['loss']:.3f}",
                    parameters=parameters, loss=curve[-1]["loss"])
