"""Zendesk tickets with their comments: the account's JSON export (a ticket a line) or saved pages of the API's ticket exports.

Fields as in the Ticketing API's references of tickets, ticket comments, users and via objects
(https://developer.zendesk.com/api-reference/ticketing). `comments` stand in the ticket. People come from `data.users` (a user a line), from a
page's or ticket's `users`, and from the `requester`, `submitter` and `assignee` objects of the JSON export; with none of
them only the requester and the assignee are known by id, and what anybody else wrote is left out.

The file is read twice: once for people, merges and repeated tickets, once for the conversations. In memory are one small
record for each person, one line number for each ticket, and the merged tickets. A `.json` page is read whole.
"""

from __future__ import annotations

import re
from collections import Counter
from collections.abc import Iterator
from dataclasses import dataclass, field

from data_prep.conversation import BadRecord
from data_prep.ingest import jsonl
from data_prep.ingest.files import moment, objects, plain, stamp

AUTOMATIC = {"rule", "automation"}                 # via.channel of what triggers and automations wrote
AUTOMATIC_RELATIONS = {"trigger", "automation"}    # via.source.rel of the same
SYSTEM = -1                                        # author_id of Zendesk itself
SIDES = {"end-user": "user", "agent": "assistant", "admin": "assistant"}
THUMBS = {"good": "up", "bad": "down"}             # offered and unoffered: nobody answered
# The notices that a merge writes into both tickets. Zendesk's default words, for exports without via.source.rel.
_merge_notice = re.compile(r"#(\d+)\b.{0,300}?\bmerged into this (?:request|ticket)|\bmerged into (?:request|ticket) #(\d+)", re.S | re.I)
_chat_line = re.compile(r"^\(\d{1,2}:\d\d:\d\d(?: [AP]M)?\) ", re.M)


@dataclass
class Export:
    """What has to be known of the whole export before one ticket can be read."""

    people: dict[str, dict] = field(default_factory=dict)      # id → id, name, email, phone, role, locale
    latest: dict[str, str] = field(default_factory=dict)       # ticket → where it stands last: an incremental export repeats changed tickets
    into: dict[str, str] = field(default_factory=dict)         # merged ticket → the ticket it was merged into
    merged: dict[str, dict] = field(default_factory=dict)      # the merged tickets themselves

    def root(self, ticket: str) -> str:
        """The ticket at the end of a chain of merges; a ticket that was merged in a circle, or into none in the export, stays itself."""
        seen, end = set(), ticket
        while end in self.into and end not in seen:
            seen.add(end)
            end = self.into[end]
        return end if end in self.latest and end not in self.into else ticket


def conversations(data, run_dir: str) -> Iterator[tuple[str, object]]:
    export = _survey(data)
    joined: dict[str, list[dict]] = {}
    for ticket_id, ticket in export.merged.items():
        if export.root(ticket_id) != ticket_id:
            joined.setdefault(export.root(ticket_id), []).append(ticket)
    for where, ticket in objects(data.conversations, "data.conversations", "tickets"):
        yield where, _ticket(where, ticket, export, joined)


def feedback(data, run_dir: str) -> Iterator[tuple[str, object]]:
    """The customers' good and bad as thumbs on whole conversations, and `data.feedback` where it is given."""
    export = _survey(data)
    for where, ticket in objects(data.conversations, "data.conversations", "tickets"):
        if isinstance(ticket, dict) and export.latest.get(str(ticket.get("id"))) == where:
            rating = ticket.get("satisfaction_rating")
            thumb = THUMBS.get(str(rating.get("score"))) if isinstance(rating, dict) else None
            if thumb:
                yield where, {"conversation_id": export.root(str(ticket["id"])), "rater_id": "customer", "kind": "thumb", "thumb": thumb}
    yield from jsonl.feedback(data, run_dir)


def _survey(data) -> Export:
    export = Export()
    for source, key in ((data.users, "data.users"), (data.conversations, "data.conversations")):
        for _, user in objects(source, key, "users") if source else ():
            _meet(export, user)
    for where, ticket in objects(data.conversations, "data.conversations", "tickets"):
        if not isinstance(ticket, dict) or not ticket.get("id"):
            continue
        for part in ("requester", "submitter", "assignee"):
            _meet(export, ticket.get(part))
        ticket_id = str(ticket["id"])
        export.latest[ticket_id] = where
        comments = _comments(ticket)
        if "closed_by_merge" in (ticket.get("tags") or ()) and ticket.get("status") != "deleted":
            export.merged[ticket_id] = ticket
            targets = [target for comment in comments if (target := _merged_into(comment, ticket_id))]
            export.into |= {ticket_id: targets[-1]} if targets else {}
        for comment in comments:
            export.into |= {source: ticket_id for source in _merged_from(comment) if source != ticket_id}
    export.into = {source: target for source, target in export.into.items() if source in export.merged}
    return export


def _meet(export: Export, user: object) -> None:
    if isinstance(user, dict) and user.get("id") and user.get("role"):
        export.people[str(user["id"])] = {key: user[key] for key in ("id", "name", "email", "phone", "role", "locale") if user.get(key)}


def _comments(ticket: dict) -> list[dict]:
    comments = ticket.get("comments")
    return [c for c in comments if isinstance(c, dict)] if isinstance(comments, list) else []


def _via(comment: dict) -> tuple[str, dict]:
    """(channel, source) of a comment; a missing or odd via is an empty one."""
    via = comment.get("via")
    via = via if isinstance(via, dict) else {}
    source = via.get("source")
    return str(via.get("channel") or ""), source if isinstance(source, dict) else {}


def _end(comment: dict, name: str) -> dict:
    """`from` or `to` of a comment's via.source."""
    end = _via(comment)[1].get(name)
    return end if isinstance(end, dict) else {}


def _merged_into(comment: dict, ticket_id: str) -> str | None:
    """Where a closed ticket's own notice says that it went."""
    if _end(comment, "to").get("ticket_id"):
        return str(_end(comment, "to")["ticket_id"])
    told = _merge_notice.search(_text(comment)) or (_via(comment)[1].get("rel") == "merge" and re.search(r"#(\d+)", _text(comment)))
    target = told and next(filter(None, told.groups()), None)
    return target if target and target != ticket_id else None


def _merged_from(comment: dict) -> list[str]:
    """Which tickets a notice in the surviving ticket names."""
    if _via(comment)[1].get("rel") != "merge":
        return []
    origin = _end(comment, "from")
    sources = origin.get("ticket_ids") if isinstance(origin.get("ticket_ids"), list) else [origin.get("ticket_id")]
    return [str(source) for source in sources if source]


def _text(comment: dict) -> str:
    for key, read in (("plain_body", str), ("body", str), ("html_body", plain)):
        if isinstance(comment.get(key), str) and comment[key].strip():
            return read(comment[key]).replace("&nbsp;", " ").replace("\u00a0", " ").strip()
    return ""


def _ticket(where: str, ticket: object, export: Export, joined: dict[str, list[dict]]) -> object:
    if ticket is None:
        return None
    if not isinstance(ticket, dict) or not ticket.get("id"):
        return BadRecord("a ticket lacks `id`" if isinstance(ticket, dict) else f"expected a ticket, got {type(ticket).__name__}")
    ticket_id = str(ticket["id"])
    if export.latest[ticket_id] != where:
        return "an earlier version of a ticket that comes again"
    if ticket.get("status") == "deleted":
        return "a deleted ticket"
    if export.root(ticket_id) != ticket_id:
        return "merged into another ticket, and read there"
    parts = [ticket, *joined.get(ticket_id, [])]
    if any(not isinstance(part.get("comments"), list) for part in parts):
        return BadRecord("a ticket has no list in `comments`: export the tickets with their comments")
    return _conversation(ticket_id, parts, export.people)


def _conversation(ticket_id: str, parts: list[dict], people: dict[str, dict]) -> dict:
    """One conversation out of a ticket and those merged into it: by time, each comment once."""
    comments = {str(comment.get("id") or f"{number} {index}"): (comment, part)
                for number, part in enumerate(parts) for index, comment in enumerate(_comments(part))}
    left_out, messages = Counter(), []
    for comment, part in sorted(comments.values(), key=_when):
        side, reason = _side(comment, part, people)
        if reason:
            left_out[reason] += 1
        else:
            author = {"author_id": str(comment.get("author_id"))} if side == "assistant" else {}
            messages.append({"role": side, "content": _text(comment), "at": stamp(comment.get("created_at")), **author})
    requester = str(parts[0].get("requester_id") or "")
    customer = people.get(requester) or {"id": requester}
    others = {str(comment.get("author_id")) for comment, _ in comments.values()} | {str(p[key]) for p in parts for key in ("assignee_id", "requester_id") if p.get(key)}
    started = [part["created_at"] for part in parts if moment(part.get("created_at"))]
    return {"id": ticket_id, "messages": messages, "left_out": dict(left_out), "locale": customer.get("locale"),
            "started_at": stamp(min(started, key=moment)) if started else None, "channel": _via(parts[0])[0] or None,
            "customer": {key: customer[key] for key in ("id", "name", "email", "phone") if customer.get(key)},
            # Everybody in the ticket: their names are looked for in what others wrote, and any of them may be excluded.
            "agents": [{key: person[key] for key in ("id", "name", "email", "phone") if person.get(key)}
                       for other in sorted(others - {requester, str(SYSTEM)}) for person in (people.get(other, {"id": other}),)]}


def _when(comment_of_ticket: tuple[dict, dict]) -> float:
    at = moment(comment_of_ticket[0].get("created_at"))
    return at.timestamp() if at else float("inf")


def _side(comment: dict, ticket: dict, people: dict[str, dict]) -> tuple[str | None, str | None]:
    """(role, None), or (None, the reason why this comment is no part of the talk between customer and agent)."""
    channel, source = _via(comment)
    author = str(comment.get("author_id"))
    role = people.get(author, {}).get("role")
    known = {str(ticket.get("assignee_id")): "assistant", str(ticket.get("requester_id")): "user"}
    side = SIDES.get(role) or known.get(author)
    if source.get("rel") == "merge" or (side != "user" and _merge_notice.search(_text(comment))):
        return None, "a merge notice"
    if channel in AUTOMATIC or source.get("rel") in AUTOMATIC_RELATIONS or author == str(SYSTEM):
        return None, "an automatic reply"
    if comment.get("public") is not True:
        return None, "a private comment"
    # A customer's words that reach the helpdesk through a bot's widget are the customer's all the same.
    if role == "bot" or (channel.startswith("answer_bot") and side != "user"):
        return None, "a bot's turn"
    if side is None:
        return None, "an author whose role is not known"
    if len(_chat_line.findall(_text(comment))) > 1:
        return None, "a chat transcript in one comment"
    return (side, None) if _text(comment) else (None, "a comment without text")
