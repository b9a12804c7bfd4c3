"""From ratings to preferences: what stars, thumbs and edits say about replies, with the rater taken out.

Raters differ in severity, so four stars of one are three of another. A rater's severity is the mean of what is left of their
ratings after the ticket's own effect, shrunk towards none by how little is known of them (empirical Bayes; PEBS, arXiv:2606.27578):
plain means would believe a rater of two ratings as much as one of two thousand. Pairs compare replies to one prompt, so
what makes a ticket hard cancels. Single ratings carry what rater and ticket add to them as an offset, for the reward model to take away.

An edit says three things at once (arXiv:2601.19055): what to learn (SFT's target), what is better than what (a pair), and by
how much (its cost, the share of words changed). What customers think of a chat is kept apart from what agents think of a reply:
customers mark a correct "no" down, so a model that pleases them alone learns to give in.
"""

from __future__ import annotations

import difflib
import itertools
from collections import defaultdict
from collections.abc import Iterable, Iterator
from dataclasses import dataclass
from statistics import mean, pstdev

from data_prep.conversation import Conversation, Feedback, Message, chat_message

CUSTOMER = "customer"      # the rater id of whoever was helped
EDIT_STARS = 3.0           # stars by which an edit is better that leaves no word as it was
ROUNDS = 5                 # of taking turns between raters and tickets; the third changes no second digit


@dataclass(frozen=True)
class Effects:
    """What each rater, and each kind of ticket, adds to the stars of a reply."""

    severity: dict[str, float]
    ticket: dict[str, float]

    def corrected(self, note: Feedback) -> float:
        """The stars of a rating without what its rater adds."""
        return note.rating - self.severity.get(note.rater_id, 0.0)

    def offset(self, note: Feedback, topic: str) -> float:
        return self.severity.get(note.rater_id, 0.0) + self.ticket.get(topic, 0.0)


def shrunk(residuals: dict[str, list[float]]) -> dict[str, float]:
    """Each group's mean residual, times tau² / (tau² + sigma² / n): variance between groups over what a mean of n is made of.

    Both variances by the method of moments (one-way random effects). One group alone, or equal residuals, give 0.
    """
    n = {group: len(values) for group, values in residuals.items()}
    total, means = sum(n.values()), {group: mean(values) for group, values in residuals.items()}
    if len(n) < 2 or total <= len(n):
        return dict.fromkeys(n, 0.0)
    overall = sum(n[g] * means[g] for g in n) / total
    within = sum((value - means[g]) ** 2 for g, values in residuals.items() for value in values) / (total - len(n))
    between = (sum(n[g] * (means[g] - overall) ** 2 for g in n) - (len(n) - 1) * within) / (total - sum(c * c for c in n.values()) / total)
    if between <= 0:
        return dict.fromkeys(n, 0.0)
    return {g: (means[g] - overall) * between / (between + within / n[g]) for g in n}


def fit_effects(rated: Iterable[tuple[Feedback, str]]) -> Effects:
    """Severity of raters and effect of tickets from (an agent's rating, the ticket's topic), by turns."""
    rated = [(note, topic) for note, topic in rated if note.kind == "rating" and note.rater_id != CUSTOMER]
    overall = mean(note.rating for note, _ in rated) if rated else 0.0
    effects = Effects({}, {})
    for _ in range(ROUNDS):
        by_rater, by_topic = defaultdict(list), defaultdict(list)
        for note, topic in rated:
            by_rater[note.rater_id].append(note.rating - overall - effects.ticket.get(topic, 0.0))
        effects = Effects(shrunk(by_rater), effects.ticket)
        for note, topic in rated:
            by_topic[topic].append(effects.corrected(note) - overall)
        effects = Effects(effects.severity, shrunk(by_topic))
    return effects


def stars_of(notes: Iterable[Feedback], draft: str | None, effects: Effects) -> float | None:
    """The mean of what agents gave a message (draft None: the one sent) in corrected stars, None where nobody rated it."""
    mine = [effects.corrected(n) for n in notes if n.kind == "rating" and n.draft_id == draft and n.rater_id != CUSTOMER]
    return mean(mine) if mine else None


def topic_of(conversation: Conversation) -> str:
    return str(conversation.outcome.get("intent") or "")


def drafts_of(conversation: Conversation, index: int) -> dict[str, Message]:
    """The other replies beside a message, by id."""
    return {d["id"]: {**chat_message(d), "role": "assistant"} for d in conversation.messages[index].get("drafts", [])}


def cost(sent: str, edit: str) -> float:
    """The share of words that an edit changed: 0 accepted as it was, 1 nothing left."""
    return 1 - difflib.SequenceMatcher(None, sent.split(), edit.split(), autojunk=False).ratio()


def edited(reply: Message, notes: Iterable[Feedback], draft: str | None = None) -> list[Message]:
    """The better texts that raters wrote for a reply (draft None: the one sent), each with the reply's own tool calls."""
    return [{**reply, "content": note.edit} for note in notes if note.kind == "edit" and note.draft_id == draft and note.edit.split() not in ([], reply["content"].split())]


def spoken(reply: Message) -> tuple:
    """What a reply says and calls: the same of a draft that was sent as it was."""
    return reply["content"], [call["function"] for call in reply.get("tool_calls") or []]


def pairs(conversation: Conversation, replies: Iterable[tuple[int, list[Message], Message]], feedback: list[Feedback], effects: Effects, min_gap: float) -> Iterator[dict]:
    """Preference pairs within one prompt: the message sent and its drafts by their corrected ratings, an edit and what it mended.

    `replies` are (message index, prompt, message sent). `margin` is the gap in corrected stars, `raters` who rated which side.
    """
    notes = defaultdict(list)
    for note in feedback:
        notes[note.message_index].append(note)
    for index, prompt, sent in replies:
        place = {"conversation_id": conversation.id, "message_index": index, "locale": conversation.locale, "prompt": prompt}
        said = {None: sent} | drafts_of(conversation, index)
        rated = {draft: mine for draft in said if (mine := [n for n in notes[index] if n.kind == "rating" and n.draft_id == draft and n.rater_id != CUSTOMER])}
        stars = {draft: stars_of(mine, draft, effects) for draft, mine in rated.items()}
        for better, worse in itertools.permutations(stars, 2):
            if (gap := stars[better] - stars[worse]) >= min_gap and spoken(said[better]) != spoken(said[worse]):
                yield {**place, "chosen": [said[better]], "rejected": [said[worse]], "margin": round(gap, 3), "source": "ratings",
                       "drafts": [better, worse], "raters": [sorted({n.rater_id for n in rated[side]}) for side in (better, worse)]}
        for draft, reply in said.items():
            for better in edited(reply, notes[index], draft):
                changed = cost(reply["content"], better["content"])
                yield {**place, "chosen": [better], "rejected": [reply], "margin": round(EDIT_STARS * changed, 3), "cost": round(changed, 3), "source": "edit", "raters": [[], []]}


def unpaired(conversation: Conversation, replies: Iterable[tuple[int, list[Message], Message]], feedback: list[Feedback], effects: Effects) -> Iterator[dict]:
    """One reply and what one person thought of it; a thumb or rating of the whole conversation goes to its last reply.

    `by` is who: a customer's opinion is of the chat and its outcome, an agent's of the reply. `offset`: the stars that the agent and the kind
    of ticket add to a rating.
    """
    said = {index: (prompt, message) for index, prompt, message in replies}
    for note in feedback:
        index = max(said, default=None) if note.message_index is None else note.message_index
        if note.kind == "edit" or index not in said:
            continue
        prompt, message = said[index]
        drafts = drafts_of(conversation, index)
        if note.draft_id is not None and note.draft_id not in drafts:
            continue
        by = CUSTOMER if note.rater_id == CUSTOMER else "agent"
        value = {"label": note.thumb == "up"} if note.kind == "thumb" else {"rating": note.rating}
        if by == "agent" and note.kind == "rating":
            value["offset"] = round(effects.offset(note, topic_of(conversation)), 3)
        yield {"conversation_id": conversation.id, "message_index": index, "locale": conversation.locale, "topic": topic_of(conversation), "prompt": prompt,
               "completion": [drafts.get(note.draft_id, message)], "rater": note.rater_id, "by": by, **value}


def astray(conversation: Conversation, replies: Iterable[tuple[int, list[Message], Message]], feedback: list[Feedback]) -> int:
    """How many notes are of a message that is no reply of this conversation, or of a draft that it has not: a wrong count of messages would show here."""
    there = {index: {None, *drafts_of(conversation, index)} for index, _, _ in replies}
    return sum(note.message_index is not None and note.draft_id not in there.get(note.message_index, ()) for note in feedback)


def raters_report(ratings: list[Feedback], effects: Effects) -> dict[str, dict]:
    """By rater (a pseudonym): how many ratings, their mean and spread, severity in stars, and agreement with others on the same reply.

    Agreement: by how many stars the two lie apart, on the mean, on replies that somebody else rated too; as given, and corrected.
    """
    by_rater, by_reply = defaultdict(list), defaultdict(list)
    for note in ratings:
        by_rater[note.rater_id].append(note)
        by_reply[note.conversation_id, note.message_index, note.draft_id].append(note)
    shared = defaultdict(list)
    for notes in by_reply.values():
        for mine, theirs in itertools.permutations(notes, 2):
            if mine.rater_id != theirs.rater_id:
                shared[mine.rater_id].append((abs(mine.rating - theirs.rating), abs(effects.corrected(mine) - effects.corrected(theirs))))
    return {rater: {
        "ratings": len(notes), "mean": round(mean(n.rating for n in notes), 3), "spread": round(pstdev(n.rating for n in notes), 3),
        "severity": round(effects.severity.get(rater, 0.0), 3), "shared": len(shared[rater]),
        "apart": round(mean(given for given, _ in shared[rater]), 3) if shared[rater] else None,
        "apart_corrected": round(mean(corrected for _, corrected in shared[rater]), 3) if shared[rater] else None}
        for rater, notes in sorted(by_rater.items())}
