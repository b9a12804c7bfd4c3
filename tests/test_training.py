"""Each trainer for real, on a toy model: it learns, the base stays, and what is saved is what was trained."""

from __future__ import annotations

import json
import os
import random
import shutil
import subprocess
import sys
from pathlib import Path

import pytest
import torch
from hypothesis import example, given
from hypothesis import strategies as st
from peft import PeftModel
from transformers import AutoModelForCausalLM, AutoTokenizer

from conf.load import load_config
from data_prep.artifacts import ROOT, StageError, read_manifest, require, stage_dir, stage_output
from data_prep.conversation import read_jsonl, tool_call, write_jsonl
from training import pretrain
from training.models import IGNORE, conversations_of, count_tokens, encode, in_batches_of_like_length, sequences
from training.practice import (
    argument_values,
    beginning,
    conditional,
    dictated,
    drill,
    exams,
    fitted,
    invented,
    is_right,
    practise,
    readable,
    renamed,
    results_otherwise,
    topic_drill,
    whole,
    words_of_results,
)
from training.pretrain import build_tokenizer, whole_conversations

TEMPLATES = Path(__file__).resolve().parent.parent / "training/templates"
TALK = [{"role": "system", "content": "Support. Returns: 30 days."}, {"role": "user", "content": "where is order 48213?"},
        {"role": "assistant", "content": "", "tool_calls": [tool_call("get_order", {"order_number": "48213"})]},
        {"role": "tool", "content": '{"status": "shipped", "days": 3}'}, {"role": "assistant", "content": "It arrives in 3 days."},
        {"role": "user", "content": "thanks"}, {"role": "assistant", "content": "Bye!"}]


@pytest.fixture(scope="module", params=["tiny.jinja", "hermes.jinja"])
def tokenizer(request):
    texts = [m["content"] for m in TALK] * 3 + ["system user assistant tool", '{"name": "get_order", "arguments": {"order_number": "'] * 3
    return build_tokenizer(iter(texts), 400, (TEMPLATES / request.param).read_text())


def test_digits_are_tokens_of_their_own_and_text_survives(tokenizer):
    assert tokenizer.tokenize("48213") == list("48213")
    for text in ("order 48213, größe 7 €!", "  two  spaces\n"):
        assert tokenizer.decode(tokenizer(text)["input_ids"]) == text


def test_a_name_is_dictated_by_the_messages_that_hold_it_and_no_others():
    call = {"role": "assistant", "content": "", "tool_calls": [tool_call("change_address", {"order_number": "48213", "address": "Elm Street 5"})]}
    talk = [{"role": "system", "content": "Support."}, {"role": "user", "content": "i moved"}, {"role": "assistant", "content": "Your order?"}, {"role": "user", "content": "it is 48213"},
            {"role": "assistant", "content": "", "tool_calls": [tool_call("get_order", {"order_number": "48213"})]}, {"role": "tool", "content": '{"status": "open"}'},
            {"role": "assistant", "content": "Where to?"}, {"role": "user", "content": "to elm street 5, please"}, call]
    assert dictated([talk]) == [[talk[3], talk[7], {"role": "system", "content": "Next: change_address"}, call]], "and not the call that has no name in it"
    unsaid = [{**m, "content": m["content"].replace("elm", "oak")} for m in talk]
    assert dictated([unsaid]) == [], "what nobody said cannot be copied"
    renamed_one = renamed(dictated([talk])[0], ["window", "carpet", "lantern"], random.Random(0))
    street = argument_values(renamed_one)["address"]
    assert street != "Elm Street 5"
    assert street.lower() in renamed_one[1]["content"]


def test_only_what_is_said_is_renamed_not_what_it_is_filed_under():
    call = {"role": "assistant", "content": "", "tool_calls": [tool_call("find", {"content": "user content 47"})]}
    made = renamed([{"role": "user", "content": "i am User content 47"}, call], ["window", "carpet", "lantern"], random.Random(0))
    assert [set(message) for message in made] == [{"role", "content"}, set(call)]
    assert [message["role"] for message in made] == ["user", "assistant"]
    assert argument_values(made).keys() == {"content"}
    assert made[0]["content"].lower() == f"i am {argument_values(made)['content']}".lower()
    assert "user" not in made[0]["content"].lower()


def test_only_the_chosen_replies_are_learned_each_with_its_stop_token(tokenizer):
    def learned(targets: set[int]) -> str:
        sequence = encode(tokenizer, TALK, targets)
        return tokenizer.decode([label for label in sequence["labels"] if label != IGNORE])

    assert learned({4}) == "It arrives in 3 days.<|im_end|>"
    assert learned({2}) == '<tool_call>{"name": "get_order", "arguments": {"order_number": "48213"}}</tool_call><|im_end|>'
    assert learned({2, 4, 6}) == learned({2}) + learned({4}) + learned({6})


def test_rows_of_one_conversation_become_one_sequence(tokenizer):
    rows = [{"conversation_id": "a", "prompt": TALK[:i], "completion": [TALK[i]]} for i in (2, 4, 6)]
    rows += [{"conversation_id": "b", "prompt": TALK[:2], "completion": [TALK[2]]}]
    assert [(len(messages), targets) for messages, targets in conversations_of(rows)] == [(7, {2, 4, 6}), (3, {2})]
    made, dropped = sequences(tokenizer, rows, 1000)
    assert (len(made), dropped) == (2, 0)


def test_an_edited_reply_is_learned_and_splits_no_conversation_of_pretraining(tokenizer):
    """What comes after an edit has the reply in its history that was sent, so the edit ends a sequence; the conversation is still one."""
    edited = {**TALK[4], "content": "It comes in 3 days, gladly."}
    rows = [{"conversation_id": "c", "prompt": TALK[:2], "completion": [TALK[2]]}, {"conversation_id": "c", "prompt": TALK[:4], "completion": [edited]},
            {"conversation_id": "c", "prompt": TALK[:6], "completion": [TALK[6]]}]
    assert [(messages[-1]["content"], targets) for messages, targets in conversations_of(rows)] == [(edited["content"], {2, 4}), ("Bye!", {6})]
    assert whole_conversations(rows) == {"c": TALK}


def test_a_base_is_not_made_from_next_to_nothing(tmp_path):
    config = load_config([f"run_dir={tmp_path}"])
    config.fingerprint = {}
    with stage_output(config, "prepare") as out:
        write_jsonl(out / "sft/train.jsonl", [{"conversation_id": "a", "locale": "en", "topic": None, "prompt": TALK[:2], "completion": [TALK[2]]}])
    with pytest.raises(StageError, match=r"1 conversations.*cannot be made"):
        pretrain.run(config)


def test_what_is_too_long_is_cut_as_in_serving_or_counted(tokenizer):
    rows = [{"conversation_id": "a", "prompt": TALK[:i], "completion": [TALK[i]]} for i in (2, 4, 6)]
    short = count_tokens(tokenizer, [TALK[0], *TALK[5:]])
    made, dropped = sequences(tokenizer, rows, short)
    assert [tokenizer.decode([t for t in s["labels"] if t != IGNORE]) for s in made] == ["Bye!<|im_end|>"]
    assert dropped == 2
    assert sequences(tokenizer, rows, 5) == ([], 3)


def test_practice_gives_decisions_away_and_reads_things_out():
    assert beginning(TALK[2]) == "get_order"
    assert beginning(TALK[4]) == "It arrives in"
    assert whole(TALK[2]) == 'get_order {"order_number": "48213"}'
    assert readable(TALK[:5], "status") == {"Returns": "30", "order_number": "48213", "status": "shipped", "days": "3", "topic": "status"}
    practice = practise(TALK, "status", [TALK[6]], {}, 0.0, random.Random(0))
    hints = [m["content"] for m in practice if m["role"] == "system" and m["content"].startswith("Next: ")]
    assert len(hints) == 3
    assert [m for m in practice if m in TALK] == TALK, "with nothing swapped the conversation itself is unchanged"
    swapped = practise(TALK, None, [{"role": "assistant", "content": "Goodbye"}], {}, 1.0, random.Random(0))
    assert [m["content"] for m in swapped if m["role"] == "assistant" and m["content"] == "Goodbye"] == ["Goodbye"] * 3


def test_a_condition_gives_the_decision_away_only_to_who_reads_the_result():
    results = words_of_results([TALK, [{"role": "tool", "content": '{"status": "open", "days": 4}'}]])
    assert results == {"status": ["shipped", "open"], "days": [3, 4]}
    known = readable(TALK[:4], None)
    for seed in range(20):
        condition, otherwise = conditional("RIGHT", "WRONG", known, results, random.Random(seed)).removeprefix("if ").split("; else: ")
        claim, then = condition.split(": ")
        key, value = claim.split(" is ")
        assert (then if known[key] == value else otherwise) == "RIGHT"
    assert conditional("RIGHT", "WRONG", {"order_number": "48213"}, results, random.Random(0)) is None
    others = {results_otherwise(TALK[3], results, random.Random(seed))["content"] for seed in range(20)}
    assert others == {'{"status":"shipped","days":3}', '{"status":"open","days":3}'}, "numbers stay: replies quote them"


def test_identifiers_get_new_words_everywhere_and_other_values_do_not():
    talk = [{"role": "user", "content": "send it to Mill Lane 4, order 48213, my return"},
            {"role": "assistant", "content": "", "tool_calls": [tool_call("change_address", {"address": "Mill Lane 4", "topic": "return"})]}]
    made = renamed(talk, ["alpha", "bravo", "delta"], random.Random(1))
    address = json.loads(made[1]["tool_calls"][0]["function"]["arguments"])["address"]
    assert address != "Mill Lane 4"
    assert made[0]["content"] == f"send it to {address}, order 48213, my return"


def test_drills_ask_for_what_was_said():
    words = ["alpha", "bravo", "delta", "echo", "foxtrot", "golf", "hotel", "india", "juliett", "kilo", "lima", "mike", "oscar", "papa"]
    for seed in range(30):
        said, asked, answer = (m["content"] for m in drill(words, seed / 30, random.Random(seed)))
        assert said == answer if asked == "Repeat" else f"{asked.removeprefix('Read: ')}: {answer}" in said
    _, asked, answer = topic_drill(TALK, "status", random.Random(0))
    assert (asked["content"], answer["content"]) == ("Read: topic", "status")
    said = {tuple(topic_drill(TALK, "status", random.Random(seed))[0]["content"].split()) for seed in range(30)}
    assert all(set(words) <= {"where", "is", "order", "48213?"} for words in said)
    assert len(said) > 5
    assert invented(["alpha", "bravo"], random.Random(2))[0].isupper()


@given(st.lists(st.integers(1, 90), max_size=200) | st.lists(st.integers(1, 90), min_size=32, max_size=32), st.integers(1, 9))
@example(list(range(32, 0, -1)), 2)
def test_batches_of_like_length_lose_nothing(lengths, size):
    examples = [{"input_ids": [0] * length, "number": i} for i, length in enumerate(lengths)]
    order = in_batches_of_like_length(examples, size, random.Random(0))
    assert sorted(e["number"] for e in order) == list(range(len(lengths)))
    first = [len(e["input_ids"]) for e in order[:16 * size]]
    if len(examples) == 16 * size:
        batches = sorted(first[i:i + size] for i in range(0, len(first), size))
        assert [length for batch in batches for length in batch] == sorted(lengths), "a batch holds neighbours in length"


def test_somebody_elses_reply_fits_only_where_its_numbers_are_known():
    call = {"role": "assistant", "content": "", "tool_calls": [tool_call("refund", {"order_number": "11111"})]}
    assert json.loads(fitted(call, {"order_number": "48213"}, "order 48213")["tool_calls"][0]["function"]["arguments"]) == {"order_number": "48213"}
    assert fitted(call, {}, "order 48213") is None
    assert fitted({"role": "assistant", "content": "in 9 days"}, {}, "3 days") is None


def test_an_exam_asks_for_what_was_said_with_values_nobody_has_met():
    call = {"role": "assistant", "content": "", "tool_calls": [tool_call("change_address", {"order_number": "48213", "address": "Elm Road 5"})]}
    moving = [*TALK[:4], {"role": "user", "content": "48213, and it is elm road 5 now"}, call]
    asked = exams([TALK, moving], ["window", "carpet", "lantern"], random.Random(0))
    assert (len(asked["reads"]), len(asked["copies"])) == (2, 1)
    for messages, answer in asked["reads"]:
        key = messages[-1]["content"].removeprefix("Read: ")
        assert readable(messages[:-1], None)[key] == answer["content"]
        assert is_right({"role": "assistant", "content": answer["content"]}, answer)
        assert not is_right({"role": "assistant", "content": answer["content"] + "1"}, answer)
    [(said, written)] = asked["copies"]
    values = argument_values([written])
    heard = " ".join(message["content"] for message in said)
    assert all(value.lower() in heard for value in values.values())
    assert "elm" not in heard
    assert is_right(written, written)
    assert not is_right(call, written)
    assert not is_right({"role": "assistant", "content": written["content"]}, written), "a reply that calls nothing"


@pytest.fixture(scope="module")
def toy(tmp_path_factory):
    """A toy company archive prepared, a toy base pretrained, and everything trained on it; the base as it was before is in `base.safetensors`."""
    config = toy_config(tmp_path_factory.mktemp("toy"))
    run_stages(config, "generate", "anonymise", "prepare", "pretrain")
    shutil.copy(stage_dir(config, "pretrain") / "model/model.safetensors", Path(config.run_dir) / "base.safetensors")
    run_stages(config, "sft", "reward", "dpo", "kto", "ppo", "rloo")
    return config


def toy_config(folder: Path, **changes):
    config = load_config([
        "experiment=smoke", f"run_dir={folder}", "generate.conversations=150", "model.vocab_size=500", "pretrain.drills=8", "pretrain.topic_drills=8", "pretrain.call_drills=8", "pretrain.conversations=40", "pretrain.trainer.max_steps=3",
        "pretrain.trainer.per_device_train_batch_size=4", "sft.trainer.max_steps=3", "reward.trainer.max_steps=3", "dpo.trainer.max_steps=3", "ppo.steps=2", "ppo.episodes=8", "rloo.prompts=16", "rloo.trainer.max_steps=2", "kto.trainer.max_steps=3", "sft.trainer.save_steps=1", "dpo.trainer.save_steps=1",
        "model.architecture={hidden_size: 32, intermediate_size: 64, num_hidden_layers: 2, num_attention_heads: 2, num_key_value_heads: 1, head_dim: 16, max_position_embeddings: 1024, tie_word_embeddings: true}"])
    config.fingerprint = {"seed": 0}
    return config


def test_a_checkpoint_that_was_cut_short_is_not_resumed_from(tmp_path):
    from training.models import last_checkpoint

    for step, state in ((2, "{}"), (10, "{}"), (12, "{cut"), (14, None)):
        (tmp_path / f"checkpoint-{step}").mkdir()
        if state is not None:
            (tmp_path / f"checkpoint-{step}/trainer_state.json").write_text(state)
    assert last_checkpoint(tmp_path) == str(tmp_path / "checkpoint-10")
    assert not (tmp_path / "checkpoint-14").exists()
    assert last_checkpoint(tmp_path / "nothing") is None


def run_stages(config, *names):
    import importlib

    from training.pipeline import BY_NAME

    for name in names:
        torch.manual_seed(0)
        importlib.import_module(BY_NAME[name].module).run(config)


def weights(folder: Path) -> dict[str, torch.Tensor]:
    from safetensors.torch import load_file

    return load_file(next(folder.glob("*.safetensors")))


@pytest.mark.slow
def test_every_trainer_moves_its_adapter_and_nothing_else(toy):
    before = weights(Path(toy.run_dir))
    assert all(torch.equal(before[k], v) for k, v in weights(stage_dir(toy, "pretrain") / "model").items()), "the base must not move"
    exam = json.loads((stage_dir(toy, "pretrain") / "exams.json").read_text())
    assert exam["reads"]["n"] > 0
    assert exam["reads"]["high"] < 0.9, "three steps teach nobody to read"

    sft = weights(stage_dir(toy, "sft") / "adapter")
    moved = {name: float(value.abs().max()) for name, value in sft.items() if "lora_B" in name}
    assert moved
    assert min(moved.values()) > 0, "every LoRA matrix has learned something"

    dpo = weights(stage_dir(toy, "dpo") / "adapter")
    assert set(dpo) == set(sft)
    assert all(not torch.equal(dpo[k], sft[k]) for k in sft if "lora_B" in k), "dpo starts from sft and moves on"
    assert not (stage_dir(toy, "dpo") / "adapter" / "ref").exists()

    ppo = weights(stage_dir(toy, "ppo") / "adapter")
    assert set(ppo) == set(sft)
    assert any(not torch.equal(ppo[k], sft[k]) for k in sft), "ppo moves on from sft too"
    kto, rloo = (weights(stage_dir(toy, name) / "adapter") for name in ("kto", "rloo"))
    assert set(kto) == set(rloo) == set(sft)
    for other in (kto, rloo):
        assert any(not torch.equal(other[k], sft[k]) for k in sft)


@pytest.fixture(scope="module")
def together(toy):
    """What `hardware.launcher` starts: two processes over each stage that they can train together, on half the batch each; and one process over the whole of it."""
    from training.pipeline import BY_NAME, STAGES, record_config

    runs = {}
    for name, batch in (("alone", 4), ("together", 2)):
        config = runs[name] = toy_config(Path(toy.run_dir).with_name(name))
        Path(config.run_dir).mkdir()
        for stage in ("prepare", "reward"):
            (Path(config.run_dir) / stage).symlink_to(stage_dir(toy, stage))
        config.pretrain.trainer.per_device_train_batch_size = config.hardware.sft_trainer.per_device_train_batch_size = batch
        config.pretrain.trainer.max_steps = config.sft.trainer.max_steps = 6
        config.pretrain.trainer.learning_rate, config.pretrain.trainer.warmup_steps = 5e-2, 1
        config.hardware.threads, config.ppo.start = 2, "sft"
    run_stages(runs["alone"], "pretrain", "sft")
    config = runs["together"]
    for name in (stage.name for stage in STAGES if stage.parallel):
        settings = record_config(config, BY_NAME[name], {"seed": 0})
        command = [sys.executable, "-m", "torch.distributed.run", "--standalone", "--nproc-per-node=2", "-m", "training.pipeline", "--stage", name, str(settings)]
        made = subprocess.run(command, cwd=ROOT, capture_output=True, text=True, timeout=300, env={**os.environ, "OMP_NUM_THREADS": "1"})
        assert made.returncode == 0, made.stderr[-2000:]
    return runs


@pytest.mark.slow
def test_two_processes_train_a_stage_together_and_one_of_them_writes_it(together):
    """Each folder whole, learned, with nothing pickled in it."""
    from training.pipeline import STAGES

    config = together["together"]
    for name in (stage.name for stage in STAGES if stage.parallel):
        folder = stage_dir(config, name)
        assert read_manifest(folder)["summary"]
        assert not folder.with_name(f"{name}.partial").exists()
        assert not list(folder.rglob("left-*"))
        assert not list(folder.rglob("*.bin")), "a pickle is not for handing on"
        assert (folder / ("model/model.safetensors" if name == "pretrain" else "adapter/adapter_model.safetensors")).is_file()
    assert any(not torch.equal(a, weights(stage_dir(config, "sft") / "adapter")[name]) for name, a in weights(stage_dir(config, "ppo") / "adapter").items() if "lora_B" in name)


@pytest.mark.slow
@pytest.mark.parametrize("stage", ["pretrain", "sft"])
def test_two_processes_learn_what_one_does_from_the_same_batches(together, stage):
    """Their gradients are averaged: of one that looked at its own half alone they would be others, and it would be somewhere else."""
    alone, both = (weights(stage_dir(config, stage) / ("model" if stage == "pretrain" else "adapter")) for config in together.values())
    assert set(alone) == set(both)
    learned = [name for name in alone if stage == "pretrain" or "lora_B" in name]        # which begin at 0
    apart = torch.stack([(alone[name] - both[name]).norm() for name in learned]).norm() / torch.stack([alone[name].norm() for name in learned]).norm()
    assert sum(float(alone[name].abs().sum()) for name in learned) > 0
    assert float(apart) < 0.02
    norms = [json.loads(next(stage_dir(config, stage).rglob("curve.json")).read_text())[0]["grad_norm"] for config in together.values()]
    assert norms[0] == pytest.approx(norms[1], rel=1e-2)


@pytest.mark.slow
def test_dpo_starts_at_the_sft_policy_not_at_the_base(toy):
    """With policy = reference the first reward margin is exactly zero; a raw base as reference would show it."""
    curve = json.loads((require(toy, "dpo", "test") / "curve.json").read_text())
    from data_prep.artifacts import read_manifest

    assert read_manifest(stage_dir(toy, "dpo"))["facts"]["pairs"] > 0
    assert curve[0]["step"] == 1
    assert curve[0]["rewards/margins"] == pytest.approx(0.0, abs=1e-4)
    assert curve[0]["rewards/chosen"] == pytest.approx(0.0, abs=1e-4)


@pytest.mark.slow
def test_the_saved_adapter_gives_the_trained_logits(toy):
    folder = require(toy, "sft", "test") / "adapter"
    base = require(toy, "pretrain", "test") / "model"
    tokenizer = AutoTokenizer.from_pretrained(folder)
    ids = torch.tensor([encode(tokenizer, TALK, {2})["input_ids"]])
    with torch.no_grad():
        plain = AutoModelForCausalLM.from_pretrained(base)(ids).logits
        adapted = PeftModel.from_pretrained(AutoModelForCausalLM.from_pretrained(base), folder)
        first = adapted(ids).logits
        merged = adapted.merge_and_unload()(ids).logits
    assert not torch.allclose(plain, first)
    assert torch.allclose(first, merged, atol=1e-4)


@pytest.mark.slow
@pytest.mark.parametrize("packing", [False, True])
def test_the_cheaper_loss_is_trls_loss(toy, tmp_path, packing):
    from datasets import Dataset
    from trl import SFTConfig, SFTTrainer

    from training.models import load_base, load_tokenizer, trainer_arguments
    from training.sft import CpuSFTTrainer, trainer_of

    tokenizer = load_tokenizer(toy)
    data = Dataset.from_list([encode(tokenizer, TALK, {2, 4}), encode(tokenizer, TALK[:3], {2})] * 3)
    arguments = trainer_arguments(toy, "sft", tmp_path / "trl", SFTConfig, max_length=400, completion_only_loss=False)
    expected = SFTTrainer(load_base(toy), arguments, train_dataset=data, eval_dataset=data, processing_class=tokenizer).evaluate()["eval_loss"]
    config = toy.copy()
    config.model.max_tokens = 400 if not packing else 4000
    trainer = trainer_of(config, load_base(toy), tokenizer, {"train": data, "validation": data}, tmp_path / "ours", {"packing": packing})
    assert isinstance(trainer, CpuSFTTrainer)
    assert len(trainer.eval_dataset) == (1 if packing else len(data))
    assert trainer.evaluate()["eval_loss"] == pytest.approx(expected, rel=1e-4)


@pytest.mark.slow
def test_the_cheaper_head_of_dpo_is_trls_head(toy):
    from trl.trainer.utils import add_fused_lm_head

    from training.labelled import add_head_of_labelled

    ids = torch.randint(0, 300, (3, 20), generator=torch.Generator().manual_seed(0))
    labels = ids.clone()
    labels[:, :12] = IGNORE
    labels[1, 16:] = IGNORE
    made = []
    for add in (add_fused_lm_head, add_head_of_labelled):
        model = AutoModelForCausalLM.from_pretrained(require(toy, "pretrain", "test") / "model")
        add(model, outputs=("log_probs", "entropy", "mean_logits", "is_top1"))
        out = model(input_ids=ids, labels=labels, fused_lm_head=True)
        out.log_probs.sum().backward()
        made.append((out, model.lm_head.weight.grad, model.model.layers[0].mlp.up_proj.weight.grad))
        assert model(input_ids=ids).logits.shape == (3, 20, model.config.vocab_size), "generation is as before"
    (theirs, *their_gradients), (ours, *our_gradients) = made
    for field in ("loss", "log_probs", "entropy", "mean_logits", "is_top1", "label_mask"):
        assert torch.allclose(getattr(theirs, field).float(), getattr(ours, field).float(), atol=1e-5), field
    assert all(torch.allclose(a, b, atol=1e-5) for a, b in zip(their_gradients, our_gradients, strict=True))


@pytest.mark.slow
def test_packed_conversations_do_not_see_each_other(toy):
    """Each says and learns what it does alone, when attention goes by sequence."""
    from training.packed import NAME

    model = AutoModelForCausalLM.from_pretrained(require(toy, "pretrain", "test") / "model").eval()
    weight = model.model.layers[0].self_attn.k_proj.weight
    one, two = torch.arange(5, 25), torch.arange(30, 41)
    positions = torch.cat([torch.arange(20), torch.arange(11)])[None]
    begin = {"cu_seq_lens_q": torch.tensor([0, 20, 31], dtype=torch.int32), "max_length_q": 20}

    def gradient(logits: torch.Tensor) -> torch.Tensor:
        return torch.autograd.grad(logits.square().sum(), weight)[0]

    alone = [model(input_ids=ids[None]).logits[0] for ids in (one, two)]
    expected = gradient(alone[0]) + gradient(alone[1])
    model.set_attn_implementation(NAME)
    packed = model(input_ids=torch.cat([one, two])[None], position_ids=positions, **begin).logits[0]
    assert torch.allclose(packed, torch.cat(alone), atol=1e-4)
    assert torch.allclose(gradient(packed), expected, atol=1e-3 * float(expected.abs().max()))


def test_attention_by_sequence_knows_windows_and_says_what_it_does_not():
    from training.packed import attend

    torch.manual_seed(0)
    q, k, v = torch.randn(1, 4, 9, 8), torch.randn(1, 2, 9, 8), torch.randn(1, 2, 9, 8)
    begin = torch.tensor([0, 5, 9], dtype=torch.int32)
    place, of = torch.arange(9), torch.tensor([0] * 5 + [1] * 4)
    for window in (None, 1, 3, 20):
        seen = (of[:, None] == of) & (place[:, None] >= place) & (place[:, None] - place < (window or 9))
        expected = torch.nn.functional.scaled_dot_product_attention(q, k, v, attn_mask=seen, enable_gqa=True).transpose(1, 2)
        assert torch.allclose(attend(None, q, k, v, None, sliding_window=window, cu_seq_lens_q=begin, max_length_q=5)[0], expected, atol=1e-5)
    for what in ({"softcap": 30.0}, {"s_aux": torch.zeros(4)}, {"cu_seq_lens_q": None}):
        with pytest.raises(NotImplementedError, match="packing=false"):
            attend(None, q, k, v, None, **{"cu_seq_lens_q": begin, "max_length_q": 5, **what})


@pytest.mark.slow
def test_training_never_reads_the_truth(tmp_path):
    """Without the truth files the same weights come out."""
    made = []
    for keep in (True, False):
        config = toy_config(tmp_path / str(keep))
        run_stages(config, "generate")
        if not keep:
            (stage_dir(config, "generate") / "truth.jsonl").unlink()
        run_stages(config, "anonymise", "prepare", "pretrain", "sft", "reward", "dpo", "ppo")
        made.append({place: weights(Path(config.run_dir) / place) for place in ("sft/adapter", "reward/members/0", "dpo/adapter", "ppo/adapter")})
    for place in made[0]:
        assert all(torch.equal(made[0][place][k], made[1][place][k]) for k in made[0][place]), place


@pytest.mark.slow
def test_no_pairs_says_what_to_collect(toy):
    path = stage_dir(toy, "prepare") / "preferences" / "train.jsonl"
    rows = [row for _, row in read_jsonl(path)]
    write_jsonl(path, [])
    try:
        with pytest.raises(StageError, match="collect ratings of two drafts"):
            run_stages(toy, "dpo")
    finally:
        write_jsonl(path, rows)


@pytest.mark.slow
def test_a_model_that_is_nowhere_is_one_line(toy):
    config = toy.copy()
    config.model.from_scratch, config.model.name = False, "/no/such/model"
    with pytest.raises(StageError, match=r"model.name=/no/such/model is neither a local folder"):
        run_stages(config, "sft")


@pytest.mark.slow
def test_a_trainer_key_that_trl_does_not_know_is_named(toy):
    config = load_config(["+sft.trainer.lerning_rate=1", f"run_dir={toy.run_dir}"])
    config.fingerprint = {"seed": 1}
    with pytest.raises(StageError, match=r"sft.trainer has \['lerning_rate'\]"):
        run_stages(config, "sft")
