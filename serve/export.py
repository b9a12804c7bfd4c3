"""Stage `export`: one plain Hugging Face folder of the winner, checked against the adapter it came from, with its card.

    export/model/          what is served: stock Qwen3, loads with AutoModelForCausalLM and in vLLM unchanged
    export/adapter/        the winner's adapter, where it has one
    export/model/openvino/ the same for the endpoint's fast engine on CPUs, of models up to export.openvino_below
    export/model/handoff.json what the guard must know of the company; the endpoint reads it
    export/model/README.md the model card: figures, gates, limits, and hashes from transcripts to weights
    export/MODEL_CARD.md   the same

Merged in fp32 and cast once: adding W + BA on a coarser grid would change what was trained.
"""

from __future__ import annotations

import json
import shutil
from importlib.util import find_spec
from pathlib import Path

import torch
from peft import PeftModel
from tqdm import tqdm
from transformers import AutoModelForCausalLM, AutoTokenizer

from data_prep.artifacts import StageError, hash_file, outputs_hash, read_manifest, require, stage_dir, stage_output
from data_prep.company.pack import load_pack
from data_prep.conversation import read_jsonl, truncate, write_json
from data_prep.signoff import sentence
from serve.handoff import POLICY, policy_of

LINEAGE = ("generate", "anonymise", "prepare", "pretrain", "sft", "reward", "dpo", "kto", "ppo", "rloo", "evaluate")


def run(config) -> None:
    decision = json.loads((require(config, "evaluate", "export") / "decision.json").read_text())
    winner = decision["winner"] or _forced(config, decision)
    base = str(stage_dir(config, "pretrain") / "model") if config.model.from_scratch else config.model.name
    adapter = stage_dir(config, winner) / "adapter"
    if winner in ("base", "sft_full"):
        adapter = None
        base = base if winner == "base" else str(stage_dir(config, "sft") / "full")
    with stage_output(config, "export") as out:
        tokenizer = AutoTokenizer.from_pretrained(str(stage_dir(config, "sft") / "adapter" if adapter else base), trust_remote_code=False)      # SFT's serves all that went on from it
        template = tokenizer.chat_template
        model = AutoModelForCausalLM.from_pretrained(base, dtype=torch.float32, trust_remote_code=False)
        if adapter:
            model = PeftModel.from_pretrained(model, adapter).merge_and_unload()
            shutil.copytree(adapter, out / "adapter", ignore=shutil.ignore_patterns("ref", "checkpoints", "metrics.json", "curve.json"), dirs_exist_ok=True)
        model.to(getattr(torch, config.export.dtype)).save_pretrained(out / "model")
        tokenizer.save_pretrained(out / "model")
        drawn = out / "model/generation_config.json"
        write_json(drawn, json.loads(drawn.read_text(encoding="utf-8")) | {"temperature": 0.0})         # what a request without one gets, here and in vLLM: as it was evaluated
        (out / "model" / "chat_template.jinja").write_text(template, encoding="utf-8")
        if config.company:
            write_json(out / "model" / POLICY, policy_of(load_pack(config.company)))
        parity = check_parity(config, base, adapter, out / "model", tokenizer)
        if find_spec("openvino_genai") and sum(p.numel() for p in model.parameters()) < config.export.openvino_below * 1e9:
            from serve.engine.openvino import CONVERTED, convert  # optional, and slow to import

            convert(out / "model", out / "model" / CONVERTED)
        card = model_card(config, winner, decision, parity, out / "model")
        for place in (out / "MODEL_CARD.md", out / "model" / "README.md"):
            place.write_text(card, encoding="utf-8")
        write_json(out / "export.json", {"winner": winner, "forced": decision["winner"] is None, "parity": parity})
        size = sum(p.stat().st_size for p in (out / "model").glob("*.safetensors"))
        out.summary(f"{winner} merged, {size / 1e6:.1f} MB; {parity['agreement']:.2%} of {parity['tokens']} greedy tokens as before merging", winner=winner, **parity)


def _forced(config, decision: dict) -> str:
    if not config.export.force:
        raise StageError(f"no candidate may go out: {'; '.join(decision['reasons'])}. Mend that, or override with export.force=true (the model card will say so)")
    trained = [name for name in ("ppo", "rloo", "dpo", "kto", "sft") if (stage_dir(config, name) / "adapter").is_dir()]
    if not trained:
        raise StageError("there is no adapter to export: run the stages sft and evaluate first")
    return trained[0]


@torch.inference_mode()
def check_parity(config, base: str, adapter: Path | None, exported: Path, tokenizer) -> dict:
    """Greedy tokens of the exported folder against those of base + adapter, over held-out prompts.

    Both continue the same prefix token by token (teacher forcing on the adapter's own greedy reply), so that one
    difference does not make all later ones. Raises: StageError below export.min_agreement.
    """
    before = AutoModelForCausalLM.from_pretrained(base, dtype=getattr(torch, config.model.dtype), trust_remote_code=False).eval()
    before = PeftModel.from_pretrained(before, adapter).eval() if adapter else before
    after = AutoModelForCausalLM.from_pretrained(str(exported), trust_remote_code=False).eval()
    rows = [row for split in ("test", "validation") for _, row in read_jsonl(require(config, "prepare", "export") / "sft" / f"{split}.jsonl")][: config.export.parity_prompts]
    equal = total = 0
    for row in tqdm(rows, desc="compare merged and adapter", unit="prompt"):
        def ids_of(messages: list[dict]) -> list[int]:
            return tokenizer.apply_chat_template(messages, add_generation_prompt=True, return_dict=True)["input_ids"]

        room = config.model.max_tokens - config.model.max_new_tokens
        ids = torch.tensor([ids_of(truncate(row["prompt"], room, lambda m: len(ids_of(m))))])
        made = before.generate(input_ids=ids, attention_mask=torch.ones_like(ids), max_new_tokens=config.model.max_new_tokens, do_sample=False, pad_token_id=tokenizer.pad_token_id)
        said = made[0, ids.shape[1]:]
        predicted = after(input_ids=made).logits[0, ids.shape[1] - 1:-1].argmax(-1)
        equal += int((predicted == said).sum())
        total += len(said)
    agreement = equal / total if total else 0.0
    if agreement < config.export.min_agreement:
        raise StageError(f"the merged model agrees with the adapter on {agreement:.2%} of {total} greedy tokens, less than {config.export.min_agreement:.2%}: "
                         "export in a finer export.dtype")
    return {"agreement": agreement, "tokens": total, "prompts": len(rows)}


def _figure(metric: dict) -> str:
    return "not measured" if metric["value"] is None else f"{metric['value']:.3f} [{metric['low']:.3f}, {metric['high']:.3f}]"


def model_card(config, winner: str, decision: dict, parity: dict, model: Path) -> str:
    """What it is, how well it did, what it must not be used for, and the chain of hashes from transcripts to weights."""
    scorecard = json.loads((stage_dir(config, "evaluate") / "scorecard.json").read_text())["candidates"][winner]
    figures = [f"| {name} | {_figure(m)} | {m['n']} | {m['gate'] or ''} |" for name, m in scorecard.items()
               if name not in ("held_out", "served") and m["value"] is not None]
    behind = [f"| {name} | {_figure(m)} | {_figure(m['alone'])} | {m['n']} | {m['gate'] or ''} |" for name, m in scorecard.get("served", {}).items() if m["value"] is not None]
    chain = []
    for stage in LINEAGE:
        manifest = read_manifest(stage_dir(config, stage))
        if manifest:
            made_from = manifest["made_from"]
            chain.append(f"| {stage} | {outputs_hash(manifest)} | {made_from['code']} | {made_from['config']} | {manifest['summary']} |")
    weights = "\n".join(f"- `{path.name}`: {hash_file(path)}" for path in sorted(model.glob("*.safetensors")))
    base = "trained from scratch in stage pretrain" if config.model.from_scratch else f"{config.model.name} (revision {config.model.revision or 'not pinned'})"
    forced = "" if decision["winner"] else f"\n> **Exported by force.** No candidate passed its gates: {'; '.join(decision['reasons'])}.\n"
    source = ("the built-in sample company, a made-up shop with planted bad habits: its figures say nothing about real customers"
              if config.data.format == "company" else f"{config.data.format} ({Path(config.data.conversations or config.data.root).name})")
    claim = read_manifest(stage_dir(config, "anonymise"))["facts"].get("claim", "not known")
    review = sentence(read_manifest(stage_dir(config, "prepare"))["facts"].get("signoff", {"state": "waived"}))
    return "\n".join([
        "---", "library_name: transformers", "tags: [customer-support, supportloop]", "---", f"# {config.run_name}: a support assistant ({winner})", forced,
        f"Base: {base}. Trained on {source}. Personal data: {claim}. {review}.", "", "## Figures", "",
        "Simulated conversations on wordings, names and policy values that training never saw, temperature 0; the 95 % interval in brackets.", "",
        "| metric | value | n | gate |", "|---|---|---|---|", *figures, "",
        *(["What is served, the model behind the guard, and the model alone, in the full suites:", "", "| metric | served | alone | n | gate |", "|---|---|---|---|---|", *behind, ""] if behind else []),
        *([f"**Gates taken away for this release: {', '.join(decision['waived'])}.**", ""] if decision.get("waived") else []),
        "Exposure is in bits: how much better than by guessing it ranks made-up secrets that were planted in its training set; 1.44 where nothing is remembered.", "",
        f"Greedy tokens equal before and after merging: {parity['agreement']:.2%} of {parity['tokens']} over {parity['prompts']} prompts.", "",
        "## Limits", "", "For customers of the company whose transcripts it was trained on, behind a human who can be reached. Evaluated by simulation, not on live customers.", "",
        "## Lineage", "", "| stage | outputs | code | config | what came out |", "|---|---|---|---|---|", *chain, "", "Weights:", weights, ""])
