"""Stage `prepare`: split, deduplicate, and build what the trainers read.

    sft/{train,validation,test}.jsonl           {"prompt": […], "completion": [m]} for each agent message that is fit to be learned
    preferences/{train,validation,test}.jsonl   {"prompt", "chosen", "rejected", "margin"}: two replies to one prompt
    unpaired/{train,validation,test}.jsonl      {"prompt", "completion", "rating" or "label"}: one reply and what somebody thought of it
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
from statistics import mean

from datasketch import MinHash, MinHashLSH
from tqdm import tqdm

from data_prep.artifacts import StageError, require, stage_output
from data_prep.conversation import Conversation, Feedback, chat_message, read_jsonl, write_json, write_jsonl
from data_prep.signoff import required
from data_prep.targets import fit

SPLITS = ("train", "validation", "test")
SHRINK = 10.0          # ratings of prior belief that a rater is not severe


def split_of(conversation: Conversation, held_out: float, cutoff: str) -> str | None:
    """train, validation, test, or None: a training customer's conversation from the test period."""
    customer = conversation.customer.get("id", conversation.id)
    is_held_out = int(hashlib.sha256(str(customer).encode()).hexdigest()[:8], 16) / 2**32 < held_out
    is_new = bool(conversation.started_at) and conversation.started_at >= cutoff
    if is_held_out:
        return "test" if is_new else "validation"
    return None if is_new else "train"


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


def targets(conversation: Conversation, changes: Counter) -> Iterator[dict]:
    """SFT's rows of one conversation; `changes` counts what was rewritten or left out."""
    for index, prompt, sent in prompts(conversation):
        message, change = fit(prompt, sent)
        if change:
            changes[change] += 1
        if message:
            yield {"conversation_id": conversation.id, "message_index": index, "locale": conversation.locale, "topic": conversation.outcome.get("intent"),
                   "prompt": prompt, "completion": [message]}


def severities(ratings: list[Feedback]) -> dict[str, float]:
    """Stars by which each rater lies above the mean of all, shrunk towards none by the number of their ratings.

    Source: the closed-form empirical-Bayes estimate n / (n + k) · (rater's mean - mean).
    """
    overall = mean(f.rating for f in ratings) if ratings else 0.0
    by_rater = defaultdict(list)
    for feedback in ratings:
        by_rater[feedback.rater_id].append(feedback.rating - overall)
    return {rater: sum(gaps) / (len(gaps) + SHRINK) for rater, gaps in by_rater.items()}


def pairs(conversation: Conversation, feedback: list[Feedback], severity: dict[str, float], min_gap: float) -> Iterator[dict]:
    """Preference pairs within one prompt: a message and its draft by their ratings, an edit and what it mended."""
    notes = defaultdict(list)
    for note in feedback:
        notes[note.message_index].append(note)
    for index, prompt, sent in prompts(conversation):
        replies = {None: sent} | {d["id"]: {"role": "assistant", **chat_message(d)} for d in conversation.messages[index].get("drafts", [])}
        scores = {draft: mean(n.rating - severity.get(n.rater_id, 0.0) for n in rated)
                  for draft in replies if (rated := [n for n in notes[index] if n.kind == "rating" and n.draft_id == draft])}
        place = {"conversation_id": conversation.id, "message_index": index, "locale": conversation.locale}
        ranked = sorted(scores, key=scores.get, reverse=True)
        if len(ranked) > 1 and (gap := scores[ranked[0]] - scores[ranked[-1]]) >= min_gap:
            yield {**place, "prompt": prompt, "chosen": [replies[ranked[0]]], "rejected": [replies[ranked[-1]]], "margin": round(gap, 3), "source": "ratings"}
        for note in notes[index]:
            if note.kind == "edit" and note.edit != sent["content"]:
                yield {**place, "prompt": prompt, "chosen": [{"role": "assistant", "content": note.edit}], "rejected": [sent], "margin": 2.0, "source": "edit"}


def unpaired(conversation: Conversation, feedback: list[Feedback]) -> Iterator[dict]:
    """One reply and what somebody thought of it; a thumb on the whole conversation goes to its last reply."""
    replies = {index: (prompt, message) for index, prompt, message in prompts(conversation)}
    for note in feedback:
        index = max(replies, default=None) if note.message_index is None else note.message_index
        if note.kind == "edit" or note.draft_id is not None or index not in replies:
            continue
        prompt, message = replies[index]
        value = {"rating": note.rating} if note.kind == "rating" else {"label": note.thumb == "up"}
        yield {"conversation_id": conversation.id, "message_index": index, "locale": conversation.locale, "prompt": prompt,
               "completion": [message], "rater": note.rater_id, **value}


def run(config) -> None:
    source, signoff = require(config, "anonymise", "prepare"), required(config)
    settings = config.prepare
    conversations = [Conversation.from_record(record) for _, record in read_jsonl(source / "conversations.jsonl")]
    feedback = defaultdict(list)
    for _, record in read_jsonl(source / "feedback.jsonl"):
        note = Feedback.from_record(record)
        feedback[note.conversation_id].append(note)
    times = sorted(c.started_at for c in conversations if c.started_at)
    cutoff = times[int(len(times) * (1 - settings.newest))] if times else "9999"
    splits = {c.id: split_of(c, settings.held_out_customers, cutoff) for c in conversations}
    # Training conversations come first, so that of two alike the one in training stays and none is trained and tested on.
    ordered = sorted(conversations, key=lambda c: (SPLITS.index(splits[c.id] or "test"), c.id))
    dropped = duplicates(ordered, settings.near_duplicate)
    dropped |= {c.id: "a training customer, newer than the cutoff" for c in conversations if splits[c.id] is None}
    kept = {split: [c for c in conversations if splits[c.id] == split and c.id not in dropped] for split in SPLITS}
    if not kept["train"]:
        raise StageError(f"no conversation is left for training out of {len(conversations)}: lower prepare.held_out_customers and prepare.newest, or give more data")
    # A customer's own rating of a conversation is no sign of how severely colleagues judge replies.
    train_ratings = [n for c in kept["train"] for n in feedback[c.id] if n.kind == "rating" and n.rater_id != "customer"]
    severity = severities(train_ratings)
    with stage_output(config, "prepare") as out:
        report = {"conversations": {split: len(kept[split]) for split in SPLITS}, "dropped": dict(Counter(dropped.values())), "cutoff": cutoff,
                  "languages": dict(Counter(c.locale for c in conversations)), "rows": {}, "severity": {k: round(v, 3) for k, v in severity.items()}}
        changes = Counter()
        for split in SPLITS:
            mine = kept[split]
            rows = {
                "sft": [row for c in mine for row in targets(c, changes)],
                "preferences": [row for c in mine for row in pairs(c, feedback[c.id], severity, settings.min_gap)],
                "unpaired": [row for c in mine for row in unpaired(c, feedback[c.id])]}
            for kind, made in rows.items():
                write_jsonl(out / f"{kind}/{split}.jsonl", made)
                report["rows"].setdefault(kind, {})[split] = len(made)
        lengths = sorted(len(json.dumps(c.messages, ensure_ascii=False)) for c in conversations)
        report["characters"] = {q: lengths[min(len(lengths) - 1, int(len(lengths) * f))] for q, f in (("median", 0.5), ("p95", 0.95), ("max", 1.0))}
        report["targets"] = dict(changes)
        write_jsonl(out / "dropped.jsonl", ({"id": i, "reason": reason} for i, reason in sorted(dropped.items())))
        write_json(out / "report.json", report)          # without the sign-off: to review what was trained on must not train it again
        rows = report["rows"]
        out.summary(f"{len(conversations)} conversations → {sum(rows['sft'].values())} replies, {sum(rows['preferences'].values())} pairs, "
                    f"{sum(rows['unpaired'].values())} unpaired; {len(dropped)} conversations dropped, {sum(changes.values())} replies unfit to learn as they stand", signoff=signoff, **report)
