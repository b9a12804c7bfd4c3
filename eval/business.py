"""The business view: what the field's best-known case claimed in public, beside what was measured here, how, and what only a live service can claim.

The case: Klarna's statement of February 2024 on its assistant's first month (2.3 million conversations), widely repeated. What counted as resolved, the CSAT itself and
the base of the repeat contacts were never published; a year later customers were promised that there will always be a person again.
"""

from __future__ import annotations

from collections.abc import Iterable
from statistics import mean, median

from data_prep.conversation import Message
from data_prep.statistics import wilson

READING = 238 / 60    # words a second, silently (Brysbaert 2019, English non-fiction)
TYPING = 52 / 60      # words a second on a keyboard (Dhakal et al. 2018, 168,000 people)


def handle_seconds(messages: list[Message], seconds_a_reply: float | None) -> float:
    """How long a conversation takes: the customer types and reads, and the assistant takes its measured time for every message, tool calls too. None for that: an agent, who reads and types like the customer."""
    total = 0.0
    for message in messages:
        words = len((message["content"] or "").split())
        if message["role"] == "user":
            total += words / TYPING + (words / READING if seconds_a_reply is None else 0.0)
        elif message["role"] == "assistant":
            total += words / READING + (words / TYPING if seconds_a_reply is None else seconds_a_reply)
    return total


def containment(talks: list[dict]) -> dict[str, tuple[int, int]]:
    """(hits, of how many): contained, not handed to a person / all; resolved, contained and what was asked for came about / all; false containment, contained and unresolved / contained."""
    contained = [t for t in talks if not t["handed_off"]]
    return {"contained": (len(contained), len(talks)), "resolved": (sum(t["success"] for t in contained), len(talks)), "false containment": (sum(not t["success"] for t in contained), len(contained))}


def rows(talks: list[dict], human: list[list[Message]], seconds_a_reply: float, suites: dict[str, list[dict]], predicted: tuple | None) -> list[list[str]]:
    """(figure, the public case, ours, how, live only), of a candidate's talks as served and the archive's held-out conversations. `predicted`: CSAT of the talks, of the agents' conversations, and what predicts it."""
    found = containment(talks)
    share = {name: _share(*pair) for name, pair in found.items()}
    mine, theirs = ([handle_seconds(t["messages"], seconds_a_reply) for t in talks], [handle_seconds(messages, None) for messages in human])
    asked = [r for r in suites["handoff"] if r["kind"] in ("requests", "bare")]
    languages = {r["language"] for r in asked if r["served"]}
    csat = f"predicted {predicted[0]['value']:.0%} [{predicted[0]['low']:.0%}, {predicted[0]['high']:.0%}], agents' conversations {predicted[1]['value']:.0%} [{predicted[1]['low']:.0%}, {predicted[1]['high']:.0%}]" if predicted else "not evaluated: too few customers' thumbs"
    return [
        ["chats without a person", "two thirds", f"contained {share['contained']}; resolved {share['resolved']}; false containment {share['false containment']}",
         "simulated customers; resolved is contained and the world's end state right; contained without that is the trap", "what customers would call resolved"],
        ["time to resolution", "under 2 minutes instead of 11", f"median {median(mine) / 60:.1f} min, agents {median(theirs) / 60:.1f} min" if theirs else f"median {median(mine) / 60:.1f} min",
         f"{seconds_a_reply:.2f} s a message as measured; customers type {TYPING * 60:.0f} and read {READING * 60:.0f} words a minute, agents too; no queue, no breaks", "real waiting, real typing"],
        ["repeat contacts", "a quarter fewer", f"{share['false containment']} of those contained leave with their concern open", "an upper bound of who has reason to come back", "who comes back within seven days"],
        ["customer satisfaction", "on par with agents", csat, "learned from customers' thumbs in the archive, which mark a correct no down" + (f"; calibration error {predicted[2].ece:.2f} on {predicted[2].n} others" if predicted else ""), "asking customers"],
        ["languages", "35", f"a person in {len(languages)}; answers in {len({t['language'] for t in talks})}", "requests for a person in all languages; replies in those it was trained in, any other is handed over", "quality as native speakers see it"],
        ["reaching a person", "not claimed; later walked back", f"{_share(sum(r['served'] for r in asked), len(asked))} at the first request", "the handoff suite, with the guard", "time until a colleague is there"],
        ["replies", "2.3 million conversations in a month", f"{mean(t['replies'] for t in talks):.1f} messages a conversation, {len(talks)} simulated", "", "load: see serving benchmarks"],
    ]


def _share(hits: int, n: int) -> str:
    low, high = wilson(hits, n)
    return f"{hits / n:.0%} [{low:.0%}, {high:.0%}] n {n}" if n else "none"


def human_conversations(rows: Iterable[dict]) -> list[list[Message]]:
    """The held-out conversations with agents, whole, from SFT's test rows."""
    whole: dict[str, list[Message]] = {}
    for row in rows:
        messages = [*row["prompt"], *row["completion"]]
        if len(messages) > len(whole.get(row["conversation_id"], [])):
            whole[row["conversation_id"]] = messages
    return list(whole.values())
