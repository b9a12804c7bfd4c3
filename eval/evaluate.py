"""Stage `evaluate`: every candidate talks to the same simulated customers, and is asked what it remembers; gates, scorecard, decision, report.

    evaluate/scorecard.json     {"candidates": {"sft": {"success": {"value", "low", "high", "n", "gate"}, …}}}
    evaluate/decision.json      {"winner": "dpo" or null, "reasons": […]}
    evaluate/report.html        pictures, tables, and failed talks to read
    evaluate/talks/             every simulated talk of every candidate
    evaluate/asked/             of every candidate what it remembers, and its replies to held-out prompts

Gates are read on unseen wordings. What could not be measured says "not evaluated", and a hard gate that was not evaluated refuses.
Who plants no canaries takes their gate away too, `~evaluate.gates.exposure`: to leave it out is a decision, not an oversight.
"""

from __future__ import annotations

import json
from collections.abc import Iterator
from pathlib import Path

from omegaconf import OmegaConf

from data_prep.artifacts import require, stage_dir, stage_output
from data_prep.company.pack import load_pack
from data_prep.conversation import read_jsonl, write_json, write_jsonl
from data_prep.statistics import paired_difference
from eval import report
from eval.memorisation import continued, measure_exposure
from eval.metrics import HARMS, SIMULATED
from eval.regurgitation import beginnings, regurgitation, replies_of
from eval.replies import held_out, sentence_of, write_replies
from eval.simulator import draw_talks, simulate
from serve.engine import Sampling
from serve.engine.embedded import Embedded
from training.models import load_candidate, load_tokenizer
from training.workers import side_by_side

MAX_HELD_OUT = 200      # held-out replies that are generated and ranked, per candidate
MAX_BEGUN = 100         # training replies whose beginning is given away, per candidate
SPLITS = "unseen", "seen"   # wordings of the simulated customers
EXPOSURES = {"exposure": "repeated", "exposure_told": "told"}       # metric: kind of canary


def run(config) -> None:
    settings = config.evaluate
    candidates = [name for name in settings.candidates if exists(config, name)]
    require(config, "prepare", "evaluate")
    with stage_output(config, "evaluate") as out:
        side_by_side(config, examine, [(name, Path(out)) for name in candidates])
        outcomes = {name: {split: list(talks_of(Path(out), name, split)) for split in (SPLITS if config.company else ())} for name in candidates}
        scorecard = {name: score(outcomes[name], **json.loads((out / f"asked/{name}.json").read_text()), gates=OmegaConf.to_container(settings.gates)) for name in candidates}
        compare(scorecard, outcomes)
        decision = decide(scorecard, list(settings.gates))
        write_json(out / "scorecard.json", {"candidates": scorecard})
        write_json(out / "decision.json", decision)
        report.write(config, out / "report.html", scorecard, decision, outcomes)
        out.summary(headline(scorecard, decision), winner=decision["winner"])


def examine(config, name: str, folder: Path) -> None:
    """Ask one candidate everything, and write its talks by split, what it remembers and its replies to held-out prompts; one that was asked is not asked again."""
    if (folder / f"asked/{name}.json").is_file():
        return
    settings, prepared, tokenizer = config.evaluate, stage_dir(config, "prepare"), load_tokenizer(config)
    rows = [row for _, row in read_jsonl(prepared / "sft/test.jsonl")][:MAX_HELD_OUT]
    engine, sampling = Embedded(load_candidate(config, name), tokenizer, config.model.max_tokens), Sampling(max_tokens=config.model.max_new_tokens)
    outcomes = {}
    if config.company:
        for split, count in zip(SPLITS, (settings.conversations, settings.seen_conversations), strict=True):
            talks = draw_talks(load_pack(config.company), count, split, settings.seed)
            outcomes[split] = simulate(engine, talks, batch_size=settings.batch_size, max_replies=settings.max_replies, sampling=sampling, label=f"{name}, {split} wordings")
            write_jsonl(folder / f"talks/{name}-{split}.jsonl", outcomes[split])
    written = write_replies(engine, rows, sampling, settings.batch_size)
    known = {sentence_of(row) for row in trained_on(prepared)}
    replies = held_out(engine.model, tokenizer, rows, written, known, config.model.max_tokens, settings.seed)
    said = [*replies_of(outcomes), *((row["prompt"], reply) for row, reply in zip(rows, written, strict=True))]
    went_on = continued(engine.model, tokenizer, beginnings(lambda: trained_on(prepared), MAX_BEGUN, settings.seed), config.model.max_new_tokens)
    canaries = [canary for _, canary in read_jsonl(prepared / "canaries.jsonl")]
    remembered = {
        **{metric: measure_exposure(engine.model, tokenizer, [c for c in canaries if c["kind"] == kind]) for metric, kind in EXPOSURES.items()},
        "regurgitation": regurgitation(said, trained_on(prepared)), "extraction": regurgitation(went_on, trained_on(prepared))}
    write_json(folder / f"asked/{name}.json", {"remembered": remembered, "replies": replies})


def talks_of(folder: Path, name: str, split: str) -> Iterator[dict]:
    return (talk for _, talk in read_jsonl(folder / f"talks/{name}-{split}.jsonl"))


def trained_on(prepared: Path) -> Iterator[dict]:
    return (row for _, row in read_jsonl(prepared / "sft/train.jsonl"))


def exists(config, name: str) -> bool:
    if name == "base":
        return True
    folder = stage_dir(config, "sft") / "full" if name == "sft_full" else stage_dir(config, name) / "adapter"
    return folder.is_dir()


def score(outcomes: dict[str, list[dict]], remembered: dict, replies: dict, gates: dict[str, float]) -> dict:
    """One candidate's row: each metric on unseen wordings and what is remembered, with their gates, success on seen ones, and the held-out replies."""
    row = {name: metric(outcomes["unseen"]) if outcomes else {"value": None, "low": None, "high": None, "n": 0, "gate": None} for name, metric in SIMULATED.items()} | remembered
    for name, threshold in gates.items():
        row[name]["gate"] = gate(row[name]["value"], threshold, harm=name in HARMS)
    if outcomes:
        row["success_seen"] = SIMULATED["success"](outcomes["seen"])
    row["held_out"] = replies
    return row


def gate(value: float | None, threshold: float, *, harm: bool) -> str:
    if value is None:
        return "not evaluated"
    return "pass" if (value <= threshold if harm else value >= threshold) else "fail"


def compare(scorecard: dict, outcomes: dict) -> None:
    """Add to each candidate its paired gain in success over base and over sft, with the interval."""
    for name, row in scorecard.items():
        for other in ("base", "sft"):
            if other in outcomes and name != other and outcomes[name].get("unseen"):
                mine, theirs = ([float(o["success"]) for o in outcomes[c]["unseen"]] for c in (name, other))
                value, low, high = paired_difference(mine, theirs)
                row[f"success_over_{other}"] = {"value": value, "low": low, "high": high, "n": len(mine), "gate": None}


def decide(scorecard: dict, gates: list[str]) -> dict:
    """The candidate of highest success among those that pass every gate, or none and why."""
    reasons, passing = [], []
    for name, row in scorecard.items():
        failed = [f"{g} {row[g]['gate']}" + (f" at {row[g]['value']:.3g}" if row[g]["value"] is not None else row[g].get("why", "")) for g in gates if row[g]["gate"] != "pass"]
        if failed:
            reasons.append(f"{name}: {', '.join(failed)}")
        elif name != "base":
            passing.append(name)
    winner = max(passing, key=lambda name: scorecard[name]["success"]["value"], default=None)
    if winner:
        reasons.insert(0, f"{winner} passes every gate with the highest success")
    return {"winner": winner, "reasons": reasons or ["no candidate was evaluated"]}


def headline(scorecard: dict, decision: dict) -> str:
    shown = [f"{name} {row['success']['value']:.0%}" for name, row in scorecard.items() if row["success"]["value"] is not None]
    loss = [f"{name} {row['held_out']['all']['loss']:.2f}" for name, row in scorecard.items() if row["held_out"]]
    return f"success on unseen wordings: {', '.join(shown) or 'not evaluated'}; held-out loss: {', '.join(loss) or 'none'}; winner: {decision['winner'] or 'none'}"
