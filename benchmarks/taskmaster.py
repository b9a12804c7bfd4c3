"""Real ratings: does the reward model learn from people's 0/1 judgements of replies? Beside a logistic regression on n-grams, same rows, same run.

    python -m benchmarks.taskmaster data=<folder of public data> [run_dir=runs/taskmaster] [key=value of conf/]

Taskmaster-3 and -4 (PERL, arXiv:2403.10704) hold 6,895 judgements of a generated reply, text or API call, to a dialogue. The base is pretrained and
fine-tuned on the dialogues of the training part alone, then the reward stage learns from its judgements as single ratings (one reply per prompt,
no pairs). Dialogues that begin alike are in one part. AUC on the other part: by data set, texts and API calls apart, with intervals
that draw whole groups of dialogues anew.
"""

from __future__ import annotations

import hashlib
import itertools
import json
import os
import random
import sys
from pathlib import Path

import numpy as np
import torch

from conf.load import load_config
from data_prep.artifacts import StageError, stage_dir, stage_output
from data_prep.conversation import Message, tool_call, write_json, write_jsonl
from data_prep.statistics import drawn_groups
from training import pretrain, reward, sft
from training.ensemble import leaf, load_rewards, rewards
from training.models import load_tokenizer, quieten
from training.reward_gate import WORDS
from training.trees import grow

HERE = Path(__file__).parent
SETS = {"TM-3": "TM-3-2020", "TM-4": "TM-4-2024"}
TEST = 0.3
RESULT = 300             # characters of an API's answer that are kept
SMALL = ["company=null", "data=jsonl", "data.conversations=none", "reward.sources=[ratings]", "pretrain.topic_drills=0", "pretrain.drills=3200", "pretrain.conversations=4800",
         "sft.trainer.num_train_epochs=1", "reward.trainer.max_steps=200", "reward.gate.spoiled=0.0"]


def messages_of(turns: list[dict]) -> list[Message]:
    """A dialogue's turns as chat messages: the agent's API calls as tool calls, an API's answer (its beginning) as a tool message."""
    made: list[Message] = []
    for turn in turns:
        if turn["role"] == "user":
            made.append({"role": "user", "content": turn.get("text") or ""})
        elif turn["role"] == "api":
            made.append({"role": "tool", "content": json.dumps(turn.get("response"))[:RESULT], "tool_call_id": "call_0"})
        else:
            calls = [tool_call(name, arguments if isinstance(arguments, dict) else {"value": arguments}) for name, arguments in (turn.get("api") or {}).items()][:1]
            made.append({"role": "assistant", "content": turn.get("text") or "", **({"tool_calls": calls} if calls else {})})
    return made


def read(folder: Path) -> list[dict]:
    """Every judgement: {"set", "dialogue", "group", "prompt", "reply", "kind", "label"}. A group is all dialogues of a set that open with the same words of the customer;
    judgements whose dialogues begin with the same three turns are read as of one, a tree."""
    found = []
    for name, place in SETS.items():
        for path in sorted((folder / place / "reward").glob("*.json")):
            for row in json.loads(path.read_text()):
                prompt, (reply,) = messages_of(json.loads(row["context"])), messages_of([json.loads(row["generation"])])
                prompt = prompt or [{"role": "system", "content": name}]          # where the agent speaks first
                opening = next((m["content"].lower() for m in prompt if m["role"] == "user"), "")
                beginning = hashlib.sha256(json.dumps([name, opening, *prompt[:3]]).encode()).hexdigest()[:16]          # each row has an id of its own, though many are of one dialogue
                found.append({"set": name, "dialogue": beginning, "group": f"{name} {opening}", "prompt": prompt, "reply": reply, "kind": "api" if reply.get("tool_calls") else "text", "label": row["reward"] > 0.5})
    if not found:
        raise StageError(f"{folder} has no {', '.join(SETS.values())} with reward/*.json: give the folder that holds Taskmaster with data=<folder>")
    return found


def is_test(row: dict) -> bool:
    return int(hashlib.sha256(row["group"].encode()).hexdigest()[:8], 16) / 2**32 < TEST


def prepared(config, rows: list[dict]) -> None:
    """What the stage `prepare` would leave: the training dialogues' agent turns for SFT, the judgements as agents' thumbs."""
    told = sorted({"\n".join(json.dumps(m) for m in row["prompt"]) for row in rows if not is_test(row)})
    whole = [text for text, following in zip(told, [*told[1:], ""], strict=True) if not following.startswith(text)]      # what another one goes on from is in that one
    longest = [[json.loads(line) for line in text.split("\n")] for text in whole]
    targets = [{"conversation_id": f"d-{number}", "message_index": index, "locale": "en", "topic": None, "stars": None, "prompt": talk[:index], "completion": [talk[index]]}
               for number, talk in enumerate(longest) for index, m in enumerate(talk) if m["role"] == "assistant" and any(x["role"] == "user" for x in talk[:index])]
    judged = [{"conversation_id": row["dialogue"], "message_index": len(row["prompt"]), "locale": "en", "topic": row["kind"], "prompt": row["prompt"], "completion": [row["reply"]],
               "by": "agent", "rater": "r", "label": row["label"], "test": is_test(row)} for row in rows]
    with stage_output(config, "prepare") as out:
        write_json(out / "report.json", {"raters": {}})
        for split in ("train", "validation", "test"):
            write_jsonl(out / f"sft/{split}.jsonl", targets if split == "train" else [])
            write_jsonl(out / f"preferences/{split}.jsonl", [])
            write_jsonl(out / f"unpaired/{split}.jsonl", [row for row in judged if row["test"] == (split == "test") and split != "validation"])


def n_grams(row: dict, tokenizer) -> torch.Tensor:
    """Counts of the reply's tokens and pairs of them, hashed; and whether it is a call."""
    ids = tokenizer.apply_chat_template([row["reply"]], return_dict=True)["input_ids"]
    counts = torch.zeros(WORDS)
    for gram in [*((i,) for i in ids), *itertools.pairwise(ids)]:
        counts[hash(gram) % WORDS] += 1
    return counts.sqrt()


def regression(train: list[dict], test: list[dict], tokenizer) -> np.ndarray:
    """Scores of the test rows by a logistic regression on n-grams, with a ridge."""
    x, y = torch.stack([n_grams(row, tokenizer) for row in train]), torch.tensor([float(row["label"]) for row in train])
    weight, bias = torch.zeros(WORDS, requires_grad=True), torch.zeros((), requires_grad=True)
    optimizer = torch.optim.LBFGS([weight, bias], max_iter=60, line_search_fn="strong_wolfe")

    def loss() -> torch.Tensor:
        optimizer.zero_grad()
        value = torch.nn.functional.binary_cross_entropy_with_logits(x @ weight + bias, y) + 3e-3 * weight.square().sum()
        value.backward()
        return value

    optimizer.step(loss)
    with torch.no_grad():
        return (torch.stack([n_grams(row, tokenizer) for row in test]) @ weight).numpy()


def auc(scores: np.ndarray, labels: np.ndarray) -> float:
    """The chance that a good reply scores above a bad one, half for equals (Mann-Whitney)."""
    good, bad = np.sort(scores[labels]), np.sort(scores[~labels])
    if not len(good) or not len(bad):
        return float("nan")
    below, upto = np.searchsorted(bad, good, "left"), np.searchsorted(bad, good, "right")
    return float((below + upto).sum() / 2 / len(good) / len(bad))


def compared(ours: np.ndarray, theirs: np.ndarray, labels: np.ndarray, groups: list[str]) -> dict:
    """Both AUCs and their difference, with 95 % intervals from drawing groups anew (the same draws for both)."""
    drawn = np.array([(auc(ours[chosen], labels[chosen]), auc(theirs[chosen], labels[chosen])) for chosen in drawn_groups(groups)])
    drawn = drawn[~np.isnan(drawn).any(1)]
    found = {"n": len(labels), "good": float(labels.mean()), "groups": len(set(groups))}
    for name, value, draws in (("ours", auc(ours, labels), drawn[:, 0]), ("n-grams", auc(theirs, labels), drawn[:, 1]), ("difference", auc(ours, labels) - auc(theirs, labels), drawn[:, 0] - drawn[:, 1])):
        found[name] = {"value": value, "low": float(np.quantile(draws, 0.025)), "high": float(np.quantile(draws, 0.975))}
    return found


def main(arguments: list[str]) -> dict:
    options = dict(argument.split("=", 1) for argument in arguments)
    data = Path(options.pop("data", None) or os.environ.get("SUPPORTLOOP_DATA") or "data")
    rows = read(data / "taskmaster" if (data / "taskmaster").is_dir() else data)
    run_dir = options.pop("run_dir", "runs/taskmaster")
    config = load_config([*SMALL, f"run_dir={run_dir}", *(f"{key}={value}" for key, value in options.items())])
    config.fingerprint = {"benchmark": "taskmaster", "options": arguments}
    quieten(config)
    if not (stage_dir(config, "prepare") / "manifest.json").is_file():
        prepared(config, rows)
    for stage in (pretrain, sft, reward):
        if not (stage_dir(config, stage.__name__.split(".")[-1]) / "manifest.json").is_file():
            random.seed(config.seed)
            torch.manual_seed(config.seed)
            stage.run(config)
    tokenizer = load_tokenizer(config)
    model, calibration = load_rewards(config, tokenizer, stage_dir(config, "reward")), json.loads((stage_dir(config, "reward") / "calibration.json").read_text())
    made = sorted(((row, leaf(tokenizer, row["prompt"], row["reply"], config.model.max_tokens)) for row in rows if is_test(row)), key=lambda each: each[0]["dialogue"])
    dialogues = [[each for each in some if each[1]] for _, some in itertools.groupby(made, key=lambda each: each[0]["dialogue"])]
    trees = [grow(ids for _, (ids, _) in some) for some in dialogues]
    ours = rewards(model, calibration, trees, [[path[-length:] for path, (_, (_, length)) in zip(tree.leaves, some, strict=True)] for tree, some in zip(trees, dialogues, strict=True)]).numpy()
    test = [row for some in dialogues for row, _ in some]
    results = {"rows": {}, "judgements": len(rows), "left_out": sum(is_test(row) for row in rows) - len(test)}
    for name in SETS:
        for kind in ("text", "api"):
            mine = [k for k, row in enumerate(test) if (row["set"], row["kind"]) == (name, kind)]
            train = [row for row in rows if (row["set"], row["kind"]) == (name, kind) and not is_test(row)]
            labels = np.array([test[k]["label"] for k in mine])
            results["rows"][f"{name}, {kind}"] = compared(ours[mine], regression(train, [test[k] for k in mine], tokenizer), labels, [test[k]["group"] for k in mine])
    for name, found in results["rows"].items():
        print(f"{name:<10} n {found['n']:>4}  " + "  ".join(f"{key} {found[key]['value']:.3f} [{found[key]['low']:.3f}, {found[key]['high']:.3f}]" for key in ("ours", "n-grams", "difference")))
    write_json(Path(run_dir) / "taskmaster.json", results)
    return results


if __name__ == "__main__":
    main(sys.argv[1:])
