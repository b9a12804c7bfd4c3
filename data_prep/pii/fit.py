"""What the anonymiser learns before it masks: an archive's ordinary words, its agents' macros, a tagger of names.

    python -m data_prep.pii.fit            trains the tagger that ships with the project (data_prep/pii/shipped/)

The artefact is a folder: `fit.json` (words, macro hashes, quantiles of the archive's times) and `names.crfsuite`. It does
not depend on the order of the archive. It holds no text: words only where `MIN_CUSTOMERS` customers or more wrote them,
macros as hashes, and of a name the tagger keeps its first two and last three letters and what surrounds it.
"""

from __future__ import annotations

import bisect
import hashlib
import json
import random
import sys
from collections import Counter
from collections.abc import Collection, Iterable, Iterator
from dataclasses import dataclass, field, replace
from pathlib import Path

from data_prep.artifacts import StageError
from data_prep.conversation import Conversation, write_json
from data_prep.pii.known import People
from data_prep.pii.lexicon import (
    COMMON,
    FIRST,
    LAST,
    MISSPELT,
    ORDINARY,
    Lexicon,
    build_cues,
    build_words,
    everyday_words,
    is_held_out,
    language_of,
    native_names,
    shipped_words,
)
from data_prep.pii.names import Turn, cues, features, is_candidate, sentence_key, turn_of
from data_prep.pii.normalise import shadow
from data_prep.pii.sentences import sentences

SHIPPED = (Path(__file__).parent / "shipped/names.crfsuite").parent          # named in full: another tagger makes the stage stale
MIN_CUSTOMERS = 5            # a word or a macro counts where so many conversations have it
QUANTILES = 1000
SENTENCES = 60_000           # made up from the phrase lists and turns.yaml
UNLISTED = 0.25              # of the ordinary words in them are shown to the tagger as if no list had them
FROM_ARCHIVE = 4_000         # turns of the archive that join them

OUTCOME = ("resolved", "handed_off", "reopened", "intent", "handle_seconds")

Labelled = tuple[list[list[str]], list[str]]       # features and labels ("N" or "O") of one turn


@dataclass
class Fit:
    """A fitted artefact, loaded."""

    base: Lexicon
    quantiles: list[str] = field(default_factory=list)      # started_at of the archive, ISO 8601
    held_out: frozenset[str] = frozenset()                  # names that nothing may know, for a fair measurement
    by_language: dict[str, Lexicon] = field(default_factory=dict)
    cells: frozenset[str] | None = None                     # combinations of market, intent and month that enough customers share

    def lexicon(self, locale: str = "en") -> Lexicon:
        """What is known of words in the language of a locale."""
        language = language_of(locale)
        if language not in self.by_language:
            ordinary, both = everyday_words(language)
            self.by_language[language] = replace(self.base, language=language, cues=build_cues(language)[0], native=native_names(language, bool(self.held_out)), ordinary=ordinary, both=both - self.held_out, cache={})
        return self.by_language[language]

    def generalised(self, conversation: Conversation) -> tuple[dict, str | None]:
        """(outcome, month) with as much of intent and month as at least k customers share (k-anonymity, Sweeney 2002).

        Only an archive can tell: with the shipped artefact the intent stays and the month goes.
        """
        outcome = {key: conversation.outcome[key] for key in OUTCOME if conversation.outcome.get(key) is not None}
        month = (conversation.started_at or "")[:7] or None
        if self.cells is None:
            return outcome, None
        if cell(conversation.locale, outcome.get("intent"), month) in self.cells:
            return outcome, month
        if cell(conversation.locale, outcome.get("intent"), None) in self.cells:
            return outcome, None
        return {key: value for key, value in outcome.items() if key != "intent"}, None

    def received(self, started_at: str | None) -> float | None:
        """Where in the archive's true order a conversation stands, 0 to 1 in steps of 0.001; None where nobody knows."""
        if not started_at or not self.quantiles:
            return None
        return round(bisect.bisect_left(self.quantiles, started_at) / len(self.quantiles), 3)


def _held_out(hold_out: bool) -> frozenset[str]:
    return frozenset(word for _, both in shipped_words().values() for word in both if is_held_out(word)) if hold_out else frozenset()


def cell(locale: str, intent: str | None, month: str | None) -> str:
    return f"{locale}|{intent or ''}|{month or ''}"


def _check(folder: Path) -> None:
    if not (folder / "fit.json").is_file():
        raise StageError(f"anonymise.fit={folder} holds no fit.json: give the fit/ folder of an earlier run, or null to learn from this archive")


def digest_of(folder: Path) -> str:
    """The hash of an artefact, for lineage. Raises: StageError where the folder holds none."""
    _check(folder)
    return hashlib.sha256((folder / "fit.json").read_bytes() + (folder / "names.crfsuite").read_bytes()).hexdigest()[:16]


def load(folder: Path = SHIPPED, company: Iterable[str] = (), hold_out: bool = False) -> Fit:
    """Raises: StageError where the folder holds no artefact."""
    import pycrfsuite

    _check(folder)
    facts = json.loads((folder / "fit.json").read_text(encoding="utf-8"))
    tagger = pycrfsuite.Tagger()
    tagger.open(str(folder / "names.crfsuite"))
    lexicon = Lexicon(words=build_words(hold_out, facts["words"]), cues={}, particles=build_cues("en")[1], slots=frozenset(facts["slots"]), tagger=tagger,
                      company=frozenset(word.casefold() for name in company for word in name.split()))
    return Fit(lexicon, facts["quantiles"], _held_out(hold_out), cells=frozenset(facts["cells"]) if facts["cells"] is not None else None)


def _labels(turn: Turn, names: Iterable[str], cue: dict[int, str]) -> list[str]:
    parts = {part.casefold() for name in names for part in [m.casefold() for m in name.split()] + [name]}
    pieces = {piece for part in parts for piece in (part, *part.split("-"))}
    return ["N" if word in pieces and is_candidate(turn, i, cue) else "O" for i, word in enumerate(turn.lower)]


def made_up(fit: Fit, seed: int, count: int, hold_out: bool = False, among: Collection[str] | None = None) -> Iterator[Labelled]:
    """Training data without an archive. among: languages, by default all. Half of the listed names and some ordinary words are made to look unlisted."""
    rng = random.Random(seed)
    names = sorted(word for word, flags in fit.base.words.items() if flags & (FIRST | LAST))
    hidden = frozenset(rng.sample(names, len(names) // 2))
    strangers = Fit(replace(fit.base, words={word: flags for word, flags in fit.base.words.items() if word not in hidden}), held_out=fit.held_out)
    for language, text, people, by_agent, asked in sentences(rng, count, hold_out, among):
        turn = turn_of(text, 0, len(text), by_agent, strangers.lexicon(language), asked)
        turn.native = [native and word not in hidden for word, native in zip(turn.lower, turn.native, strict=True)]
        turn.flags = [0 if flags in (ORDINARY, MISSPELT) and rng.random() < UNLISTED else flags for flags in turn.flags]
        cue = cues(turn, fit.lexicon(language))
        yield features(turn, cue), _labels(turn, people, cue)


def train(data: Iterable[Labelled], path: Path, iterations: int = 60) -> None:
    """Train the tagger: CRF by L-BFGS with L2 (crfsuite), features seen less than four times left out."""
    import pycrfsuite

    trainer = pycrfsuite.Trainer(verbose=False)
    for rows, labels in data:
        if "N" in labels or any(len(row) > 1 for row in rows):
            trainer.append(rows, labels)
    trainer.set_params({"c1": 0.0, "c2": 0.3, "max_iterations": iterations, "feature.minfreq": 4, "feature.possible_transitions": True})
    trainer.train(str(path))


# ---------------------------------------------------------------------------------------------------------------------
# An archive
# ---------------------------------------------------------------------------------------------------------------------


def hash_of(value: object) -> int:
    return int.from_bytes(hashlib.blake2b(str(value).encode("utf-8", "surrogatepass"), digest_size=8).digest(), "big")


class Learner:
    """Reads an archive once, conversation by conversation, and writes the artefact. Counts only, so order does not matter."""

    def __init__(self, base: Fit):
        self.base = base
        self.lower: Counter = Counter()          # conversations in which a word stands in small letters
        self.upper: Counter = Counter()          # … only with a capital
        self.named: Counter = Counter()          # … as a name: it belongs to somebody known, or follows a phrase that announces one
        self.slots: Counter = Counter()
        self.slot_names: Counter = Counter()
        self.times: Counter = Counter()
        self.turns: dict[str, Labelled] = {}     # those with the smallest hashes: a sample that does not depend on order
        self.customers: dict[str, set] = {}      # cell → some of its customers, as many as are needed
        self.conversations = 0
        self.languages: set[str] = set()

    def see(self, conversation: Conversation, k: int) -> None:
        """Count one conversation. k: how many customers must share a combination of market, intent and month."""
        self.conversations += 1
        self.languages.add(language_of(conversation.locale))
        started_at = conversation.started_at
        if started_at:
            self.times[started_at] += 1
        customer = hash_of(conversation.customer.get("id") or conversation.id)
        for month in ((started_at or "")[:7] or None, None):
            mine = self.customers.setdefault(cell(conversation.locale, conversation.outcome.get("intent"), month), set())
            if len(mine) < k:
                mine.add(customer)
        known = frozenset(People.of([conversation.customer, *conversation.agents]).parts)
        lexicon, small, large, named = self.base.lexicon(conversation.locale), set(), set(), set()
        for message in conversation.messages:
            if message["role"] not in ("user", "assistant"):
                continue
            text, by_agent = shadow(message["content"], language_of(conversation.locale)).text, message["role"] == "assistant"
            turn = turn_of(text, 0, len(text), by_agent, lexicon)
            cue = cues(turn, lexicon)
            for i, word in enumerate(turn.words):
                if turn.lower[i] in known or (i in cue and turn.flags[i] != COMMON) or (len(turn.words) <= 2 and turn.flags[i] & (FIRST | LAST)):
                    named.add(turn.lower[i])
                elif word.islower():
                    small.add(turn.lower[i])
                else:
                    large.add(turn.lower[i])
            if by_agent and (key := sentence_key(turn)):
                self.slots[key] += 1
                self.slot_names[key] += any(is_candidate(turn, i, cue) and (turn.lower[i] in known or (turn.flags[i] & (FIRST | LAST) and not turn.flags[i] & COMMON)) for i in range(len(turn.words)))
            if known:
                self._keep(turn, cue, known)
        self.lower.update(small - named)
        self.upper.update(large - small - named)
        self.named.update(named)

    def _keep(self, turn: Turn, cue: dict[int, str], known: frozenset[str]) -> None:
        labels = _labels(turn, known, cue)
        if not any(is_candidate(turn, i, cue) for i in range(len(turn.words))):
            return
        mark = hashlib.blake2b(f"{'N' in labels}{turn.by_agent}{' '.join(turn.words)}".encode(), digest_size=8).hexdigest()
        self.turns[mark] = (features(turn, cue, known, known if int(mark[:2], 16) % 2 else frozenset()), labels)
        if len(self.turns) > 2 * FROM_ARCHIVE:
            self.turns = dict(sorted(self.turns.items())[:FROM_ARCHIVE])

    def words(self) -> dict[str, int]:
        """Words that the archive uses as ordinary ones. A listed name must be far more common than names are, and not stand where names stand."""
        known = self.base.base.words
        ordinary = {}
        for word in self.lower.keys() | self.upper.keys():
            count, as_name = self.lower[word] + self.upper[word], self.named[word]
            if known.get(word, 0) & COMMON or count < MIN_CUSTOMERS or as_name > 0.2 * count:
                continue
            listed = known.get(word, 0) & (FIRST | LAST)
            if listed and (count < max(20, 0.005 * self.conversations) or as_name > 0.02 * count or self.lower[word] < 0.5 * count):
                continue
            if self.lower[word] >= MIN_CUSTOMERS or self.upper[word] >= 4 * MIN_CUSTOMERS:
                ordinary[word] = COMMON
        return ordinary

    def write(self, folder: Path, k: int, seed: int = 0) -> None:
        folder.mkdir(parents=True, exist_ok=True)
        times = sorted(self.times.elements())
        quantiles = sorted({times[i * len(times) // QUANTILES] for i in range(QUANTILES)}) if times else []
        slots = sorted(key for key, count in self.slots.items() if count >= MIN_CUSTOMERS and self.slot_names[key] >= 0.3 * count)
        cells = sorted(name for name, customers in self.customers.items() if len(customers) >= k)
        write_json(folder / "fit.json", {"words": dict(sorted(self.words().items())), "slots": slots, "quantiles": quantiles, "cells": cells, "conversations": self.conversations})
        mine = [labelled for _, labelled in sorted(self.turns.items())[:FROM_ARCHIVE]]
        # The shipped tagger is good enough where the archive knows nobody by name; with known people it learns from them.
        if mine:
            train([*made_up(self.base, seed, SENTENCES // 4, among=self.languages | {"en"}), *mine], folder / "names.crfsuite")
        else:
            (folder / "names.crfsuite").write_bytes((SHIPPED / "names.crfsuite").read_bytes())


def ship(folder: Path = SHIPPED, hold_out: bool = False) -> None:
    """Train the tagger that ships with the project; hold_out: on four of five names, to measure on the fifth."""
    folder.mkdir(parents=True, exist_ok=True)
    fit = Fit(Lexicon(words=build_words(hold_out), cues={}, particles=build_cues("en")[1]), held_out=_held_out(hold_out))
    train(made_up(fit, 0, SENTENCES, hold_out), folder / "names.crfsuite")
    write_json(folder / "fit.json", {"words": {}, "slots": [], "quantiles": [], "cells": None, "conversations": 0})


if __name__ == "__main__":
    ship(Path(sys.argv[1]) if len(sys.argv) > 1 else SHIPPED)
