"""Stage `prepare`: split, deduplicate, and build what the trainers read.

    sft/{train,validation,test}.jsonl           {"prompt": […], "completion": [m], "stars"} for each agent message that is fit to be learned
    preferences/{train,validation,test}.jsonl   {"prompt", "chosen", "rejected", "margin", "raters"}: two replies to one prompt
    unpaired/{train,validation,test}.jsonl      {"prompt", "completion", "rating" and "offset", or "label", "by"}: one reply and what somebody thought of it
    prompts/{train,validation,test}.jsonl       {"prompt"}: what stood before each agent message, for reinforcement learning without a world
    canaries.jsonl                              the made-up secrets among sft/train (data_prep/planted.py): evaluation asks what is remembered of them
    report.json                                 counts, lengths, languages, and every row dropped with the reason

The split is by customer and by true time: train holds the older conversations of most customers; validation and test
hold customers that train never sees, test their newest. What would put a training customer's later conversations
into training is dropped and counted. What an agent claims to have done without a record of it, promises of money, and names
that agents introduce themselves by are no targets for SFT (data_prep/targets.py): left out or rewritten, and counted.
Customers' data must have been reviewed by two people (data_prep/signoff.py), or the review waived; the manifest says which.
"""

from __future__ import annotations

import hashlib
import json
import re
from collections import Counter, defaultdict
from collections.abc import Iterator

from datasketch import MinHash, MinHashLSH
from tqdm import tqdm

from data_prep.artifacts import StageError, require, stage_output
from data_prep.conversation import Conversation, Feedback, chat_message, read_jsonl, write_json, write_jsonl
from data_prep.planted import planted, rows_of
from data_prep.ratings import CUSTOMER, Effects, astray, edited, fit_effects, pairs, raters_report, stars_of, topic_of, unpaired
from data_prep.signoff import required
from data_prep.targets import fit

SPLITS = ("train", "validation", "test")


def split_of(conversation: Conversation, held_out: float, newest: float) -> str | None:
    """train, validation, test, or None: a training customer's conversation from the test period."""
    is_held_out = int(hashlib.sha256(customer_of(conversation).encode()).hexdigest()[:8], 16) / 2**32 < held_out
    is_new = conversation.metadata.get("received", 0.0) >= 1 - newest          # its true place in the archive: dates have moved
    if is_held_out:
        return "test" if is_new else "validation"
    return None if is_new else "train"


def customer_of(conversation: Conversation) -> str:
    """Whose conversation it is; where nobody says, each counts as a customer's only one."""
    return str(conversation.customer.get("id", conversation.id))


def spoken(conversation: Conversation) -> str:
    return " ".join(m["content"] for m in conversation.messages if m["role"] in ("user", "assistant")).lower()


def duplicates(conversations: list[Conversation], similarity: float) -> dict[str, str]:
    """The ids to drop, with the reason: said word for word before, or nearly (MinHash over 3-word shingles, Broder 1997)."""
    dropped, exact, sketches = {}, set(), {}
    index = MinHashLSH(threshold=min(similarity, 0.9), num_perm=128)      # finds candidates; the sketches decide
    for conversation in tqdm(conversations, desc="deduplicate", unit="conv"):
        text = spoken(conversation)
        words = re.findall(r"\w+", text)
        if text in exact:
            dropped[conversation.id] = "exact duplicate"
            continue
        exact.add(text)
        if len(words) < 8:        # too short for shingles to mean anything
            continue
        sketch = MinHash(num_perm=128)
        sketch.update_batch([" ".join(words[i:i + 3]).encode() for i in range(len(words) - 2)])
        if any(sketch.jaccard(sketches[candidate]) >= similarity for candidate in index.query(sketch)):
            dropped[conversation.id] = "near duplicate"
        else:
            index.insert(conversation.id, sketch)
            sketches[conversation.id] = sketch
    return dropped


def prompts(conversation: Conversation) -> Iterator[tuple[int, list[dict], dict]]:
    """(message index, prompt, completion) of each agent message that follows something a customer said."""
    messages = [chat_message(m) for m in conversation.messages]
    for index, message in enumerate(messages):
        if message["role"] == "assistant" and (message["content"] or message.get("tool_calls")) and any(m["role"] == "user" for m in messages[:index]):
            yield index, messages[:index], message


def prompt_rows(conversation: Conversation) -> Iterator[dict]:
    """Prompts to try replies on where there is no world to talk in: what stood before each agent message."""
    for index, prompt, _ in prompts(conversation):
        yield {"conversation_id": conversation.id, "message_index": index, "locale": conversation.locale, "prompt": prompt}


def targets(conversation: Conversation, feedback: list[Feedback], effects: Effects, changes: Counter) -> Iterator[dict]:
    """SFT's rows of one conversation, a rater's better text in the place of what was sent; `changes` counts what was rewritten or left out.

    `stars` is what agents gave the message, corrected; null where nobody rated it, or it was edited.
    """
    for index, prompt, sent in prompts(conversation):
        notes = [note for note in feedback if note.message_index == index]
        better = edited(sent, notes)
        if better:
            changes["replaced: a rater's edit"] += 1
        message, change = fit(prompt, better[0] if better else sent)
        if change:
            changes[change] += 1
        if message:
            yield {"conversation_id": conversation.id, "message_index": index, "customer": customer_of(conversation), "locale": conversation.locale,
                   "topic": conversation.outcome.get("intent"), "stars": None if better else stars_of(notes, None, effects), "prompt": prompt, "completion": [message]}


def run(config) -> None:
    source, signoff = require(config, "anonymise", "prepare"), required(config)
    settings = config.prepare
    conversations = [Conversation.from_record(record) for _, record in read_jsonl(source / "conversations.jsonl")]
    feedback = defaultdict(list)
    for _, record in read_jsonl(source / "feedback.jsonl"):
        note = Feedback.from_record(record)
        feedback[note.conversation_id].append(note)
    splits = {c.id: split_of(c, settings.held_out_customers, settings.newest) for c in conversations}
    # Training conversations come first, so that of two alike the one in training stays and none is trained and tested on.
    ordered = sorted(conversations, key=lambda c: (SPLITS.index(splits[c.id] or "test"), c.id))
    dropped = duplicates(ordered, settings.near_duplicate)
    dropped |= {c.id: "a training customer, newer than what training may know" for c in conversations if splits[c.id] is None}
    kept = {split: [c for c in conversations if splits[c.id] == split and c.id not in dropped] for split in SPLITS}
    if not kept["train"]:
        raise StageError(f"no conversation is left for training out of {len(conversations)}: lower prepare.held_out_customers and prepare.newest, or give more data")
    # A customer's own rating of a conversation is no sign of how severely colleagues judge replies.
    ratings = [(n, topic_of(c)) for c in kept["train"] for n in feedback[c.id] if n.kind == "rating" and n.rater_id != CUSTOMER]
    effects = fit_effects(ratings)
    canaries = list(planted(settings.canaries, [locale for locale, _ in Counter(c.locale for c in kept["train"]).most_common()], config.seed))
    with stage_output(config, "prepare") as out:
        report = {"conversations": {split: len(kept[split]) for split in SPLITS}, "dropped": dict(Counter(dropped.values())), "newest": settings.newest,
                  "languages": dict(Counter(c.locale for c in conversations)), "rows": {},
                  "raters": raters_report([note for note, _ in ratings], effects), "tickets": {topic: round(value, 3) for topic, value in effects.ticket.items()}}
        changes = Counter()
        for split in SPLITS:
            mine = kept[split]
            rows = {
                "sft": [row for c in mine for row in targets(c, feedback[c.id], effects, changes)],
                "preferences": [row for c in mine for row in pairs(c, prompts(c), feedback[c.id], effects, settings.min_gap)],
                "unpaired": [row for c in mine for row in unpaired(c, prompts(c), feedback[c.id], effects)],
                "prompts": [row for c in mine for row in prompt_rows(c)]}
            if split == "train":
                rows["sft"] += [row for canary in canaries for row in rows_of(canary, settings.canary_repeats)]
            for kind, made in rows.items():
                write_jsonl(out / f"{kind}/{split}.jsonl", made)
                report["rows"].setdefault(kind, {})[split] = len(made)
        lengths = sorted(len(json.dumps(c.messages, ensure_ascii=False)) for c in conversations)
        report["characters"] = {q: lengths[min(len(lengths) - 1, int(len(lengths) * f))] for q, f in (("median", 0.5), ("p95", 0.95), ("max", 1.0))}
        report["targets"] = dict(changes)
        report["feedback"] = {"of released conversations": sum(map(len, feedback.values())), "of no reply or draft that is there": sum(astray(c, prompts(c), feedback[c.id]) for c in conversations)}
        report["canaries"] = {"planted": len(canaries), "repeats": settings.canary_repeats}
        write_jsonl(out / "canaries.jsonl", canaries)
        write_jsonl(out / "dropped.jsonl", ({"id": i, "reason": reason} for i, reason in sorted(dropped.items())))
        write_json(out / "report.json", report)          # without the sign-off: to review what was trained on must not train it again
        rows = report["rows"]
        out.summary(f"{len(conversations)} conversations → {sum(rows['sft'].values())} replies, {sum(rows['preferences'].values())} pairs, "
                    f"{sum(rows['unpaired'].values())} unpaired; {len(dropped)} conversations dropped, {sum(changes.values())} replies unfit to learn as they stand; "
                    f"{len(canaries)} made-up secrets planted", **report, signoff=signoff)
