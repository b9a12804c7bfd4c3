"""Stage `dpo`: prefer what was preferred. The SFT adapter is the policy to train and, frozen, the reference (arXiv:2305.18290).

Taking the raw base as the reference is a known trap: it punishes what SFT has learned. TRL clones the adapter of a
PeftModel as the reference, and saves it beside the policy; only the policy is kept here. The reference's log-probs are computed
once and cached. A pair with a wide gap between its ratings must be kept further apart (the offset of ODPO, arXiv:2402.10571).
"""

from __future__ import annotations

import math
import random
from collections import defaultdict
from pathlib import Path
from statistics import mean

import torch
import trl.trainer.dpo_trainer
from trl import DPOConfig, DPOTrainer

from data_prep.artifacts import StageError, require, stage_output
from data_prep.conversation import write_json
from serve.engine.decoding import decode, pick
from training.adapters import OneBase
from training.ensemble import leaf
from training.group import Group, shared_dataset
from training.labelled import add_head_of_labelled
from training.lora import adding
from training.models import in_batches_of_like_length, load_sft, load_tokenizer, preference_rows, preferences, save_trained, train, trainer_arguments
from training.reward_gate import contested
from training.rollouts import kl_from_sft
from training.trees import grow

PROBES = 64          # held-out prompts on which the lengths of replies are compared


class OffsetDPOTrainer(DPOTrainer):
    """TRL's DPOTrainer with an offset a pair: -logsigmoid(beta * (difference of log-ratios) - offset) (ODPO, arXiv:2402.10571).

    The offset is put on the chosen reply's cached reference log-prob, which is the same thing; what is logged of rewards is put right again,
    but for `rewards/accuracies`, which counts the pairs that are further apart than their offset.
    """

    def __init__(self, *args, **kwargs):
        super().__init__(*args, **kwargs)
        plain = self.data_collator
        self.data_collator = lambda examples: {**plain(examples), **({"offset": torch.tensor([e["offset"] for e in examples])} if "offset" in examples[0] else {})}

    def _set_signature_columns_if_needed(self):
        super()._set_signature_columns_if_needed()
        if "offset" not in self._signature_columns:
            self._signature_columns.append("offset")

    def compute_ref_log_probs(self, model, inputs):
        return super().compute_ref_log_probs(model, {key: value for key, value in inputs.items() if key != "offset"})

    def _compute_loss(self, model, inputs, return_outputs):
        inputs = dict(inputs)
        offset = inputs.pop("offset")
        inputs["ref_chosen_logps"] = inputs["ref_chosen_logps"] + offset / self.beta
        made = super()._compute_loss(model, inputs, return_outputs)
        for name in ("rewards/chosen", "rewards/margins"):
            self._metrics["train" if self.model.training else "eval"][name][-1] += self.accelerator.gather(offset).mean().item()
        return made


def run(config) -> None:
    tokenizer, settings = load_tokenizer(config), config.dpo
    if not 0 < settings.average <= 1:
        raise StageError(f"dpo.average={settings.average} must be above 0, where nothing of what was learned would be left, and at most 1")
    pairs = preferences(config, "train")
    losses = settings.trainer.loss_type
    others = sorted({*([losses] if isinstance(losses, str) else losses)} - {"sigmoid", "sft"})
    if settings.offset and others:
        raise StageError(f"dpo.offset={settings.offset} is an offset of the loss sigmoid, not of {', '.join(others)}: set dpo.offset=0 with it")
    places = Group().same(lambda: telling(config, tokenizer, pairs))
    rows, too_long = preference_rows(config, tokenizer, [pairs[place] for place in places])
    if not rows:
        raise StageError("there is no preference pair: collect ratings of two drafts for one prompt, or edits of replies (see the README, Your own data)")
    with stage_output(config, "dpo") as out:
        trainer = trainer_of(config, tokenizer, rows, Path(out))
        curve = train(trainer, Path(out))
        averaged(trainer.accelerator.unwrap_model(trainer.model), settings.average)
        save_trained(trainer, out / "adapter")
        if not out.is_main:
            return
        unread = preferences(config, "validation")
        held_out, _ = preference_rows(config, tokenizer, random.Random(config.seed).sample(unread, min(PROBES, len(unread))))
        model, prompts = trainer.accelerator.unwrap_model(trainer.model), [row["prompt"] for row in held_out or rows[:PROBES]]
        facts = {"chosen_fall": chosen_fall(curve), "reply_tokens": reply_tokens(model, tokenizer, prompts, config.model.max_new_tokens)}
        model.set_adapter("ref")
        facts["reply_tokens_sft"] = reply_tokens(model, tokenizer, prompts, config.model.max_new_tokens)
        facts["kl"] = kl_from_sft(config, tokenizer, out / "adapter")
        for line in alarms(facts, settings):
            print(line, flush=True)
        accuracy = curve[-1].get("rewards/accuracies", float("nan"))
        metrics = {"pairs": len(rows), "dropped_too_long": too_long, "loss": curve[-1]["loss"], "train_accuracy": accuracy, **facts}
        write_json(out / "metrics.json", metrics)
        fall = facts["chosen_fall"]
        out.summary(f"{len(rows)} pairs → {accuracy:.2f} of training pairs preferred, chosen log-probs {'fell' if fall > 0 else 'rose'} by {abs(fall):.2f}, "
                    f"{facts['kl']:.2f} nats a reply from sft; {too_long} too long", **metrics)


def trainer_of(config, tokenizer, rows: list[dict], folder: Path) -> OffsetDPOTrainer:
    """The trainer over these pairs, in batches of like length."""
    arguments = trainer_arguments(config, "dpo", folder, DPOConfig, max_length=None, train_sampling_strategy="sequential", precompute_ref_log_probs=True)
    order = in_batches_of_like_length(rows, arguments.train_batch_size * arguments.world_size, random.Random(config.seed))
    dataset = shared_dataset([{**{k: row[k] for k in ("prompt", "chosen", "rejected")}, "offset": offset_of(row["margin"], config.dpo.offset)} for row in order], folder)
    if config.hardware.trainer.use_cpu:
        trl.trainer.dpo_trainer.add_fused_lm_head = add_head_of_labelled
    return OffsetDPOTrainer(adding(load_sft(config)), args=arguments, train_dataset=dataset, processing_class=tokenizer)


def telling(config, tokenizer, pairs: list[dict]) -> list[int]:
    """The places of no more than dpo.max_pairs of the pairs: half of them such where only the state tells which reply is better, then as many of the others that SFT
    gets most wrong, then any of these. In this order they are trained on.

    Most pairs only say again what SFT does anyway. The hard ones alone teach a habit the other way: from "refund, whatever the policy" to "refuse, whatever the policy".
    What SFT gets wrong of the first kind is mostly one way round, so that none of them is among the second half: DPO refused half of the refunds that were due.
    """
    most, half = config.dpo.max_pairs, (config.dpo.max_pairs or 0) // 2
    if most is None or len(pairs) <= most:
        return list(range(len(pairs)))
    rest = [place for place, holds in enumerate(contested([kinds_of(pair) for pair in pairs])) if not holds]
    asked = either_way(pairs, max(half, most - len(rest)), random.Random(config.seed))
    drawn = random.Random(config.seed).sample(rest, min(config.dpo.pool or len(rest), len(rest)))
    margin = margins(config, tokenizer, [pairs[place] for place in drawn])
    by_margin = sorted(range(len(drawn)), key=margin.__getitem__)
    hard, others = by_margin[:half], sorted(by_margin[half:])
    return asked + [drawn[number] for number in sorted([*hard, *others[: most - len(asked) - len(hard)]])]


def either_way(pairs: list[dict], most: int, rng: random.Random) -> list[int]:
    """The places of pairs whose two kinds of reply are better now one, now the other: as many with the one better as with the other, and about as many of each two kinds.

    A pair moves what its words have in common before it moves what the state tells. Where a refund was better than a refusal twice as often as the other way round, as
    they come, DPO learned to refund whatever the policy said, which SFT did nine times in ten already.
    """
    kinds, places = [kinds_of(pair) for pair in pairs], defaultdict(list)
    for place, (both, holds) in enumerate(zip(kinds, contested(kinds), strict=True)):
        if holds:
            places[both].append(place)
    each = most // max(1, len(places))
    return sorted(place for (better, worse), some in sorted(places.items()) for place in rng.sample(some, min(each, len(some), len(places[worse, better]))))


def kinds_of(pair: dict) -> tuple[str, str]:
    """What its chosen and what its rejected reply is (`tool_of`)."""
    return tool_of(pair["chosen"][0]), tool_of(pair["rejected"][0])


def tool_of(reply: dict) -> str:
    """The tool that a reply calls first; "text" where it calls none."""
    return next((call["function"]["name"] for call in reply.get("tool_calls") or []), "text")


def margins(config, tokenizer, pairs: list[dict]) -> list[float]:
    """By how much SFT finds each pair's chosen reply likelier than the rejected one, in nats; infinitely where one of them is too long to be read."""
    model, by_conversation = OneBase(config, tokenizer), defaultdict(list)
    model.add("sft", require(config, "sft", "dpo") / "adapter")
    for place, pair in enumerate(pairs):
        both = [leaf(tokenizer, pair["prompt"], pair[side][0], config.model.max_tokens) for side in ("chosen", "rejected")]
        if None not in both:
            by_conversation[pair["conversation_id"]].append((place, both))
    trees, replies = [], []
    for some in by_conversation.values():
        leaves = [each for _, both in some for each in both]
        trees.append(grow(ids for ids, _ in leaves))
        replies.append([path[-length:] for path, (_, length) in zip(trees[-1].leaves, leaves, strict=True)])
    likely = [float(each) for some in model.log_likelihoods("sft", trees, replies) for each in some]
    found = [math.inf] * len(pairs)
    for (place, _), chosen, rejected in zip((each for some in by_conversation.values() for each in some), likely[::2], likely[1::2], strict=True):
        found[place] = chosen - rejected
    return found


@torch.no_grad()
def averaged(model, share: float) -> None:
    """Put the weights of the policy's adapter between its reference's (0) and its own (1).

    Pairs are of some concerns more than of others, and what is learned of these spreads: an open order was cancelled for who had only asked where it is. Half way
    back to SFT most of such harm is gone and most of the gain is not (model averaging, arXiv:2309.06256, arXiv:2109.01903).
    """
    weights = dict(model.named_parameters())
    for name, weight in weights.items():
        if ".default." in name:
            weight.lerp_(weights[name.replace(".default.", ".ref.")], 1 - share)


def offset_of(gap: float, scale: float) -> float:
    """How much further apart than none a pair is to be kept, by the gap of its ratings in corrected stars: scale * log(1 + gap)."""
    return scale * math.log1p(max(0.0, gap))


def chosen_fall(curve: list[dict]) -> float:
    """By how much the chosen replies' log-prob per sequence fell from the first to the last logged step (nats).

    DPO may lower both sides while their gap grows (Pal et al. 2024, arXiv 2402.13228): below the alarm it is normal.
    """
    logged = [entry["logps/chosen"] for entry in curve if "logps/chosen" in entry]
    return logged[0] - logged[-1] if len(logged) > 1 else 0.0


def reply_tokens(model, tokenizer, prompts: list[list[dict]], max_new_tokens: int) -> float:
    """Mean length in tokens of the greedy replies to some prompts, under the active adapter."""
    ids = [tokenizer.apply_chat_template(prompt, add_generation_prompt=True, return_dict=True)["input_ids"] for prompt in prompts]
    return mean(len(reply) for [reply] in decode(model.eval(), tokenizer, ids, max_new_tokens, lambda logits: pick(logits, 0)))


def alarms(facts: dict, settings) -> list[str]:
    """What went wrong, each with its likely cause and what to do next."""
    found = []
    if facts["chosen_fall"] > settings.max_chosen_drop:
        found.append(f"warning: the chosen replies became less likely by {facts['chosen_fall']:.2f} nats per reply since the start. Likely cause: too high a learning rate or "
                     "too low a beta. Next: dpo.trainer.learning_rate lower, or more of the sft loss in dpo.trainer.loss_weights")
    before, after = facts["reply_tokens_sft"], facts["reply_tokens"]
    if not 1 / settings.max_length_drift <= after / max(before, 1e-9) <= settings.max_length_drift:
        found.append(f"warning: replies to held-out prompts went from {before:.1f} to {after:.1f} tokens. Likely cause: chosen replies are {'longer' if after > before else 'shorter'} than "
                     "rejected ones, and length was learned. Next: dpo.trainer.loss_type=[sigmoid_norm,sft] dpo.offset=0, which counts per token")
    return found
