"""Stage `pretrain`, for a model from scratch: a tokenizer and a small base that knows how, not when.

Practice conversations are the archive's own with, before every reply, a system message that gives the next decision
away ("Next: get_order"). Half of the decisions are some other one put in its place. So the base learns to read,
copy, call tools and write the company's sentences on demand, while what to do when is left for SFT to learn. For half of the
decisions the whole reply is given away, which is where copying is learned first; for the others only its beginning.
Some are given away on a condition ("if status is open: …"), so that what a tool found is looked at. Between them it is asked
to read things out: a value of a tool's result, the topic that the helpdesk filed the conversation under. So it learns to read
customers and tools, and still not what to do about either. Before all that come drills: of copying, of topics, of names that customers
dictate into a tool call. In the end it is examined on conversations that it has not met: of what it cannot read nothing can be learned later.
"""

from __future__ import annotations

import itertools
import random
from collections import defaultdict
from collections.abc import Iterator
from pathlib import Path

from datasets import Dataset
from omegaconf import OmegaConf
from tokenizers import Regex, Tokenizer, decoders, models, pre_tokenizers, trainers
from transformers import DataCollatorForSeq2Seq, PreTrainedTokenizerFast, Qwen3Config, Qwen3ForCausalLM, Trainer, TrainingArguments

from data_prep.artifacts import ROOT, StageError, require, stage_output
from data_prep.conversation import read_jsonl, write_json
from data_prep.hermes import parse_reply
from data_prep.statistics import share
from serve.engine.decoding import decode, pick
from training.labelled import LossOfLabelled
from training.models import IGNORE, encode, in_batches_of_like_length, train, trainer_arguments
from training.muon import MuonAndAdamW
from training.practice import DRILLED, argument_values, dictated, drill, elsewhere, exams, is_right, practise, renamed, renumbered, results_otherwise, topic_drill, words_of_results

PAD, START, STOP = "<|endoftext|>", "<|im_start|>", "<|im_end|>"
EXAMINED = 200         # questions of a kind at most
_pieces = Regex(r"\d| ?[\p{L}_]+| ?[^\s\p{L}\d_]+|\s")


def build_tokenizer(texts: Iterator[str], vocab_size: int, chat_template: str) -> PreTrainedTokenizerFast:
    """Byte-level BPE over the archive, each digit a token of its own, so that numbers can be copied digit by digit.

    Words with underscores (tools, their arguments) stay whole, and what every tool call begins with is one token.
    """
    tokenizer = Tokenizer(models.BPE())
    tokenizer.pre_tokenizer = pre_tokenizers.Sequence([pre_tokenizers.Split(_pieces, "isolated"), pre_tokenizers.ByteLevel(add_prefix_space=False, use_regex=False)])
    tokenizer.decoder = decoders.ByteLevel()
    tags = ['<tool_call>{"name": "', '", "arguments": {', "}}</tool_call>"]
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
    yield from ["Next: Read: topic Repeat if is else"] * 100


def whole_conversations(rows: list[dict]) -> dict[str, list[dict]]:
    """Each conversation's messages up to its last target: the last row of a conversation holds the ones before it."""
    return {row["conversation_id"]: row["prompt"] + row["completion"] for row in rows}


class Pretrainer(LossOfLabelled, Trainer):
    """transformers' Trainer with the cheaper loss."""


def run(config) -> None:
    settings, rng = config.pretrain, random.Random(config.seed)
    rows = [row for _, row in read_jsonl(require(config, "prepare", "pretrain") / "sft" / "train.jsonl")]
    locales = {row["conversation_id"]: row["locale"] for row in rows}
    topics = {row["conversation_id"]: row["topic"] for row in rows}
    conversations = whole_conversations(rows)
    names = list(conversations)
    template = (ROOT / config.model.chat_template).read_text(encoding="utf-8")
    tokenizer = build_tokenizer(texts_of(list(conversations.values())), config.model.vocab_size, template)
    replies, said = defaultdict(list), defaultdict(list)
    for row in rows:
        replies[row["locale"]] += row["completion"]
        said[row["locale"]] += [m["content"] for m in row["prompt"][-1:] if m["role"] == "user"]
    words = sorted({word for each in said.values() for text in each for word in text.split() if word.isalpha()})
    if len(words) < DRILLED:
        raise StageError(f"prepare/sft/train.jsonl has {len(conversations)} conversations, and their customers say {len(words)} different words: a base cannot be made from that. "
                         "Give more transcripts, or tune a base that exists: model.from_scratch=false model.name=<folder or model id>")
    drills = [encode(tokenizer, drill(words, i / settings.drills, rng), {2}) for i in range(settings.drills)]
    filed = [name for name in names if topics[name]]
    copied = len(drills) * 2 // 3         # copying alone first, the rest of it among topics
    calls = dictated(conversations.values())
    late = drills[copied:] + [encode(tokenizer, topic_drill(conversations[name], topics[name], rng), {2})
                              for name in itertools.islice(itertools.cycle(filed), settings.topic_drills if filed else 0)]
    late += [encode(tokenizer, renumbered(renamed(messages, words, rng), rng), {len(messages) - 1})
             for messages in itertools.islice(itertools.cycle(calls), settings.call_drills if calls else 0)]
    rng.shuffle(late)
    results = words_of_results(conversations.values())
    examples = []
    for name in itertools.islice(itertools.cycle(names), settings.conversations):
        messages = renumbered(renamed(conversations[name], words, rng), rng)
        values = argument_values(messages)
        messages = [elsewhere(results_otherwise(message, results, rng), values, said[locales[name]], rng) for message in messages]
        practice = practise(messages, topics[name], replies[locales[name]], results, settings.swapped, rng)
        example = encode(tokenizer, practice, set(range(len(practice))))
        if len(example["input_ids"]) <= config.model.max_tokens:
            examples.append(example)
    architecture = OmegaConf.to_container(config.model.architecture)
    model = Qwen3ForCausalLM(Qwen3Config(vocab_size=len(tokenizer), bos_token_id=None, eos_token_id=tokenizer.eos_token_id, pad_token_id=tokenizer.pad_token_id, **architecture))
    with stage_output(config, "pretrain") as out:
        arguments = trainer_arguments(config, "pretrain", Path(out), TrainingArguments)
        optimizer = MuonAndAdamW(model, arguments.learning_rate, arguments.weight_decay)
        size = arguments.train_batch_size * arguments.world_size
        order = [example for part in (drills[:copied], late, examples) for example in in_batches_of_like_length(part, size, rng)]
        collator = DataCollatorForSeq2Seq(tokenizer, padding=True, label_pad_token_id=IGNORE)
        trainer = Pretrainer(model, arguments, train_dataset=Dataset.from_list(order), data_collator=collator, optimizers=(optimizer, None))
        curve = train(trainer, Path(out))
        if out.is_main:
            model.save_pretrained(out / "model")
            tokenizer.save_pretrained(out / "model")
            unread = whole_conversations([row for _, row in read_jsonl(require(config, "prepare", "pretrain") / "sft" / "validation.jsonl")])
            saved = Qwen3ForCausalLM.from_pretrained(out / "model").to(arguments.device).eval()
            asked = {what: examined(saved, tokenizer, exam, config.model) for what, exam in exams(unread.values(), words, random.Random(config.seed)).items()}
            write_json(out / "exams.json", asked)
            if asked["reads"] and asked["reads"]["high"] < settings.min_reads:
                print(f"warning: of values in conversations that it has not met the base reads {told(asked['reads'])}. All that is trained on it will say values that it has met, in the place of those "
                      "that hold. Likely cause: copying was not learned by the end of its drills. Next: pretrain.drills higher", flush=True)
            parameters = sum(p.numel() for p in model.parameters())
            out.summary(f"{copied + len(late)} drills and {len(examples)} practice conversations ({settings.conversations - len(examples)} more too long) → a base of {parameters / 1e6:.2f} M parameters, vocabulary {len(tokenizer)}, loss {curve[-1]['loss']:.3f}"
                        + "".join(f"; {what} {told(found)}" for what, found in asked.items() if found), parameters=parameters, loss=curve[-1]["loss"], **{what: found["value"] for what, found in asked.items() if found})


def examined(model, tokenizer, exam: list[tuple[list[dict], dict]], settings) -> dict | None:
    """The share of an exam's first questions that the base answers right, greedily, with a 95 % interval and their number; None of none that it has room for."""
    asked = ((tokenizer.apply_chat_template(messages, add_generation_prompt=True, return_dict=True)["input_ids"], answer) for messages, answer in exam)
    questions = list(itertools.islice((each for each in asked if len(each[0]) + settings.max_new_tokens <= settings.max_tokens), EXAMINED))
    hits = 0
    for some in (questions[k:k + 32] for k in range(0, len(questions), 32)):
        said = decode(model, tokenizer, [ids for ids, _ in some], settings.max_new_tokens, lambda logits: pick(logits, 0))
        hits += sum(is_right(parse_reply(tokenizer.decode(reply, skip_special_tokens=True)), answer) for [reply], (_, answer) in zip(said, some, strict=True))
    return share(hits, len(questions)) if questions else None


def told(found: dict) -> str:
    return f"{found['value']:.0%} [{found['low']:.0%}, {found['high']:.0%}] of {found['n']}"
