"""Most archives hold one reply a prompt: how well does a reward model learn from single ratings alone, on the same held-out pairs?

    python -m benchmarks.one_reply run_dir=runs/dev [out=benchmarks/one_reply.md] [key=value of conf/]

The run's anonymised archive is cut: drafts, their ratings and edits go, what is left is one reply a prompt, some of them rated. From that the stages `prepare`, `sft`
and `reward` are run anew (under `<run_dir>/one_reply/`, not trained again where they are there). Both reward models are asked which of two drafts the
raters preferred, on the pairs of the whole archive whose customers neither model saw; intervals draw whole conversations anew.
"""

from __future__ import annotations

import datetime
import json
import sys
from pathlib import Path

import numpy as np
from omegaconf import OmegaConf

from benchmarks.shapes import link, made_from, shown
from data_prep import prepare
from data_prep.artifacts import recorded_config, require, stage_dir, stage_output
from data_prep.conversation import read_jsonl, write_json, write_jsonl
from data_prep.statistics import drawn_groups
from training import reward, sft
from training.ensemble import load_rewards, rewards
from training.judgements import Judged, read
from training.models import load_tokenizer, quieten
from training.reward_gate import calibration_error, chances, gaps, pairs_of


def cut(config, source: Path) -> dict[str, int]:
    """The archive without second replies: no drafts, no edits, no ratings of drafts."""
    conversations = [{**row, "messages": [{key: value for key, value in message.items() if key != "drafts"} for message in row["messages"]]} for _, row in read_jsonl(source / "conversations.jsonl")]
    feedback = [row for _, row in read_jsonl(source / "feedback.jsonl")]
    kept = [row for row in feedback if not row.get("draft_id") and row["kind"] != "edit"]
    with stage_output(config, "anonymise") as out:
        write_jsonl(out / "conversations.jsonl", conversations)
        write_jsonl(out / "feedback.jsonl", kept)
    return {"feedback": len(feedback), "kept": len(kept), "ratings": sum(row["kind"] == "rating" for row in kept)}


def judged_by(config, tokenizer, held_out: list[Judged]) -> np.ndarray:
    """By how much each held-out pair's preferred reply is above the other one, in the reward of a run's ensemble."""
    source = stage_dir(config, "reward")
    model, calibration = load_rewards(config, tokenizer, source), json.loads((source / "calibration.json").read_text())
    scores = rewards(model, calibration, [one.tree for one in held_out], [one.replies() for one in held_out]).numpy()
    return gaps(scores, held_out, [(pair.better, pair.worse) for pair in pairs_of(held_out)])


def main(arguments: list[str]) -> dict:
    options = dict(argument.split("=", 1) for argument in arguments)
    run_dir = Path(options.pop("run_dir", "runs/dev"))
    out = Path(options.pop("out", run_dir / "one_reply/one_reply.md"))
    overrides = [f"{key}={value}" for key, value in options.items()]
    config = recorded_config(run_dir, "reward", overrides)
    folder = run_dir / "one_reply" / made_from(config, ("anonymise", "pretrain", "reward"), overrides)
    quieten(config)
    tokenizer = load_tokenizer(config)
    alone = config.copy()
    OmegaConf.set_struct(alone, False)
    alone.run_dir, alone.fingerprint, alone.reward.sources = str(folder), {"benchmark": "one_reply"}, ["ratings"]
    link(run_dir, folder, "pretrain")
    alone.anonymise.signoff = "waived"          # who has read the archive has read this part of it
    for stage in (prepare, sft, reward):
        name = stage.__name__.split(".")[-1]
        if not (stage_dir(alone, name) / "manifest.json").is_file():
            if name == "prepare":
                cut(alone, require(config, "anonymise", "the benchmark"))
            stage.run(alone)
    held_out = [one for split in ("validation", "test") for one in read(config, tokenizer, split)[0]]
    found = {"pairs and ratings": judged_by(config, tokenizer, held_out), "one reply a prompt, ratings alone": judged_by(alone, tokenizer, held_out)}
    right = {name: (each > 0).astype(float) for name, each in found.items()}
    n, drawn = len(right["pairs and ratings"]), drawn_groups([pair.better[0] for pair in pairs_of(held_out)])

    def interval(values: np.ndarray) -> str:
        low, high = np.quantile([values[chosen].mean() for chosen in drawn], [0.025, 0.975])
        return f"{values.mean():.3f} [{low:.3f}, {high:.3f}]"

    lines = ["# One reply a prompt", "", f"{datetime.date.today()}, one training (seed {config.seed}): {shown('benchmarks.one_reply', arguments)}", "",
             f"Which of two drafts the raters preferred, on {n} held-out pairs:", "", "| the reward model learned from | right [95 %] | calibration error |", "|---|---|---|"]
    for name, each in right.items():
        lines.append(f"| {name} | {interval(each)} | {calibration_error(chances(found[name])):.3f} |")
    lines += ["", f"Difference, paired: {interval(right['one reply a prompt, ratings alone'] - right['pairs and ratings'])}.", ""]
    out.parent.mkdir(parents=True, exist_ok=True)
    out.write_text("\n".join(lines), encoding="utf-8")
    results = {"n": n, **{name: float(each.mean()) for name, each in right.items()}, "gate": json.loads((stage_dir(alone, "reward") / "gate.json").read_text())}
    write_json(folder / "one_reply.json", results)
    print("\n".join(lines))
    return results


if __name__ == "__main__":
    main(sys.argv[1:])
