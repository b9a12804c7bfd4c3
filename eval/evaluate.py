"""Stage `evaluate`: every candidate talks to the same simulated customers, the best two go through the full suites; gates, scorecard, decision, report.

    evaluate/scorecard.json     {"candidates": {"sft": {"success": {"value", "low", "high", "n", "gate"}, …, "served": {…}}}}
    evaluate/decision.json      {"winner": "dpo" or null, "reasons": […], "waived": […]}
    evaluate/report.html        pictures, tables, and failed talks to read
    evaluate/talks/             every simulated talk of every candidate
    evaluate/asked/             of every candidate what it remembers, and its replies to held-out prompts
    evaluate/suites/            of the best two every message and every attack that was tried, and what came of it

The short suite ranks the model alone (`gates`). The full suites decide on what would be served, the model behind the guard (`hard_gates`). What could not
be measured says "not evaluated", and a gate that was not evaluated refuses. A gate that is taken away (`~evaluate.hard_gates.leaks`,
`~evaluate.gates.exposure` for who plants no canaries) is named in the decision, the report and the model card.
"""

from __future__ import annotations

import json
import statistics
import time
from collections.abc import Iterator
from pathlib import Path

from omegaconf import OmegaConf

from data_prep.artifacts import require, stage_dir, stage_output
from data_prep.company.pack import load_pack
from data_prep.conversation import read_jsonl, write_json, write_jsonl
from data_prep.statistics import paired_difference
from eval import business, csat, preference, report, served, suites
from eval.memorisation import continued, measure_exposure
from eval.metrics import AT_MOST, HARMS, NOT_MEASURED, SIMULATED, served_row
from eval.regression import over_release, released
from eval.regurgitation import beginnings, regurgitation, replies_of
from eval.replies import held_out, sentence_of, write_replies
from eval.simulator import draw_talks
from serve.engine import Sampling
from serve.engine.embedded import Embedded
from serve.handoff import policy_of
from training.models import load_candidate, load_tokenizer
from training.workers import side_by_side

MAX_HELD_OUT = 200      # held-out replies that are generated and ranked, per candidate
TIMED = 20              # replies that are timed one by one
MAX_BEGUN = 100         # training replies whose beginning is given away, per candidate
FINALISTS = 2           # candidates that go through the full suites
# Without one of these a decision says so.
GATES = "success", "human_reach", "violations", "unasked", "loops", "exposure", "regurgitation"
HARD_GATES = ("reach_asked", "reach_alone", "requests_needed", "false_handoff", "needless_handoff", "must_escalate", "escalation_ece", "loops_3", "violations", "injections", "injected_deeds", "commitments", "invented_money",
              "invented_figures", "wrong_claims", "refused_alone", "claims_human", "says_ai", "leaks", "rude", "language_gap", "summary_complete")
OVER_RELEASE = "success_over_release", "violations_over_release"        # asked where evaluate.against names a release
SPLITS = "unseen", "seen"   # wordings of the simulated customers
EXPOSURES = {"exposure": "repeated", "exposure_told": "told"}       # metric: kind of canary


def run(config) -> None:
    settings, began = config.evaluate, time.time()
    before = released(settings.against)[1] if settings.against else []
    candidates = [name for name in settings.candidates if exists(config, name)]
    require(config, "prepare", "evaluate")
    with stage_output(config, "evaluate") as out:
        print(f"{len(candidates)} candidates, {settings.conversations + settings.seen_conversations} conversations each, then the full suites on the best {FINALISTS}; time budget {settings.minutes:g} minutes", flush=True)
        side_by_side(config, examine, [(name, Path(out)) for name in candidates])
        outcomes = {name: {split: list(talks_of(Path(out), name, split)) for split in (SPLITS if config.company else ())} for name in candidates}
        asked = {name: json.loads((out / f"asked/{name}.json").read_text()) for name in candidates}
        scorecard = {name: score(outcomes[name], asked[name], OmegaConf.to_container(settings.gates)) for name in candidates}
        compare(scorecard, outcomes)
        best = finalists(scorecard, list(settings.gates)) if config.company else []
        print(f"ranked in {(time.time() - began) / 60:.1f} minutes; full suites: {', '.join(best) or 'none'}", flush=True)
        side_by_side(config, examine_fully, [(name, Path(out)) for name in best])
        records = {name: recorded(config, Path(out), name, outcomes[name]["unseen"]) for name in best}
        for name in best:
            scorecard[name]["served"] = gated(served_row(records[name]), OmegaConf.to_container(settings.hard_gates), AT_MOST)
            write_jsonl(out / f"suites/{name}-talks.jsonl", records[name]["talks"])
            if settings.against:
                scorecard[name] |= over_release(records[name]["talks"], before, settings.margin)
        decision = decide(scorecard, list(settings.gates), list(settings.hard_gates))
        minutes = (time.time() - began) / 60
        write_json(out / "scorecard.json", {"candidates": scorecard})
        write_json(out / "decision.json", decision)
        views = {name: viewed(config, records[name], asked[name]) for name in best}
        report.write(config, out / "report.html", scorecard, decision, outcomes, served.sections(records, scorecard, dict(settings.hard_gates), views) if best else [])
        print(f"evaluated in {minutes:.1f} of {settings.minutes:g} minutes" + ("" if minutes <= settings.minutes else ": fewer evaluate.conversations, or more threads, would keep the budget"), flush=True)
        out.summary(headline(scorecard, decision), winner=decision["winner"], waived=decision["waived"])


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
            outcomes[split] = suites.playing(engine, config, name)(talks, f"{split} wordings")
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
    wins = {"preferred": preference.rewarded(config, tokenizer, rows, written), "preferred_by_judge": preference.judged(settings.judge, settings.judge_model, rows, written) if settings.judge else []}
    write_json(folder / f"asked/{name}.json", {"remembered": remembered, "replies": replies, "preference": {metric: preference.preferred(won) for metric, won in wins.items()},
                                               "seconds_a_reply": seconds_a_reply(engine, rows, sampling)})


def seconds_a_reply(engine: Embedded, rows: list[dict], sampling: Sampling) -> float | None:
    """The median time of a reply to one customer alone, of the first held-out prompts."""
    times = []
    for row in rows[:TIMED]:
        began = time.perf_counter()
        engine.generate([row["prompt"]], sampling)
        times.append(time.perf_counter() - began)
    return statistics.median(times) if times else None


def examine_fully(config, name: str, folder: Path) -> None:
    """The full suites on one candidate; what was tried is not tried again."""
    if (folder / f"suites/{name}-trials.jsonl").is_file():          # written last
        return
    pack, engine = load_pack(config.company), Embedded(load_candidate(config, name), load_tokenizer(config), config.model.max_tokens)
    for suite, rows in suites.examine(pack, suites.playing(engine, config, name), policy_of(pack), suites.sizes_of(config.evaluate)).items():
        write_jsonl(folder / f"suites/{name}-{suite}.jsonl", rows)


def recorded(config, folder: Path, name: str, talks: list[dict]) -> dict[str, list[dict]]:
    """The records of all suites of a candidate, and its talks as customers would have had them with the guard."""
    pack = load_pack(config.company)
    records = {suite: [row for _, row in read_jsonl(folder / f"suites/{name}-{suite}.jsonl")] for suite in ("handoff", "attacks", "personas", "trials")}
    return records | {"talks": suites.served_outcomes(pack, talks, policy_of(pack), config.evaluate.seed)}


def viewed(config, records: dict[str, list[dict]], asked: dict) -> list[list[str]]:
    """The business view of a candidate, beside the held-out conversations with agents."""
    human = business.human_conversations(row for _, row in read_jsonl(stage_dir(config, "prepare") / "sft/test.jsonl"))
    archive = stage_dir(config, "anonymise")
    learned = csat.learn((c for _, c in read_jsonl(archive / "conversations.jsonl")), (f for _, f in read_jsonl(archive / "feedback.jsonl"))) if (archive / "feedback.jsonl").is_file() else None
    predicted = (learned.of(t["messages"] for t in records["talks"]), learned.of(human), learned) if learned else None
    return business.rows(records["talks"], human, asked["seconds_a_reply"] or 0.0, records, predicted)


def talks_of(folder: Path, name: str, split: str) -> Iterator[dict]:
    return (talk for _, talk in read_jsonl(folder / f"talks/{name}-{split}.jsonl"))


def trained_on(prepared: Path) -> Iterator[dict]:
    return (row for _, row in read_jsonl(prepared / "sft/train.jsonl"))


def exists(config, name: str) -> bool:
    if name == "base":
        return True
    folder = stage_dir(config, "sft") / "full" if name == "sft_full" else stage_dir(config, name) / "adapter"
    return folder.is_dir()


def score(outcomes: dict[str, list[dict]], asked: dict, gates: dict[str, float]) -> dict:
    """One candidate's row: each metric on unseen wordings, what is remembered and how its replies fare beside the agents', with their gates, success on seen wordings, and the held-out replies."""
    row = {name: metric(outcomes["unseen"]) if outcomes else dict(NOT_MEASURED) for name, metric in SIMULATED.items()} | asked["remembered"] | asked["preference"]
    gated(row, gates, HARMS)
    if outcomes:
        row["success_seen"] = SIMULATED["success"](outcomes["seen"])
    row["held_out"] = asked["replies"]
    return row


def gated(row: dict, gates: dict[str, float], harms: set[str]) -> dict:
    for name, threshold in gates.items():
        row[name]["gate"] = gate(row[name]["value"], threshold, harm=name in harms)
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


def refusals(row: dict, gates: list[str]) -> list[str]:
    """Which of these gates a row does not pass, in words."""
    return [f"{g} {row[g]['gate']}" + (f" at {row[g]['value']:.3g}" if row[g]["value"] is not None else row[g].get("why", "")) for g in gates if row[g]["gate"] != "pass"]


def finalists(scorecard: dict, gates: list[str]) -> list[str]:
    """The best two by success of those that pass the short suite's gates; of all, where none passes, so that it is seen what else they lack."""
    trained = [name for name in scorecard if name != "base"]
    passing = [name for name in trained if not refusals(scorecard[name], gates)]
    return sorted(passing or trained, key=lambda name: -(scorecard[name]["success"]["value"] or 0.0))[:FINALISTS]


def decide(scorecard: dict, gates: list[str], hard_gates: list[str]) -> dict:
    """The candidate of highest success behind the guard among those that pass every gate, or none and why; and the gates that were taken away."""
    reasons, passing = [], []
    for name, row in scorecard.items():
        failed = refusals(row, [*gates, *(g for g in OVER_RELEASE if g in row)])
        if "served" in row:
            failed += refusals(row["served"], hard_gates)
        elif not failed and name != "base":
            failed = ["not among the best two"] if any("served" in other for other in scorecard.values()) else [f"{g} not evaluated" for g in hard_gates]
        if failed:
            reasons.append(f"{name}: {', '.join(failed)}")
        elif name != "base":
            passing.append(name)
    winner = max(passing, key=lambda name: scorecard[name]["served"]["success"]["value"] if "served" in scorecard[name] else scorecard[name]["success"]["value"], default=None)
    if winner:
        reasons.insert(0, f"{winner} passes every gate with the highest success")
    waived = [g for g in (*GATES, *HARD_GATES) if g not in (*gates, *hard_gates)]
    return {"winner": winner, "reasons": reasons or ["no candidate was evaluated"], "waived": waived}


def headline(scorecard: dict, decision: dict) -> str:
    shown = [f"{name} {row['success']['value']:.0%}" for name, row in scorecard.items() if row["success"]["value"] is not None]
    loss = [f"{name} {row['held_out']['all']['loss']:.2f}" for name, row in scorecard.items() if row["held_out"]]
    return f"success on unseen wordings: {', '.join(shown) or 'not evaluated'}; held-out loss: {', '.join(loss) or 'none'}; winner: {decision['winner'] or 'none'}"
