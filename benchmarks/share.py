"""What learning from ratings gains, by how many of the archive's agents do right: 30 to 90 % of conversations by agents without bad habits.

    python -m benchmarks.share [shares=0.3,0.5,0.7,0.9] [folder=runs/share] [base=<run>] [key=value of conf/]

For each share a copy of the company pack with other shares of its agents, and the whole pipeline on the archive that it writes; a run that is finished is not made
again. `base` names a run whose pretrained base all of them start from, so that what differs is the archive that is learned from. Success on unseen wordings,
the gains over SFT and violations less SFT's paired by customer, and a plot: where nearly everybody does right there is little to learn, and that is shown too.
"""

from __future__ import annotations

import datetime
import shutil
import sys
from pathlib import Path
from statistics import mean

import matplotlib
import yaml

from benchmarks.shapes import shown
from conf.load import load_config
from data_prep.artifacts import StageError, stage_dir
from data_prep.conversation import read_jsonl, write_json
from data_prep.statistics import paired_difference, wilson
from eval.report import svg
from training.pipeline import main as pipeline

matplotlib.use("svg")
import matplotlib.pyplot as plt

LEARNED = ("dpo", "ppo")


def with_share(agents: list[dict], good: float) -> list[dict]:
    """The agents with shares such that those without habits write `good` of the conversations; among themselves as before.

    Raises: StageError where the pack has not both kinds.
    """
    total = {kind: sum(a["share"] for a in agents if bool(a["habits"]) == kind) for kind in (False, True)}
    if not all(total.values()):
        raise StageError("the pack's agents.yaml needs agents with habits and agents without, or their share cannot be changed")
    return [{**a, "share": a["share"] * (1 - good if a["habits"] else good) / total[bool(a["habits"])]} for a in agents]


def one(config, good: float, folder: Path, base: str | None, overrides: list[str]) -> dict:
    """Success of sft, dpo and ppo, and the gains, in a run on an archive with so many good agents."""
    pack, run_dir = folder / "pack", folder / "run"
    shutil.rmtree(pack, ignore_errors=True)
    shutil.copytree(config.company, pack)
    agents = with_share(yaml.safe_load((pack / "agents.yaml").read_text(encoding="utf-8")), good)
    (pack / "agents.yaml").write_text(yaml.safe_dump(agents, sort_keys=False), encoding="utf-8")
    own_base = ["model.from_scratch=false", f"model.name={Path(base).resolve()}/pretrain/model"] if base else []
    if pipeline([f"company={pack}", f"run_dir={run_dir}", "stages=[generate,anonymise,prepare,pretrain,sft,reward,dpo,ppo,evaluate]", "evaluate.candidates=[sft,dpo,ppo]", *own_base, *overrides]):
        raise SystemExit(f"the run in {run_dir} stopped; the same command goes on from there")
    done = load_config([f"run_dir={run_dir}"])
    talks = {name: [row for _, row in read_jsonl(path)] for name in ("sft", *LEARNED) if (path := stage_dir(done, "evaluate") / f"talks/{name}-unseen.jsonl").is_file()}
    found = {"share": good, "n": len(talks["sft"])}
    for what, of in (("gain", lambda talk: float(talk["success"])), ("violations", lambda talk: float(bool(talk["violations"])))):
        mine = {name: [of(talk) for talk in each] for name, each in talks.items()}
        found[f"sft_{what}"] = [mean(mine["sft"]), *wilson(int(sum(mine["sft"])), len(mine["sft"]))]
        found |= {f"{name}_{what}": list(paired_difference(each, mine["sft"])) for name, each in mine.items() if name != "sft"}
    return found


def picture(points: list[dict]) -> str:
    figure, axis = plt.subplots(figsize=(6.5, 3.6))
    for name, colour, shift in (("dpo", "#1b6ca8", -0.004), ("ppo", "#c8553d", 0.004)):
        mine = [p for p in points if f"{name}_gain" in p]
        gains = [[100 * g for g in p[f"{name}_gain"]] for p in mine]
        axis.errorbar([100 * (p["share"] + shift) for p in mine], [g[0] for g in gains], yerr=[[g[0] - g[1] for g in gains], [g[2] - g[0] for g in gains]], fmt="o-", capsize=3, color=colour, label=name.upper())
    axis.axhline(0, color="#888", linewidth=0.8)
    axis.set_xlabel("conversations by agents without bad habits, %")
    axis.set_ylabel("gain over SFT, points")
    axis.legend(frameon=False)
    for side in ("top", "right"):
        axis.spines[side].set_visible(False)
    return svg(figure)


def main(arguments: list[str]) -> list[dict]:
    options = dict(argument.split("=", 1) for argument in arguments)
    shares, folder, base = [float(s) for s in options.pop("shares", "0.3,0.5,0.7,0.9").split(",")], Path(options.pop("folder", "runs/share")), options.pop("base", None)
    out = Path(options.pop("out", folder / "share.md"))
    company = options.pop("company", None)
    overrides = [f"{key}={value}" for key, value in options.items()]
    config = load_config([f"company={company}"] if company else [])
    points = [one(config, good, folder / f"{good:g}", base, overrides) for good in shares]
    lines = ["# Gain over SFT by the share of good agents", "", f"{datetime.date.today()}, {points[0]['n']} simulated conversations a candidate, one training a share: {shown('benchmarks.share', arguments)}", "",
             f"![Gain of DPO and PPO over SFT, in points, by the share of conversations that agents without bad habits wrote]({out.stem}.svg)", "",
             "| by good agents | SFT | DPO over SFT | PPO over SFT | violations of SFT | DPO less SFT | PPO less SFT |", "|---" * 7 + "|"]
    for point in points:
        cells = [f"{point['share']:.0%}"]
        for what in ("gain", "violations"):
            cells.append("{:.0%} [{:.0%}, {:.0%}]".format(*point[f"sft_{what}"]))
            cells += ["{:+.1%} [{:+.1%}, {:+.1%}]".format(*point[f"{name}_{what}"]) if f"{name}_{what}" in point else "refused: the reward model did not pass its gate" for name in LEARNED]
        lines.append(f"| {' | '.join(cells)} |")
    out.parent.mkdir(parents=True, exist_ok=True)
    out.write_text("\n".join([*lines, ""]), encoding="utf-8")
    out.with_suffix(".svg").write_text(picture(points), encoding="utf-8")
    write_json(folder / "share.json", points)
    print("\n".join(lines))
    return points


if __name__ == "__main__":
    try:
        main(sys.argv[1:])
    except StageError as error:
        sys.exit(f"error: {error}")
