"""One conversation in, the same conversation without personal data out, or the reasons why it must not leave."""

from __future__ import annotations

import base64
import datetime
import functools
import hashlib
import hmac
import json
import re
import traceback
from collections.abc import Callable, Iterable
from dataclasses import dataclass, field
from pathlib import Path

from data_prep.conversation import Conversation
from data_prep.pii import dates
from data_prep.pii.detect import Rules, Span, country_of, detect
from data_prep.pii.fit import Fit
from data_prep.pii.known import People
from data_prep.pii.leak import leaks
from data_prep.pii.lexicon import COMMON, Lexicon, language_of
from data_prep.pii.names import WORD, is_product, turn_of
from data_prep.pii.surrogates import Surrogates

WEEKS = 26              # dates move by so many whole weeks at most
MOSTLY_MASKED = 0.6     # of a conversation's characters: what is left teaches nothing


@dataclass
class Masked:
    """What became of one conversation. record is None in quarantine. spans: [text index, start, end, kind] in the output."""

    id: str
    record: dict | None
    edits: list[str] = field(default_factory=list)
    reasons: list[str] = field(default_factory=list)
    spans: list[list] = field(default_factory=list)
    counts: dict[str, int] = field(default_factory=dict)        # "kind|language|detector+detector" → how often
    vault: str = ""                                             # stand-in → original, encrypted; only where a vault is kept


@dataclass
class Masker:
    """Anonymises one conversation after the other; a pure function of key, settings, fitted artefact and conversation.

    max_rare: more capitalised words than this that nobody knows send a conversation to quarantine. mode: surrogate, placeholder or slot. scope: what stand-ins are stable in, conversation or customer. recognise: a NER model.
    """

    key: bytes
    fit: Fit
    rules: Rules = field(default_factory=Rules)
    mode: str = "surrogate"
    scope: str = "conversation"
    recognise: Callable | None = None
    keep_vault: bool = False
    max_rare: int | None = None

    def apply(self, conversation: Conversation, edits: list[str] = ()) -> Masked:
        """Never raises because of what a conversation holds: what cannot be handled is quarantined with the place in our code."""
        try:
            return self._apply(conversation, list(edits))
        except Exception as error:
            frame = traceback.extract_tb(error.__traceback__)[-1]
            return Masked(conversation.id, None, reasons=[f"{type(error).__name__} at {Path(frame.filename).name}:{frame.lineno}"])

    def _apply(self, conversation: Conversation, edits: list[str]) -> Masked:
        persons = [conversation.customer, *conversation.agents]
        people, lexicon = People.of(persons), self.fit.lexicon(conversation.locale)
        texts = [*texts_of(conversation.messages), *(("assistant", edit) for edit in edits)]
        found = detect(texts, conversation.locale, people, self.rules, lexicon, self.recognise)
        stand_in = self._stand_ins(conversation, people, found)
        outcome = Masked(conversation.id, None)
        outputs = [self._mask(i, text, spans, stand_in, outcome, conversation) for i, ((_, text), spans) in enumerate(zip(texts, found, strict=True))]
        masked = [(span.kind, span.text) for spans in found for span in spans if span.kind != "date"]
        reasons = leaks(outputs, persons, masked, self.rules.public, country_of(conversation.locale), lambda word: bool(lexicon.flags(word) & COMMON))
        characters = sum(len(text) for _, text in texts)
        if sum(len(text) for _, text in masked) > MOSTLY_MASKED * characters and characters > 200:
            reasons.append("mostly personal data")
        if any(role == "tool" and _is_json(text) and not _is_json(made) for (role, text), made in zip(texts, outputs, strict=True)):
            reasons.append("a tool's JSON would break")
        if self.max_rare is not None and self._rare(texts, outputs, outcome.spans, lexicon) > self.max_rare:
            reasons.append("rare words left")
        if reasons:
            return Masked(conversation.id, None, reasons=reasons)
        outcome.record = self._record(conversation, outputs)
        outcome.edits = outputs[len(outputs) - len(edits):]
        if self.keep_vault:
            outcome.vault = encrypted({stand_in(span): span.text for spans in found for span in spans}, self.key, outcome.record["id"])
        return outcome

    @staticmethod
    def _rare(texts: list[tuple[str, str]], outputs: list[str], spans: list[list], lexicon: Lexicon) -> int:
        """How many words stand in the output with a capital inside a sentence that neither lists nor frequencies nor the archive know."""
        stand_ins = {(index, place) for index, start, end, _ in spans for place in range(start, end)}
        rare = set()
        for index, ((role, _), text) in enumerate(zip(texts, outputs, strict=True)):
            if role in ("user", "assistant"):
                turn = turn_of(text, 0, len(text), role == "assistant", lexicon)
                rare |= {turn.lower[i] for i in range(1, len(turn.words)) if turn.flags[i] == 0 and len(turn.words[i]) > 3 and turn.words[i][0].isupper() and not turn.words[i].isupper()
                         and not any(c in ".!?\n" for c in turn.gaps[i]) and not is_product(turn, i) and (index, turn.spans[i][0]) not in stand_ins}
        return len(rare)

    def _stand_ins(self, conversation: Conversation, people: People, found: list[list[Span]]) -> Callable[[Span], str]:
        taken = {word for spans in found for span in spans if span.kind == "name" for word in WORD.findall(span.text)} | set(people.parts)
        scope = conversation.customer.get("id") if self.scope == "customer" else None
        known = {str(value).casefold(): f"{who}.{key}" for who, person in (*(("agent", agent) for agent in conversation.agents), ("customer", conversation.customer))
                 for key, value in person.items() if key != "id" and isinstance(value, str)}
        surrogates = Surrogates(self.key, str(scope or conversation.id), conversation.locale, self.fit.lexicon(conversation.locale), taken, self.mode, known, people.parts)
        weeks, seconds = weeks_of(self.key, conversation.id), seconds_of(self.key, conversation.id)
        year = int(conversation.started_at[:4]) if re.match(r"\d{4}", conversation.started_at or "") else datetime.date.today().year
        for spans in found:                     # long ones first, so that "ending in 1234" finds the card it is the end of
            for span in sorted(spans, key=lambda s: -len(s.text)):
                if span.kind not in ("date", "name") and len(span.text) > 4:
                    surrogates.of(span.kind, span.text)

        def stand_in(span: Span) -> str:
            if span.kind == "date":
                return dates.shifted(span.text, weeks, conversation.locale, year, seconds) or span.text
            return surrogates.of(span.kind, span.text)
        return stand_in

    def _mask(self, index: int, text: str, spans: list[Span], stand_in: Callable[[Span], str], outcome: Masked, conversation: Conversation) -> str:
        made, position, length = [], 0, 0
        language = language_of(conversation.locale)
        for span in spans:
            kept, new = text[position:span.start], stand_in(span)
            made += [kept, new]
            length += len(kept)
            outcome.spans.append([index, length, length + len(new), span.kind])
            length += len(new)
            position = span.end
            key = f"{span.kind}|{language}|{span.detector}"
            outcome.counts[key] = outcome.counts.get(key, 0) + 1
        return "".join(made) + text[position:]

    def _record(self, conversation: Conversation, outputs: list[str]) -> dict:
        remaining = iter(outputs)
        messages = [_with_texts(message, remaining) for message in conversation.messages]
        weeks = weeks_of(self.key, conversation.id)
        for message in messages:
            if "author_id" in message:
                message["author_id"] = pseudonym(self.key, "agent", message["author_id"])
            if "at" in message:
                message["at"] = moved(message["at"], weeks)
        customer = conversation.customer.get("id")
        received = self.fit.received(conversation.started_at)
        outcome, month = self.fit.generalised(conversation)
        record = vars(conversation) | {
            "id": pseudonym(self.key, "conversation", conversation.id), "messages": messages, "started_at": moved(conversation.started_at, weeks),
            "customer": {"id": pseudonym(self.key, "customer", customer if customer else conversation.id)},
            "agents": [{"id": pseudonym(self.key, "agent", agent.get("id"))} for agent in conversation.agents],
            "outcome": outcome, "metadata": {"received": received, "month": month}}
        record["metadata"] = {key: value for key, value in record["metadata"].items() if value is not None}
        return seal({key: value for key, value in record.items() if value not in ([], {}, None)}, self.key)


def texts_of(messages: Iterable[dict]) -> list[tuple[str, str]]:
    """(role, text) of every text of a conversation in which personal data may stand, in the order of `_with_texts`."""
    texts: list[tuple[str, str]] = []
    for message in messages:
        for part in (message, *message.get("drafts", [])):
            texts.append((message["role"], part.get("content") or ""))
            texts += [("tool", call["function"]["arguments"]) for call in part.get("tool_calls", [])]
    return texts


def _is_json(text: str) -> bool:
    try:
        json.loads(text)
    except (ValueError, RecursionError):
        return False
    return True


KEPT = ("role", "content", "tool_calls", "tool_call_id", "name", "author_id", "at", "drafts", "id")


def _with_texts(message: dict, texts) -> dict:
    """The message with its texts replaced by the next ones. Keys that nobody declared are left behind: they might hold anything."""
    changed = {key: value for key, value in message.items() if key in KEPT} | {"content": next(texts)}
    if message.get("tool_calls"):
        changed["tool_calls"] = [{**call, "function": {**call["function"], "arguments": next(texts)}} for call in message["tool_calls"]]
    if message.get("drafts"):
        changed["drafts"] = [_with_texts(draft, texts) for draft in message["drafts"]]
    return changed


def weeks_of(key: bytes, conversation_id: str) -> int:
    """By how many weeks the dates of a conversation move: -26 to 26, never 0."""
    number = int.from_bytes(hmac.new(key, f"weeks\x00{conversation_id}".encode(), hashlib.sha256).digest()[:4], "big") % (2 * WEEKS)
    return number - WEEKS if number < WEEKS else number - WEEKS + 1


def seconds_of(key: bytes, conversation_id: str) -> int:
    """By how many seconds the times of a conversation that are told to the second move: one minute to one hour."""
    return 61 + int.from_bytes(hmac.new(key, f"seconds\x00{conversation_id}".encode(), hashlib.sha256).digest()[:4], "big") % 3540


def moved(at: object, weeks: int) -> str | None:
    """An ISO 8601 time so many weeks later, in the same notation; None where it is no time."""
    if not isinstance(at, str) or not re.match(r"\d{4}-\d\d-\d\d", at):
        return None
    try:
        day = datetime.date.fromisoformat(at[:10]) + datetime.timedelta(weeks=weeks)
    except (ValueError, OverflowError):
        return None
    rest = re.match(r"[T ][\d:.]*(?:Z|[+-]\d\d:?\d\d)?", at[10:])
    return day.isoformat() + (rest.group() if rest else "")


def pseudonym(key: bytes, kind: str, value: object) -> str:
    """12 hexadecimal digits that only the holder of the key can link to the value."""
    return hmac.new(key, f"{kind}\x00{value}".encode("utf-8", "surrogatepass"), hashlib.sha256).hexdigest()[:12]


def seal(record: dict, key: bytes) -> dict:
    """The record with an HMAC over its canonical JSON: proof that it came out of this stage under this key."""
    body = {k: v for k, v in record.items() if k != "seal"}
    return {**body, "seal": hmac.new(key, json.dumps(body, sort_keys=True).encode(), hashlib.sha256).hexdigest()}


def is_sealed(record: dict, key: bytes) -> bool:
    return isinstance(record.get("seal"), str) and hmac.compare_digest(record["seal"], seal(record, key)["seal"])


def encrypted(entries: dict[str, str], key: bytes, record_id: str) -> str:
    """AES-256-GCM (NIST SP 800-38D) under a key of its own derived from ours, bound to the record; base64 of nonce and ciphertext."""
    from cryptography.hazmat.primitives.ciphers.aead import AESGCM

    nonce = hmac.new(key, f"nonce\x00{record_id}".encode(), hashlib.sha256).digest()[:12]
    sealed = AESGCM(_vault_key(key)).encrypt(nonce, json.dumps(entries, sort_keys=True).encode(), record_id.encode())
    return base64.b64encode(nonce + sealed).decode()


def decrypted(sealed: str, key: bytes, record_id: str) -> dict[str, str]:
    """Raises: cryptography.exceptions.InvalidTag under another key or for another record."""
    from cryptography.hazmat.primitives.ciphers.aead import AESGCM

    raw = base64.b64decode(sealed)
    return json.loads(AESGCM(_vault_key(key)).decrypt(raw[:12], raw[12:], record_id.encode()))


def _vault_key(key: bytes) -> bytes:
    return hmac.new(key, b"vault", hashlib.sha256).digest()


@functools.cache
def compiled(public: tuple[str, ...], business: tuple[str, ...]) -> Rules:
    """The rules of a company pack: identifiers as they are written, business numbers as regular expressions."""
    return Rules(tuple(re.compile(rf"(?<!\w){re.escape(value)}(?!\w)", re.IGNORECASE) for value in public), tuple(re.compile(pattern) for pattern in business))

