"""Intercom conversations as the API gives them, 2.x: one object a line, or saved pages with `conversations`.

Fields as in the REST reference of the conversation model (https://developers.intercom.com/docs/references): `source` is what began it,
`conversation_parts.conversation_parts` what followed, bodies are HTML, times are seconds since 1970. Conversations come with their parts only where
they were retrieved one by one, not out of a list. A file of lines is read as a stream.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterator

from data_prep.conversation import BadRecord
from data_prep.ingest import jsonl
from data_prep.ingest.files import objects, plain, stamp

CUSTOMERS = {"user", "lead", "contact"}
SPOKEN = {"comment", "quick_reply", "open", "close", "snoozed", "unsnoozed"}    # parts whose body, where they have one, went to the other side
PRIVATE = {"note", "note_and_reopen", "assignment", "away_mode_assignment", "assign_and_reopen", "assign_and_unsnooze"}
AUTOMATIC = {"automated", "campaigns_initiated", "operator_initiated"}          # source.delivered_as of what nobody typed


def conversations(data, run_dir: str) -> Iterator[tuple[str, object]]:
    for where, conversation in objects(data.conversations, "data.conversations", "conversations"):
        yield where, _conversation(conversation)


def feedback(data, run_dir: str) -> Iterator[tuple[str, object]]:
    """The customers' ratings, 1 to 5, of whole conversations, and `data.feedback` where it is given."""
    for where, conversation in objects(data.conversations, "data.conversations", "conversations"):
        rating = conversation.get("conversation_rating") if isinstance(conversation, dict) else None
        if isinstance(rating, dict) and rating.get("rating") is not None and conversation.get("id"):
            yield where, {"conversation_id": str(conversation["id"]), "rater_id": "customer", "kind": "rating", "rating": rating["rating"],
                          "at": stamp(rating.get("created_at"))}
    yield from jsonl.feedback(data, run_dir)


def _conversation(conversation: object) -> object:
    if conversation is None:
        return None
    if not isinstance(conversation, dict):
        return BadRecord(f"expected a conversation, got {type(conversation).__name__}")
    if not conversation.get("id"):
        return BadRecord("a conversation lacks `id`")
    parts = _dict(conversation.get("conversation_parts")).get("conversation_parts")
    if not isinstance(parts, list):
        return BadRecord("a conversation has no list of `conversation_parts`: retrieve each conversation, a list of them comes without")
    source = _dict(conversation.get("source"))
    began = {"part_type": "source", "created_at": conversation.get("created_at"), **source}
    left_out, messages, people = Counter(), [], {}
    for part in (began, *(p for p in parts if isinstance(p, dict))):
        author = _dict(part.get("author"))
        people.setdefault(str(author.get("id")), author)
        side, reason = _side(part, author)
        if reason:
            left_out[reason] += 1
        elif side:
            named = {"author_id": str(author.get("id"))} if side == "assistant" else {}
            messages.append({"role": side, "content": plain(part["body"]), "at": stamp(part.get("created_at")), **named})
    customer = next((a for a in people.values() if a.get("type") in CUSTOMERS), None) or next(iter(_contacts(conversation)), {})
    return {"id": str(conversation["id"]), "messages": messages, "left_out": dict(left_out), "started_at": stamp(conversation.get("created_at")),
            "channel": source.get("type"), "customer": _person(customer),
            "agents": [_person(a) for a in people.values() if a is not customer and a.get("id")]}


def _dict(value: object) -> dict:
    return value if isinstance(value, dict) else {}


def _contacts(conversation: dict) -> list[dict]:
    contacts = _dict(conversation.get("contacts")).get("contacts")
    return [c for c in contacts if isinstance(c, dict)] if isinstance(contacts, list) else []


def _person(author: dict) -> dict:
    return {key: author[key] for key in ("id", "name", "email", "phone") if author.get(key)}


def _side(part: dict, author: dict) -> tuple[str | None, str | None]:
    """(role, None), (None, the reason why a text is left out), or (None, None) for an event that has no text."""
    body, kind, writer = part.get("body"), part.get("part_type"), author.get("type")
    if part.get("redacted") is True:
        return None, "a redacted message"
    if not isinstance(body, str) or not plain(body):
        return None, None
    if kind in PRIVATE:
        return None, "a private note"
    if _is_bot(part, author):
        return None, "a bot's turn"
    if kind == "source" and part.get("delivered_as") in AUTOMATIC and writer not in CUSTOMERS:
        return None, "an automatic reply"
    if kind not in SPOKEN | {"source"}:
        return None, "an event with a text of its own"
    if writer in CUSTOMERS:
        return "user", None
    return ("assistant", None) if writer == "admin" else (None, "an author whose role is not known")


def _is_bot(part: dict, author: dict) -> bool:
    """Bots say so in the author's type; Fin in its marks; the Operator writes as an admin with an address of Intercom's."""
    email = str(author.get("email") or "")
    return (author.get("type") == "bot" or author.get("from_ai_agent") is True or author.get("is_ai_answer") is True
            or (email.startswith("operator+") and email.endswith("@intercom.io")))
