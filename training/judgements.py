"""What was judged of a conversation's replies, as trees: pairs, single ratings, and good replies beside spoiled ones."""

from __future__ import annotations

import hashlib
import itertools
import json
import math
import random
import re
from collections import defaultdict
from collections.abc import Sequence
from dataclasses import dataclass, field, replace
from typing import NamedTuple

from data_prep.artifacts import StageError, require
from data_prep.conversation import Message, read_jsonl
from training.ensemble import leaf
from training.models import count_tokens
from training.trees import Tree, grow

STARS = 5
GOOD = 4             # corrected stars from which on a reply is one to go on writing
SPOILED = 3          # spoiled replies among a conversation's leaves
LARGEST = 2          # times a model's longest sequence: tokens of a tree
TRIED = 8            # replies at such a place among which one is looked for that is never said there about the same topic
Place = tuple[str, str]                        # a language; who is answered, the customer ("user") or a tool
_number = re.compile(r"\d+")
_named = re.compile(r'"name": ?"(\w+)"')


@dataclass
class Judged:
    """One conversation: its replies as a tree, and what was said of them. Leaves are numbered as in the tree."""

    tree: Tree
    lengths: list[int]                                                      # tokens of each leaf's reply
    pairs: list[tuple[int, int, float]] = field(default_factory=list)       # better, worse, gap in corrected stars
    ratings: list[tuple[int, int, float]] = field(default_factory=list)     # leaf, stars, what rater and ticket add to them
    raters: list[list[list[str]]] = field(default_factory=list)             # of each pair: who rated the better one, who the worse one
    topic: str = ""
    places: list[Place] = field(default_factory=list)                       # where each leaf is said
    spoiled: list[tuple[int, int, str]] = field(default_factory=list)       # a good reply, a spoiled one in its place, and how it was spoiled

    def good(self) -> set[int]:
        """The leaves that are fit to be said: better ones of pairs, and those of four corrected stars or more."""
        return {better for better, _, _ in self.pairs} | {at for at, stars, offset in self.ratings if stars - offset >= GOOD}

    def replies(self) -> list[list[int]]:
        """The places of each leaf's reply in the tree."""
        return [path[-length:] for path, length in zip(self.tree.leaves, self.lengths, strict=True)]

    def reply(self, leaf: int) -> list[int]:
        """The tokens of a leaf's reply."""
        return [self.tree.ids[place] for place in self.tree.leaves[leaf][-self.lengths[leaf]:]]


def read(config, tokenizer, split: str, most: float = math.inf) -> tuple[list[Judged], int]:
    """What was judged in a split, a tree a conversation (several where it would be too large), until these hold `most` pairs between them, and how many judgements were dropped because their reply is too long.

    An agent's thumb counts as the most or the fewest stars. Customers' opinions are left out: they are of the chat and its outcome, not of the reply.
    """
    folder, sources, dropped = require(config, "prepare", "reward"), config.reward.sources, 0
    pairs, ratings = defaultdict(list), defaultdict(list)
    for _, row in read_jsonl(folder / f"preferences/{split}.jsonl"):
        pairs[row["conversation_id"]].append(row)
    for _, row in read_jsonl(folder / f"unpaired/{split}.jsonl"):
        if row["by"] == "agent":
            ratings[row["conversation_id"]].append(row if "rating" in row else {**row, "rating": STARS if row["label"] else 1, "offset": 0.0})
    found = []
    for name in dict.fromkeys([*pairs, *ratings]):
        if most <= 0:
            break
        rows = [*(pairs[name] if "pairs" in sources or split != "train" else []), *(ratings[name] if "ratings" in sources else [])]
        kept = judged_of(tokenizer, rows, next((row["topic"] for row in ratings[name]), ""), config.model.max_tokens)
        count = sum(len(one.pairs) for one in kept)
        dropped += len(rows) - count - sum(len(one.ratings) for one in kept)
        most -= count
        found += kept
    return found, dropped


def judged_of(tokenizer, rows: list[dict], topic: str, max_tokens: int) -> list[Judged]:
    """What was judged of one conversation, too long replies left out: a tree, or several where that one would have more than LARGEST times `max_tokens` tokens.

    Attention takes the square of a tree's tokens: conversations with some dozen long replies judged, sixteen in a batch, took 23 GB beside a model of a million parameters.
    """
    if not rows:
        return []
    said = Replies(tokenizer, max_tokens, rows[0]["locale"])
    both = [(said.add(row["prompt"], row["chosen"][0]), said.add(row["prompt"], row["rejected"][0]), row) for row in rows if "chosen" in row]
    one = [(said.add(row["prompt"], row["completion"][0]), row) for row in rows if "completion" in row]
    tree = grow(said.sequences)
    if len(tree.ids) > LARGEST * max_tokens and len(rows) > 1:
        by_turn = sorted(rows, key=lambda row: len(row["prompt"]))
        return [one for half in (by_turn[:len(rows) // 2], by_turn[len(rows) // 2:]) for one in judged_of(tokenizer, half, topic, max_tokens)]
    kept, rated = [(better, worse, row) for better, worse, row in both if None not in (better, worse)], [(at, row) for at, row in one if at is not None]
    if not kept and not rated:
        return []
    return [Judged(tree, said.lengths, [(b, w, row["margin"]) for b, w, row in kept], [(at, row["rating"], row["offset"]) for at, row in rated],
                   [row["raters"] for _, _, row in kept], topic, said.places)]


class Replies:
    """The replies of one conversation that were judged, each once with what came before it: a reply is judged several times, and a prompt has several."""

    def __init__(self, tokenizer, max_tokens: int, locale: str):
        self.tokenizer, self.max_tokens, self.locale = tokenizer, max_tokens, locale
        self.sequences: list[tuple[int, ...]] = []
        self.lengths: list[int] = []                            # tokens of each sequence's reply
        self.places: list[Place] = []
        self._tokens: dict[str, int] = {}                       # of a prompt
        self._numbers: dict[tuple[int, ...], int] = {}          # of a sequence
        self._known: dict[tuple[str, str], int | None] = {}     # number of a prompt with its reply

    def add(self, prompt: list[Message], reply: Message) -> int | None:
        """The number of a reply, or None where it is too long."""
        asked = json.dumps(prompt)
        both = asked, json.dumps(reply)
        if both not in self._known:
            if asked not in self._tokens:
                self._tokens[asked] = count_tokens(self.tokenizer, prompt, add_generation_prompt=True)
            made = leaf(self.tokenizer, prompt, reply, self.max_tokens, self._tokens[asked])
            if made is not None and (sequence := tuple(made[0])) not in self._numbers:
                self._numbers[sequence] = len(self.sequences)
                self.sequences.append(sequence)
                self.lengths.append(made[1])
                self.places.append((self.locale, answered(prompt)))
            self._known[both] = None if made is None else self._numbers[tuple(made[0])]
        return self._known[both]


def answered(prompt: list[Message]) -> str:
    """Who is answered: "user", or the tool whose result stands last."""
    calls = [call["function"]["name"] for message in prompt[-2:] for call in message.get("tool_calls") or []]
    return calls[-1] if prompt[-1]["role"] == "tool" and calls else prompt[-1]["role"]


class Around(NamedTuple):
    """Where a reply stands that is to be spoiled: the tokens before it; good replies of its conversation, of such places in ones about something else (those of them that
    call a tool, too), and of all; the tokens that are digits."""

    before: list[int]
    own: list[list[int]]
    others: list[list[int]]
    deeds: list[list[int]]
    anywhere: list[list[int]]
    digits: set[int]


def spoil(tokenizer, judged: list[Judged], rng: random.Random) -> list[Judged]:
    """The conversations with some of their good replies spoiled among the leaves.

    Raters see what agents wrote, which is mostly to the point and whole. A policy tries everything: without these, one learned to say goodbye to
    everybody, for goodbyes had never been rated badly, another to look an order up twice, one to confirm a new address where it had moved a payment, and one
    to name the days of the delivery where those of the payment were asked for, one to cancel orders that it was only asked about. What comes from elsewhere is itself one of the replies that are spoiled, for
    what is much oftener right than wrong is preferred unread: a policy took every other concern for the one that most of the conversations were about.
    """
    goods = [sorted(one.good()) for one in judged]
    chosen = [rng.sample(good, min(SPOILED, len(good))) for good in goods]
    pool: dict[Place, list[list[int]]] = defaultdict(list)
    about: dict[tuple[Place, str], set[str]] = defaultdict(set)          # what is said at a place about a topic, as wordings
    for one, good, some in zip(judged, goods, chosen, strict=True):
        for at in some:
            pool[one.places[at]].append(one.reply(at))
        for at in good:
            about[one.places[at], one.topic].add(wording(tokenizer, one.reply(at)))
    calls = {place: [reply for reply in replies if kind(tokenizer, reply) != "text"] for place, replies in pool.items()}
    anywhere = [reply for replies in pool.values() for reply in replies]
    digits = {token for token in range(len(tokenizer)) if tokenizer.decode([token]).strip().isdigit()}
    made = []
    for one, good, some in zip(judged, goods, chosen, strict=True):
        sequences, spoiled, own = [[one.tree.ids[place] for place in leaf] for leaf in one.tree.leaves], [], [one.reply(at) for at in good]
        for at in some:
            place, right, before = one.places[at], one.reply(at), sequences[at][:-one.lengths[at]]
            elsewhere = [[reply for reply in rng.sample(some, min(TRIED, len(some))) if not one.topic or wording(tokenizer, reply) not in about[place, one.topic]] for some in (pool[place], calls[place])]
            others, deeds = ([with_numbers_of(before, reply, digits, rng) for reply in some] for some in elsewhere)
            around = Around(before, own, others, deeds, anywhere, digits)
            for name in rng.choices(list(WAYS), WEIGHTS, k=2):           # the second, where the first finds nothing to do
                wrong = WAYS[name](right, around, rng)
                if wording(tokenizer, wrong) != wording(tokenizer, right) or (name == "another value" and wrong != right):
                    spoiled.append((at, len(sequences), name))
                    sequences.append([*before, *wrong])
                    break
        lengths = one.lengths + [len(sequences[wrong]) - len(sequences[right]) + one.lengths[right] for right, wrong, _ in spoiled]
        made.append(replace(one, tree=grow(sequences), lengths=lengths, spoiled=spoiled))
    return made


def numbers(ids: Sequence[int], digits: set[int]) -> list[tuple[int, int]]:
    """Where numbers stand among tokens: (start, end) of each."""
    edges = [0, *(place for place in range(1, len(ids)) if (ids[place] in digits) != (ids[place - 1] in digits)), len(ids)]
    return [(start, end) for start, end in itertools.pairwise(edges) if start < end and ids[start] in digits]


def with_numbers_of(before: Sequence[int], reply: Sequence[int], digits: set[int], rng: random.Random) -> list[int]:
    """Another conversation's reply with each number replaced by one of as many digits that stands before it here, where there is one: else its numbers alone would show that it is out of place."""
    known, made, last = sorted({tuple(before[a:b]) for a, b in numbers(before, digits)}), [], 0
    for start, end in numbers(reply, digits):
        made += [*reply[last:start], *rng.choice([number for number in known if len(number) == end - start] or [reply[start:end]])]
        last = end
    return [*made, *reply[last:]]


def another_value(right, around, rng):
    """The reply with a number that it takes from the conversation put wrong: another one that stands there, of about as many digits. As it is, where it takes none."""
    known = {tuple(around.before[a:b]) for a, b in numbers(around.before, around.digits)}
    taken = [(a, b) for a, b in numbers(right, around.digits) if tuple(right[a:b]) in known]
    if not taken:
        return right
    start, end = rng.choice(taken)
    instead = sorted(number for number in known - {tuple(right[start:end])} if abs(len(number) - (end - start)) <= 1)
    return [*right[:start], *rng.choice(instead), *right[end:]] if instead else right


def cut_short(right, around, rng):
    return [*right[:rng.randrange(1, max(2, len(right) - 1))], right[-1]]


def spliced(right, around, rng):
    other = rng.choice(around.anywhere)
    return [*right[:rng.randrange(1, max(2, len(right) - 1))], *other[rng.randrange(len(other)):]]


WEIGHTS = 3, 4, 4, 3, 1, 1, 1
# A reply that was right at another turn of the conversation; at such a place of a conversation about something else; there, and it calls a tool; with a number of the conversation in the place of another;
# of any other conversation; one that breaks off; one that goes on as another.
WAYS = {"another turn": lambda right, around, rng: rng.choice(around.own), "another concern": lambda right, around, rng: rng.choice(around.others or around.own),
        "unasked": lambda right, around, rng: rng.choice(around.deeds or around.own), "another value": another_value,
        "another language": lambda right, around, rng: rng.choice(around.anywhere), "cut short": cut_short, "spliced": spliced}


def check(judged: list[Judged]) -> None:
    """Raises: StageError where nothing can be learned, with what to collect."""
    if not any(j.pairs or j.ratings for j in judged):
        raise StageError("there is neither a preference pair nor an agent's rating: collect ratings of replies (1 to 5), or edits, or ratings of two drafts for one prompt (see the README, Your own data)")
    stars = {stars for j in judged for _, stars, _ in j.ratings}
    if not any(j.pairs for j in judged) and len(stars) < 2:
        raise StageError(f"all ratings are {stars.pop()}: nothing tells good replies from bad ones; collect ratings that differ, or edits")
    if len(judged) < 2:
        raise StageError("all judgements are of one conversation: two at least are needed, one of them for the model that watches; collect ratings of more")


def deal(judged: list[Judged], parts: int) -> list[list[Judged]]:
    """The conversations in equal parts that share none, always the same way."""
    ordered = sorted(judged, key=lambda j: hashlib.sha256(repr(j.tree.ids).encode()).digest())
    return [ordered[k::parts] for k in range(parts)]


def kind(tokenizer, reply: Sequence[int]) -> str:
    """The tool that a reply calls first, read from its tokens; "text" where it calls none (of a message: training/dpo.py's `tool_of`)."""
    named = _named.search(tokenizer.decode(reply))
    return named.group(1) if named else "text"


def wording(tokenizer, reply: Sequence[int]) -> str:
    """A reply as text, its numbers left open."""
    return _number.sub("#", tokenizer.decode(reply))
