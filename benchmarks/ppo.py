"""Our PPO beside TRL 1.12's, the last line of TRL that had one: time and memory of a step, and the reward reached with as many samples.

    python -m benchmarks.ppo trl_python=.venv-trl/bin/python [run_dir=runs/dev] [shape=135m] [device=cpu] [out=benchmarks/ppo.md]

Both are given the same prompts (token ids), replies to each, batch, reply length, epochs, optimiser steps, constant learning rate, threads, LoRA rank and one
reward model; each runs in a process of its own. Time and memory on random weights of `shape`, ours also with the ensemble and the held-out model it has by default. TRL's
value model is a whole model that is trained whole, and it scores all that it has drawn in one batch: there is one setting for both. Where several replies are drawn to
a prompt, as ours does by default, TRL's data set has it as often: it reads each as a row, ours the prompt once, in micro-batches of as many tokens. With `run_dir`, a finished run
of the pipeline, also the tiny model: both learn from its reward ensemble, and their policies are compared on held-out prompts. Where one reply is drawn to a prompt ours starts its value model from a
reward model, where several are it has none; it adapts the coefficient of KL, TRL's is fixed: the distance that each went from SFT is in the table.
On a GPU (`shape=8b device=cuda`) also the utilisation of the update, against a matrix multiplication in the same run.
"""

from __future__ import annotations

import datetime
import json
import random
import sys
import time
from pathlib import Path
from statistics import mean

import torch

from benchmarks.shapes import LORA, ceiling, machine, made_from, peak_bytes, random_adapter, random_base, shown, side, sizes, tokenizer_of, wait
from conf.load import load_config
from data_prep.artifacts import recorded_config, require, stage_dir
from data_prep.conversation import read_jsonl, write_json
from data_prep.statistics import paired_difference
from training import ppo
from training.adapters import OneBase
from training.alarms import measured
from training.ensemble import held_out_rewards, load_rewards, rewards
from training.group import Group
from training.models import load_candidate, load_tokenizer, quieten
from training.rollouts import Episode, Local, prompt_ids, several
from training.trees import grow

PROMPT, REPLY, BATCH, MICRO = 64, 48, 16, 4            # tokens and rows of the timed steps
LONG_PROMPT = 512                                      # on a GPU: what a support conversation has behind it
THREADS = 2                                            # of each side on a CPU
REPLIES = 1, 4                                         # to a prompt; the batch is so many fewer prompts
REACHED = {"steps": 12, "batch": 64, "drafts": 4, "epochs": 2, "minibatches": 2, "reply_tokens": 64}          # batch: replies
LEARNING_RATES = (1e-4, 3e-4, 6e-4, 1.2e-3)            # each side is given each
HELD_OUT = 512


# ---------------------------------------------------------------------------------------------------------------------
# Our side of it: `python -m benchmarks.ppo ours spec.json result.json`
# ---------------------------------------------------------------------------------------------------------------------


def ours(spec: dict) -> dict:
    """Steps of training/ppo.py on given prompts; seconds of each, and what it held."""
    config = configuration(spec)
    quieten(config)
    settings, group, folder = config.ppo, Group(), Path(spec["base"])
    if spec["run_dir"]:
        tokenizer = load_tokenizer(config)
        model = ppo.load_players(config, tokenizer)
        calibration = json.loads((require(config, "reward", "the benchmark") / "calibration.json").read_text())
    else:
        tokenizer = tokenizer_of(folder)
        model, calibration = players(config, tokenizer, folder, spec["members"])
    optimizer = torch.optim.AdamW([{"params": model.parameters("policy")}, {"params": model.parameters("value")}], lr=spec["learning_rate"], betas=(0.9, 0.95), weight_decay=0.0)
    draw, found, beta = Local(model, "policy", spec["reply_tokens"]), {"rollout": [], "step": [], "update": []}, settings.beta
    for step, prompts in enumerate(spec["prompts"]):
        started = time.perf_counter()
        episodes = [Episode(turns) for turns in several(draw, prompts, spec["drafts"], spec["seed"] + step)]
        drawn = time.perf_counter()
        samples = ppo.appraise(model, episodes, lambda _, trees, replies: rewards(model, calibration, trees, replies), beta, settings, group)
        watch = (lambda trees, replies: held_out_rewards(model, calibration, trees, replies)) if "held_out" in model.heads else lambda *_: torch.zeros(1)
        entry = measured(samples, watch, group)
        scored = time.perf_counter()
        ppo.update(model, optimizer, samples, settings, group)
        wait(spec["device"])
        beta = ppo.adapted(beta, entry["kl"], settings.kl_target)
        ended = time.perf_counter()
        found["rollout"].append(drawn - started)
        found["update"].append(ended - scored)
        found["step"].append(ended - started)
    model.save("policy", Path(spec["folder"]) / "policy")
    found["peak"] = peak_bytes(spec["device"])
    if spec["device"] == "cuda":
        decoder, head = sizes(model.base)
        tokens, said = sum(len(s.tree.ids) for s in samples) * settings.epochs, sum(len(s.old) for s in samples) * settings.epochs
        flops = 4 * ((1 + ("value" in model.heads)) * decoder * tokens + head * said)          # policy and value, forward and back to the adapters: 4 N a token; the vocabulary where the policy spoke; nothing twice for recomputing
        top = ceiling("cuda", torch.bfloat16)
        found |= {"update_tokens_per_second": tokens / found["update"][-1], "mfu": flops / found["update"][-1] / top, "ceiling": top}
    return found


def players(config, tokenizer, folder: Path, members: int) -> tuple[OneBase, dict]:
    """A random base with policy, reference, so many reward models (one more watching where they are several) and, where one reply is drawn to a prompt, a value model, none of them trained."""
    model = OneBase(config, tokenizer)
    speaks, judges = random_adapter(model.base, folder / "adapters/speaks"), random_adapter(model.base, folder / "adapters/judges", head=True)
    for name in ("policy", "ref"):
        model.add(name, speaks)
    for name in [*(f"reward_{k}" for k in range(members)), *(["value"] if config.ppo.drafts == 1 else []), *(["held_out"] if members > 1 else [])]:
        model.add(name, judges)
    plain = {"mean": 0.0, "std": 1.0}
    return model, {"members": [plain] * members, "held_out": plain, "spread_penalty": 0.5}


def configuration(spec: dict):
    own = [f"ppo.epochs={spec['epochs']}", f"ppo.minibatches={spec['minibatches']}", f"ppo.batch_tokens={spec['batch_tokens']}", f"ppo.drafts={spec['drafts']}", "ppo.temperature=1.0"]          # as TRL's side draws
    if spec["run_dir"]:
        return recorded_config(Path(spec["run_dir"]), "ppo", [*spec["overrides"], *own, "ppo.start=sft"])
    gpu = spec["device"] == "cuda"
    return load_config([f"hardware={'gpu' if gpu else 'cpu'}", "model.from_scratch=false", f"model.name={spec['base']}", f"model.dtype={'bfloat16' if gpu else 'float32'}", *own])


# ---------------------------------------------------------------------------------------------------------------------
# Both sides
# ---------------------------------------------------------------------------------------------------------------------


def timed(trl_python: str, shape: str, device: str, steps: int, folder: Path) -> dict[int, dict[str, dict]]:
    """Steps of both on random weights, by replies to a prompt; the first step, in which memory is first asked for, is left out of the times."""
    base, rng = random_base(shape, folder / shape, device), random.Random(0)
    prompt = LONG_PROMPT if device == "cuda" else PROMPT
    spec = {"base": str(base), "run_dir": None, "device": device, "seed": 0, "members": 1, "threads": THREADS, "epochs": 2, "minibatches": 1, "micro": MICRO, "batch_tokens": MICRO * (prompt + REPLY),
            "reply_tokens": REPLY, "learning_rate": 1e-5, "lora": {"r": LORA.r, "lora_alpha": LORA.lora_alpha, "target_modules": "all-linear"}, "checkpointing": False}
    sides = (("ours, one reward model", sys.executable, ["benchmarks.ppo", "ours"], {}), ("ours, three and one that watches", sys.executable, ["benchmarks.ppo", "ours"], {"members": 3}),
             ("TRL 1.12", trl_python, ["benchmarks.ppo_trl"], {}), ("TRL 1.12, checkpointing (its default)", trl_python, ["benchmarks.ppo_trl"], {"checkpointing": True}))
    found = {}
    for drafts in REPLIES:
        asked = {"drafts": drafts, "prompts": [[[rng.randrange(100, 500) for _ in range(prompt)] for _ in range(BATCH // drafts)] for _ in range(steps + 1)]}
        found[drafts] = {}
        for name, python, module, changes in sides:
            print(f"{name}, {drafts} to a prompt", file=sys.stderr, flush=True)
            each = side(python, module, {**spec, **asked, **changes}, folder / f"{drafts}_{name.partition(' (')[0].replace(',', '').replace(' ', '_')}")
            found[drafts][name] = {**each, "steps": each["step"][1:], "rollout": mean(each["rollout"][1:]), "step": mean(each["step"][1:])}
    return found


def reached(trl_python: str, run_dir: Path, overrides: list[str], folder: Path) -> dict[str, dict]:
    """Both learn from the run's reward ensemble with as many samples; what replies to held-out prompts are worth then, the ensemble says and the held-out model."""
    config = recorded_config(run_dir, "ppo", overrides)
    quieten(config)
    tokenizer, rng = load_tokenizer(config), random.Random(0)
    room = REACHED["reply_tokens"]

    def prompts(split: str, most: int) -> list[list[int]]:
        rows = [row for _, row in read_jsonl(stage_dir(config, "prepare") / f"prompts/{split}.jsonl")]
        return [prompt_ids(tokenizer, row["prompt"], config.model.max_tokens, room) for row in rng.sample(rows, min(most, len(rows)))]

    folder = folder / made_from(config, ("sft", "reward"), overrides)
    merged = folder / "merged"
    if not (merged / "config.json").is_file():
        load_candidate(config, "sft").save_pretrained(merged)
        tokenizer.save_pretrained(merged)
    asked = REACHED["batch"] // REACHED["drafts"]
    train, held_out = prompts("train", REACHED["steps"] * asked), prompts("validation", HELD_OUT)
    asked = min(asked, len(train))
    batch = asked * REACHED["drafts"]
    spec = {**REACHED, "base": str(merged), "run_dir": str(run_dir.resolve()), "overrides": overrides, "device": "cpu", "seed": 0, "threads": THREADS, "members": 3, "micro": batch, "batch_tokens": 8192, "checkpointing": False,
            "prompts": [train[k:k + asked] for k in range(0, len(train) - asked + 1, asked)],
            "lora": {"r": config.sft.lora.r, "lora_alpha": config.sft.lora.alpha, "target_modules": config.sft.lora.target_modules}}
    model = load_rewards(config, tokenizer, stage_dir(config, "reward"))
    calibration = json.loads((stage_dir(config, "reward") / "calibration.json").read_text())
    sft = OneBase(config, tokenizer)
    sft.add("sft", stage_dir(config, "sft") / "adapter")

    def judged(policy: Path | None, base: Path) -> dict[str, list[float]]:
        """The rewards of one drawn reply to each held-out prompt, and how much likelier each is than SFT finds it (its mean is the KL)."""
        speaker = OneBase(configuration_of(base, config), tokenizer)
        speaker.add("policy", policy or random_adapter(speaker.base, folder / "nothing"))
        turns = Local(speaker, "policy", room)(held_out, 1)
        trees = [grow([turn.prompt + turn.reply]) for turn in turns]
        replies = [[tree.leaves[0][-len(turn.reply):]] for tree, turn in zip(trees, turns, strict=True)]
        said = [torch.cat(each.log_likelihoods(name, trees, replies)) for each, name in ((speaker, "policy"), (sft, "sft"))]
        return {"kl": (said[0] - said[1]).tolist(), "ensemble": rewards(model, calibration, trees, replies).tolist(), "held_out": held_out_rewards(model, calibration, trees, replies).tolist()}

    own_base = stage_dir(config, "pretrain") / "model" if config.model.from_scratch else Path(config.model.name)
    found = {"SFT": {**judged(None, merged), "seconds": 0.0, "steps": len(spec["prompts"]), "batch": batch}}
    for name, python, module, base in (("ours", sys.executable, ["benchmarks.ppo", "ours"], own_base), ("TRL 1.12", trl_python, ["benchmarks.ppo_trl"], merged)):
        for rate in LEARNING_RATES:
            took = side(python, module, {**spec, "learning_rate": rate}, folder / f"{name}_{rate:g}".replace(" ", "_"))
            found[f"{name}, learning rate {rate:g}"] = {**judged(folder / f"{name}_{rate:g}".replace(" ", "_") / "policy", base), "seconds": sum(took["step"])}
    return found


def configuration_of(base: Path, config):
    return load_config(["model.from_scratch=false", f"model.name={base}", f"model.max_tokens={config.model.max_tokens}"])


def main(arguments: list[str]) -> dict:
    options = dict(argument.split("=", 1) for argument in arguments)
    trl_python, run_dir, shape, device = options.pop("trl_python"), options.pop("run_dir", None), options.pop("shape", "135m"), options.pop("device", "cpu")
    steps, out, work = int(options.pop("steps", 3)), Path(options.pop("out", "runs/bench_ppo/ppo.md")), Path(options.pop("work", "runs/bench_ppo")).resolve()
    results = {"timed": timed(trl_python, shape, device, steps, work)}
    lines = ["# PPO beside TRL 1.12's", "", f"{datetime.date.today()}, {machine(device)}: {shown('benchmarks.ppo', arguments)}", "",
             f"{BATCH} replies of {REPLY} tokens a step to prompts of {LONG_PROMPT if device == 'cuda' else PROMPT}, micro-batches of {MICRO} rows (ours of as many tokens), 2 epochs of one optimiser step each, a random Llama of shape {shape}, LoRA r={LORA.r}, "
             f"mean of {steps} steps (from the fastest to the slowest). TRL trains a value model whole, ours an adapter, and none where several replies to a prompt are each other's baseline."]
    for drafts, sides in results["timed"].items():
        trl = sides["TRL 1.12"]
        lines += ["", f"{BATCH // drafts} prompts, {'one reply' if drafts == 1 else f'{drafts} replies'} to each{'' if drafts == 1 else ', as ours draws them by default: the prompt is read once for all, TRL reads a row a reply'}:", "",
                  "| | seconds a step | rollout | the rest | time / TRL's | peak memory | memory / TRL's |", "|---|---|---|---|---|---|---|"]
        for name, each in sides.items():
            low, high = min(each["steps"]), max(each["steps"])
            lines.append(f"| {name} | {each['step']:.2f} ({low:.2f} to {high:.2f}) | {each['rollout']:.2f} | {each['step'] - each['rollout']:.2f} | {each['step'] / trl['step']:.2f} | {each['peak'] / 2**30:.2f} GiB | {each['peak'] / trl['peak']:.2f} |")
        lines += [f"\n{name}: update {each['update_tokens_per_second']:.0f} tokens/s, {each['mfu']:.0%} of the {each['ceiling'] / 1e12:.0f} TFLOP/s that a matrix multiplication reached."
                  for name, each in sides.items() if "mfu" in each]
    if run_dir:
        results["reached"] = reached(trl_python, Path(run_dir), [f"{key}={value}" for key, value in options.items()], work)
        base = results["reached"]["SFT"]
        mine = max((each for name, each in results["reached"].items() if name.startswith("ours")), key=lambda each: mean(each["ensemble"]))
        lines += ["", f"Reward after {base['steps']} steps of {base['batch']} single replies, {REACHED['drafts']} to a prompt, with the tiny model, on {len(base['ensemble'])} held-out prompts (95 %, paired; one seed; each side's best rate is its best on these same prompts):", "",
                  "| | ensemble | over SFT | held-out reward model | nats a reply from SFT | our best over it (ensemble) | seconds |", "|---|---|---|---|---|---|---|"]
        for name, each in results["reached"].items():
            gain, over = paired_difference(each["ensemble"], base["ensemble"]), paired_difference(mine["ensemble"], each["ensemble"])
            cells = ["" if skip else f"{d[0]:+.3f} [{d[1]:+.3f}, {d[2]:+.3f}]" for d, skip in ((gain, each is base), (over, each is base or each is mine))]
            lines.append(f"| {name} | {mean(each['ensemble']):.3f} | {cells[0]} | {mean(each['held_out']):.3f} | {mean(each['kl']):.2f} | {cells[1]} | {each['seconds']:.0f} |")
    out.parent.mkdir(parents=True, exist_ok=True)
    out.write_text("\n".join([*lines, ""]), encoding="utf-8")
    write_json(work / "ppo.json", results)
    print("\n".join(lines))
    return results


if __name__ == "__main__":
    if sys.argv[1:2] == ["ours"]:
        Path(sys.argv[3]).write_text(json.dumps(ours(json.loads(Path(sys.argv[2]).read_text()))))
    else:
        main(sys.argv[1:])
