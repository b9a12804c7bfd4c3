"""Two people read a sample of the anonymised conversations beside their source, and mark what is left of anybody.

    python -m data_prep.review runs/acme reviewer=anna [n=200] [port=8765]      a page on this machine; the printed address holds its key
    python -m data_prep.review runs/acme action=sign [n=200]                    once two have read everything: the sign-off that prepare asks for

Settings are those that the stage was run with; any can be changed as `anonymise.key_file=…`. The source's text is read
anew, kept in this process and shown on the page; it is never written down and never logged. Marks are saved at once, so one
can stop and go on. n can grow later: what was read stays part of the sample.
"""

from __future__ import annotations

import hmac
import json
import os
import re
import secrets
import sys
import threading
from collections.abc import Callable, Iterable, Iterator
from dataclasses import dataclass, field
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from urllib.parse import parse_qs, urlsplit

from tqdm import tqdm

from data_prep.anonymise import edits_by_conversation, read_key
from data_prep.artifacts import StageError, read_manifest, recorded_config
from data_prep.conversation import read_jsonl
from data_prep.ingest import Reader
from data_prep.pii.mask import pseudonym, texts_of
from data_prep.signoff import KINDS, NOBODY, VERDICTS, N, Sample, all_read, final_marks, now, read_marks, read_signoff, review_folder, sample_of, sentence, sign, to_settle

PAGE = Path(__file__).with_name("review.html")
LONGEST = 1 << 16           # bytes of a request's body

Pieces = list[tuple[str, str]]      # text and kind of what was replaced, "" where nothing was


# ---------------------------------------------------------------------------------------------------------------------
# Raw beside masked
# ---------------------------------------------------------------------------------------------------------------------


def beside_source(config, sample: Sample) -> dict[str, dict]:
    """id → {"turns": [{turn, role, raw, masked}], "known": […], "record": …} of every conversation of the sample.

    Raises: StageError where key or source are not those that were anonymised.
    """
    folder, key = Path(config.run_dir) / "anonymise", read_key(config.anonymise.key_file, sample=config.data.format in NOBODY)
    if read_manifest(folder)["facts"]["key"] != pseudonym(key, "key", "id"):
        raise StageError(f"{folder} was anonymised under another key: set SUPPORTLOOP_KEY or anonymise.key_file to that one")
    released = _chosen(folder / "conversations.jsonl", "id", sample)
    spans = _chosen(folder / "provenance.jsonl", "id", sample)
    raw_edits, edits = edits_by_conversation(config), {identity: [] for identity in sample.languages}
    for _, note in read_jsonl(folder / "feedback.jsonl"):
        if note["kind"] == "edit" and note["conversation_id"] in edits:
            edits[note["conversation_id"]].append(note["edit"])
    shown = {}
    for source in tqdm(Reader(config).conversations(), desc="read the source", unit="conv"):
        identity = pseudonym(key, "conversation", source.id)
        if identity in released:
            raw = texts_by_turn(source.messages, [note.edit for note in raw_edits.get(source.id, [])])
            masked = texts_by_turn(released[identity]["messages"], edits[identity])
            if [place for *place, _ in raw] == [place for *place, _ in masked]:
                shown[identity] = {"turns": list(_turns(raw, masked, spans[identity]["spans"])), "known": _known([source.customer, *source.agents]),
                                   "record": {name: value for name, value in released[identity].items() if name not in ("messages", "seal")}}
    if missing := len(sample.languages) - len(shown):
        raise StageError(f"{missing} of {len(sample.languages)} conversations of the sample are not in the source as they were: it was changed since. Run anonymise again, or give data.* of that time")
    return shown


def _chosen(path: Path, name: str, sample: Sample) -> dict[str, dict]:
    return {record[name]: record for _, record in read_jsonl(path) if record[name] in sample.languages}


def _known(people: Iterable[dict]) -> list[str]:
    """What the helpdesk knows of the people, so that a reviewer knows what to look for."""
    return sorted({str(value) for person in people for name, value in person.items() if name != "id" and value})


def texts_by_turn(messages: list[dict], edits: list[str]) -> list[tuple[int, str, str]]:
    """(turn from 1, role, text) in the order of `texts_of`; colleagues' edits stand behind the last turn."""
    said = [(turn, role, text) for turn, message in enumerate(messages, 1) for role, text in texts_of([message])]
    return said + [(len(messages) + number, "edit", text) for number, text in enumerate(edits, 1)]


def _turns(raw: list[tuple[int, str, str]], masked: list[tuple[int, str, str]], spans: list[list]) -> Iterator[dict]:
    for index, ((turn, role, before), (_, _, after)) in enumerate(zip(raw, masked, strict=True)):
        if before or after:
            pieces = split_at(after, [span[1:] for span in spans if span[0] == index])
            yield {"turn": turn, "role": role, "raw": aligned(before, pieces), "masked": pieces}


def split_at(text: str, spans: list[tuple[int, int, str]]) -> Pieces:
    made, position = [], 0
    for start, end, kind in sorted(spans):
        made += [(text[position:start], ""), (text[start:end], kind)]
        position = end
    return [piece for piece in [*made, (text[position:], "")] if piece[0]]


def aligned(raw: str, masked: Pieces) -> Pieces:
    """The raw text in pieces that answer to the masked ones: what stands between spans is the same in both.

    Spans with no letter or digit between them are one piece. All in one, unmarked, where the texts do not fit together.
    """
    made, position, kinds = [], 0, []
    for index, (text, kind) in enumerate(masked):
        if kind or (kinds and index + 1 < len(masked) and not re.search(r"\w", text)):
            kinds += [kind] if kind else []
            continue
        place = len(raw) - len(text) if index + 1 == len(masked) else raw.find(text, position)
        if place < position or not raw.startswith(text, place) or (place > position and not kinds):
            return [(raw, "")]
        made += [(raw[position:place], ", ".join(dict.fromkeys(kinds))), (text, "")]
        position, kinds = place + len(text), []
    if kinds:
        made.append((raw[position:], ", ".join(dict.fromkeys(kinds))))
    return [piece for piece in made if piece[0]] if kinds or position == len(raw) else [(raw, "")]


# ---------------------------------------------------------------------------------------------------------------------
# One reviewer's work
# ---------------------------------------------------------------------------------------------------------------------


@dataclass
class Work:
    """What one reviewer has before them. `shown`: as `beside_source` gives it."""

    sample: Sample
    reviewer: str
    shown: dict[str, dict]
    limit: float
    lock: threading.Lock = field(default_factory=threading.Lock)

    def state(self) -> dict:
        """Everything the page needs but the texts. The other's marks are in it in the second pass only."""
        marks, signoff = read_marks(self.sample), read_signoff(self.sample.run_dir)
        again, final = to_settle(self.sample, marks), final_marks(marks)
        mine, second = final.get(self.reviewer, {}), marks.get(self.reviewer, ({}, {}))[1]
        other = next((name for name in marks if name != self.reviewer), None)
        items = [{"id": identity, "language": language, "mark": _told(mine.get(identity)), "again": identity in again, "settled": identity in second,
                  "theirs": _told(final[other][identity]) if identity in again else None} for identity, language in self.sample.languages.items()]
        settled = all(identity in given for _, given in marks.values() for identity in again)
        return {"reviewer": self.reviewer, "other": other, "other_read": len(marks[other][0]) if other else 0, "second_pass": all_read(self.sample, marks), "items": items, "kinds": KINDS,
                "may_sign": all_read(self.sample, marks) and settled, "signoff": signoff and sentence(signoff), "accepted": bool(signoff and signoff["accepted"])}

    def mark(self, given: dict) -> dict:
        """Save one mark and return the state. Raises: StageError where it is none."""
        with self.lock:
            marks = read_marks(self.sample)
            if self.reviewer not in marks and len(marks) == 2:
                raise StageError(f"{' and '.join(marks)} review this already; take the file of one of them out of {review_folder(self.sample.run_dir)} first")
            identity, verdict, kinds, turns = (given.get(name) for name in ("id", "verdict", "kinds", "turns"))
            if identity not in self.shown or verdict not in VERDICTS:
                raise StageError(f"a mark needs an id of the sample and one of {', '.join(VERDICTS)}")
            last = max(turn["turn"] for turn in self.shown[identity]["turns"])
            if verdict == "leak" and not (_of(kinds, KINDS) and _of(turns, range(1, last + 1))):
                raise StageError("a leak needs its kind and its turn")
            second = all_read(self.sample, marks)
            if second and identity not in to_settle(self.sample, marks):
                raise StageError("both have read this one and agree")
            line = {"released": self.sample.released, "id": identity, "pass": 2 if second else 1, "verdict": verdict, "at": now(),
                    "kinds": sorted(kinds) if verdict == "leak" else [], "turns": sorted(turns) if verdict == "leak" else []}
            _append(review_folder(self.sample.run_dir) / f"{self.reviewer}.jsonl", line)
            return self.state()

    def sign(self, given: dict) -> dict:
        with self.lock:
            sign(self.sample, self.limit)
            return self.state()


def _told(mark: dict | None) -> dict | None:
    return mark and {name: mark[name] for name in ("verdict", "kinds", "turns")}


def _of(values: object, allowed: Iterable) -> bool:
    return isinstance(values, list) and bool(values) and all(value in allowed for value in values)


def _append(path: Path, line: dict) -> None:
    path.parent.mkdir(parents=True, exist_ok=True)
    with open(path, "a", encoding="utf-8") as file:
        file.write(json.dumps(line) + "\n")
        file.flush()
        os.fsync(file.fileno())


# ---------------------------------------------------------------------------------------------------------------------
# The page
# ---------------------------------------------------------------------------------------------------------------------


def server(work: Work, port: int, token: str) -> ThreadingHTTPServer:
    """An HTTP server of this machine alone. Each request must bring the token: the page in its address, the rest in a header.

    A page elsewhere can neither read (no CORS) nor act (the header), nor come in under another name (the host is checked).
    Raises: StageError where the port is taken.
    """
    class Handler(BaseHTTPRequestHandler):
        def do_GET(self) -> None:
            place = urlsplit(self.path)
            query = {name: values[-1] for name, values in parse_qs(place.query).items()}
            if not self.admitted(query.get("token", "") if place.path == "/" else self.headers.get("X-Token", "")):
                return
            if place.path == "/":
                nonce = secrets.token_urlsafe(16)
                self.answer(200, PAGE.read_text(encoding="utf-8").replace("{nonce}", nonce).encode(), "text/html; charset=utf-8", nonce)
            elif place.path == "/state":
                self.tell(200, work.state())
            elif place.path == "/conversation" and query.get("id") in work.shown:
                self.tell(200, work.shown[query["id"]])
            else:
                self.tell(404, {"error": "there is no such thing here"})

        def do_POST(self) -> None:
            if not self.admitted(self.headers.get("X-Token", "")):
                return
            act: Callable[[dict], dict] | None = {"/mark": work.mark, "/sign": work.sign}.get(self.path)
            try:
                length = int(self.headers.get("Content-Length") or 0)
                given = json.loads(self.rfile.read(length)) if 0 <= length <= LONGEST else None
                if act is None or not isinstance(given, dict):
                    raise StageError("that is no request of this page")
                self.tell(200, act(given))
            except (StageError, ValueError, TypeError) as error:
                self.tell(400, {"error": str(error) if isinstance(error, StageError) else "that is no request of this page"})

        def admitted(self, given: str) -> bool:
            here = {f"{name}:{self.server.server_port}" for name in ("127.0.0.1", "localhost")}
            if hmac.compare_digest(given.encode("utf-8", "replace"), token.encode()) and self.headers.get("Host") in here:
                return True
            self.tell(403, {"error": "open the address that the program printed"})
            return False

        def tell(self, status: int, value: dict) -> None:
            self.answer(status, json.dumps(value).encode(), "application/json")

        def answer(self, status: int, body: bytes, kind: str, nonce: str = "") -> None:
            allowed = f"style-src 'nonce-{nonce}'; script-src 'nonce-{nonce}'; connect-src 'self'; " if nonce else ""
            self.send_response(status)
            for name, value in {"Content-Type": kind, "Content-Length": str(len(body)), "Cache-Control": "no-store", "Referrer-Policy": "no-referrer", "X-Content-Type-Options": "nosniff",
                                "Cross-Origin-Resource-Policy": "same-origin", "Content-Security-Policy": f"default-src 'none'; {allowed}base-uri 'none'; form-action 'none'; frame-ancestors 'none'"}.items():
                self.send_header(name, value)
            self.end_headers()
            self.wfile.write(body)

        def log_message(self, *_) -> None:
            """Nothing: an address holds the token."""

    try:
        return ThreadingHTTPServer(("127.0.0.1", port), Handler)
    except OSError:
        raise StageError(f"port {port} is taken: choose another with port=…") from None


def main(arguments: list[str]) -> int:
    if not arguments or {"-h", "--help"} & set(arguments):
        print(__doc__)
        return 0
    run_dir, options, changes = read_arguments(arguments)
    config = recorded_config(run_dir, "anonymise", changes)
    sample, limit = sample_of(run_dir, options["n"]), config.anonymise.max_residual
    if options["action"] == "sign":
        signoff = sign(sample, limit)
        print(sentence(signoff))
        for row in signoff["languages"]:
            print(f"  {row['language']:<4} read {row['read']:>4} of {row['released']:>7}  leaks {row['leaks']:>3}  {row['low']:.1%} to {row['high']:.1%}")
        return 0 if signoff["accepted"] else 1
    token, work = secrets.token_urlsafe(24), Work(sample, options["reviewer"], beside_source(config, sample), limit)
    with server(work, options["port"], token) as running:
        print(f"{options['reviewer']} reads {len(sample.languages)} conversations on http://127.0.0.1:{running.server_port}/?token={token}   (Ctrl-C ends it, everything is saved)", flush=True)
        running.serve_forever()
    return 0


def read_arguments(arguments: list[str]) -> tuple[Path, dict, list[str]]:
    """(run folder, {reviewer, n, port, action}, changes of the configuration). Raises: StageError for anything else."""
    places = [a for a in arguments if "=" not in a]
    given = dict(a.split("=", 1) for a in arguments if "=" in a)
    changes = [f"{key}={given.pop(key)}" for key in list(given) if "." in key]
    options = {"reviewer": "", "n": str(N), "port": "8765", "action": "read"} | given
    if len(places) != 1 or set(options) != {"reviewer", "n", "port", "action"} or options["action"] not in ("read", "sign"):
        raise StageError("usage: python -m data_prep.review runs/<run> reviewer=NAME [n=200] [port=8765] [action=sign]")
    if not (options["n"].isdecimal() and int(options["n"]) and options["port"].isdecimal()):
        raise StageError("n= and port= are whole numbers")
    if options["action"] == "read" and not re.fullmatch(r"[a-zA-Z][\w-]{0,31}", options["reviewer"]):
        raise StageError("reviewer=NAME is missing: letters, digits, - and _, the same one each time")
    run_dir = Path(places[0])
    return run_dir.parent if run_dir.name == "anonymise" else run_dir, {**options, "reviewer": options["reviewer"].casefold(), "n": int(options["n"]), "port": int(options["port"])}, changes


if __name__ == "__main__":
    try:
        sys.exit(main(sys.argv[1:]))
    except StageError as error:
        sys.exit(f"error: {error}")
    except KeyboardInterrupt:
        sys.exit(0)
