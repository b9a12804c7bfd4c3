"""What two people found who read a sample of the anonymised conversations beside their source, and whether that is enough.

    runs/<run>/anonymise.review/<reviewer>.jsonl   each mark as it was made: ids, verdicts, kinds, turn numbers; no text
    runs/<run>/anonymise.review/signoff.json       the result, once both have read the whole sample

Two passes. In the first nobody sees the other's marks, so agreement is measured there. In the second both look again,
seeing each other's marks, at what they judged differently and at what either was unsure of. What then either of them
does not call clean counts as a leak: nobody is outvoted.
"""

from __future__ import annotations

import datetime
import hashlib
import heapq
import json
from collections import Counter, defaultdict
from collections.abc import Iterable
from dataclasses import dataclass
from pathlib import Path

from data_prep.artifacts import StageError, outputs_hash, read_manifest
from data_prep.conversation import read_jsonl, write_json
from data_prep.statistics import cohen_kappa, wilson

VERDICTS = ("clean", "leak", "unsure")
KINDS = ("name", "e-mail", "phone", "address", "card or account", "national id", "birth date", "user name, link or secret", "sensitive (health, faith, union …)", "other")
N = 200                                # conversations: with no leak among them at most 1.9 % of all can have one (95 %)
NOBODY = ("company", "star")           # formats without real customers: made up, or published
WAIVED = "No two people have reviewed a sample of the anonymised data: signoff waived"

Marks = dict[str, tuple[dict[str, dict], dict[str, dict]]]      # reviewer → (first pass, second pass), each id → mark


@dataclass(frozen=True)
class Sample:
    """The conversations to read. `languages`: id → language, in reading order; `totals`: language → conversations released."""

    run_dir: Path
    released: str
    languages: dict[str, str]
    totals: Counter


def review_folder(run_dir: str | Path) -> Path:
    return Path(run_dir) / "anonymise.review"


def released_hash(manifest: dict) -> str:
    """Names what anonymise released. Taking somebody out of it later does not change the name: the rest was read."""
    return manifest.get("released") or outputs_hash(manifest)


# ---------------------------------------------------------------------------------------------------------------------
# Sample and marks
# ---------------------------------------------------------------------------------------------------------------------


def drawn(conversations: Iterable[tuple[str, str]], seed: str, n: int) -> tuple[dict[str, str], Counter]:
    """From (id, language) pairs: (id → language of a random sample, conversations by language).

    Each language has its share, so the plain rate estimates the archive's. Neither order nor n changes who comes first:
    the sample of 300 holds that of 200. Memory: n ids a language.
    """
    totals, heaps = Counter(), defaultdict(list)
    for identity, language in conversations:
        totals[language] += 1
        digest = int.from_bytes(hashlib.sha256(f"{seed}\x00{identity}".encode()).digest()[:8], "big")
        heapq.heappush(heaps[language], (-digest, identity))
        if len(heaps[language]) > n:
            heapq.heappop(heaps[language])
    ranked = sorted(((place + 0.5) / totals[language], language, identity)
                    for language, heap in heaps.items() for place, (_, identity) in enumerate(sorted(heap, reverse=True)))
    return {identity: language for _, language, identity in sorted(ranked[:n], key=lambda item: item[1])}, totals


def sample_of(run_dir: str | Path, n: int = N) -> Sample:
    """The sample of a run's anonymised conversations. Raises: StageError where there are none."""
    folder = Path(run_dir) / "anonymise"
    manifest = read_manifest(folder)
    if manifest is None:
        raise StageError(f"{folder} holds no finished stage: give the folder of a run, e.g. runs/acme, after 'stages=[anonymise]'")
    pairs = ((record["id"], record.get("locale", "en").split("-")[0]) for _, record in read_jsonl(folder / "conversations.jsonl"))
    return Sample(Path(run_dir), released_hash(manifest), *drawn(pairs, released_hash(manifest), n))


def read_marks(sample: Sample) -> Marks:
    """Everybody's marks of this sample; the last one of each pass counts, a line that a crash cut off does not."""
    found: Marks = {}
    for path in sorted(review_folder(sample.run_dir).glob("*.jsonl")):
        passes: tuple[dict, dict] = ({}, {})
        for _, mark in read_jsonl(path):
            if mark and mark["released"] == sample.released and mark["id"] in sample.languages:
                passes[mark["pass"] - 1][mark["id"]] = mark
        if passes[0]:
            found[path.stem] = passes
    return found


def all_read(sample: Sample, marks: Marks) -> bool:
    return len(marks) == 2 and all(len(first) == len(sample.languages) for first, _ in marks.values())


def to_settle(sample: Sample, marks: Marks) -> list[str]:
    """The ids at which both must look again; none before both have read everything."""
    if not all_read(sample, marks):
        return []
    verdicts = {identity: {first[identity]["verdict"] for first, _ in marks.values()} for identity in sample.languages}
    return [identity for identity, given in verdicts.items() if len(given) > 1 or "unsure" in given]


def final_marks(marks: Marks) -> dict[str, dict[str, dict]]:
    return {reviewer: first | second for reviewer, (first, second) in marks.items()}


# ---------------------------------------------------------------------------------------------------------------------
# The sign-off
# ---------------------------------------------------------------------------------------------------------------------


def sign(sample: Sample, limit: float) -> dict:
    """Write signoff.json and return it. Raises: StageError naming what is still to be read.

    The residual rate is the share of conversations that either reviewer does not call clean, with its Wilson interval;
    where the sample is the whole archive nothing is estimated. Accepted where the upper end is no more than `limit`.
    """
    marks, n = read_marks(sample), len(sample.languages)
    if not all_read(sample, marks):
        read = ", ".join(f"{reviewer} {len(first)}" for reviewer, (first, _) in marks.items()) or "nobody has begun"
        raise StageError(f"two reviewers must have read all {n} conversations ({read}): python -m data_prep.review {sample.run_dir} reviewer=NAME")
    again = to_settle(sample, marks)
    for reviewer, (_, second) in marks.items():
        if left := [identity for identity in again if identity not in second]:
            raise StageError(f"{reviewer} has {len(left)} of {len(again)} differing conversations left to look at again: python -m data_prep.review {sample.run_dir} reviewer={reviewer}")
    final, whole = final_marks(marks), n == sum(sample.totals.values())
    leaking = [identity for identity in sample.languages if any(given[identity]["verdict"] != "clean" for given in final.values())]
    first = [[given[identity]["verdict"] for identity in sample.languages] for given, _ in marks.values()]
    low, high = _interval(len(leaking), n, whole)
    kappa = cohen_kappa(*first)
    signoff = {
        "released": sample.released, "signed_at": now(), "reviewers": sorted(marks), "n": n, "of": sum(sample.totals.values()),
        "agreement": {"equal": sum(a == b for a, b in zip(*first, strict=True)) / n, "kappa": None if kappa is None else round(kappa, 3), "settled": len(again),
                      "source": "Cohen 1960, on the first pass; null: both gave one and the same verdict throughout"},
        "leaks": len(leaking), "residual": {"rate": len(leaking) / n, "low": low, "high": high, "whole_archive": whole, "source": "Wilson 1927, 95 %"},
        "limit": limit, "accepted": high <= limit, "languages": _by_language(sample, leaking), "not_read": sorted(set(sample.totals) - set(sample.languages.values())),
        "found": [{"id": identity, "kinds": sorted({kind for given in final.values() for kind in given[identity]["kinds"]}),
                   "turns": sorted({turn for given in final.values() for turn in given[identity]["turns"]})} for identity in leaking]}
    if not leaking and not whole:
        signoff["residual"]["rule_of_three"] = 3 / n        # one-sided 95 %: Hanley and Lippman-Hand 1983
    write_json(review_folder(sample.run_dir) / "signoff.json", signoff)
    return signoff


def _interval(leaks: int, n: int, whole: bool) -> tuple[float, float]:
    return (leaks / n, leaks / n) if whole else wilson(leaks, n)


def _by_language(sample: Sample, leaking: list[str]) -> list[dict]:
    read, leaks = Counter(sample.languages.values()), Counter(sample.languages[identity] for identity in leaking)
    rows = []
    for language, count in sorted(read.items()):
        low, high = _interval(leaks[language], count, count == sample.totals[language])
        rows.append({"language": language, "released": sample.totals[language], "read": count, "leaks": leaks[language], "low": low, "high": high})
    return rows


def now() -> str:
    return datetime.datetime.now(datetime.UTC).isoformat(timespec="seconds")


def read_signoff(run_dir: str | Path) -> dict | None:
    """The sign-off of what anonymise holds at present, or None: an earlier release's is worth nothing."""
    path, manifest = review_folder(run_dir) / "signoff.json", read_manifest(Path(run_dir) / "anonymise")
    signoff = json.loads(path.read_text(encoding="utf-8")) if path.is_file() else None
    return signoff if signoff and manifest and signoff["released"] == released_hash(manifest) else None


def required(config) -> dict:
    """What prepare writes down about the review: {"state": …} and, where there is one, the sign-off.

    Raises: StageError where there must be one and is none, or it was refused.
    """
    wanted, signoff, command = config.anonymise.signoff, read_signoff(config.run_dir), f"python -m data_prep.review {config.run_dir}"
    if wanted not in ("required", "waived"):
        raise StageError(f"anonymise.signoff={wanted} is unknown; choose one of required, waived")
    if signoff and signoff["accepted"]:
        return {"state": "accepted", **signoff}
    if config.data.format in NOBODY:
        return {"state": "not needed"}
    if wanted == "waived":
        return {"state": "waived"}
    if signoff:
        raise StageError(f"the review of {config.run_dir}/anonymise was refused ({sentence(signoff)}): mend what {review_folder(config.run_dir)}/signoff.json names and review again, {command} reviewer=NAME")
    raise StageError(f"prepare needs {config.run_dir}/anonymise reviewed by two people and it is not: each runs {command} reviewer=NAME, then {command} action=sign "
                     "(or anonymise.signoff=waived, which the model card will say)")


def sentence(signoff: dict) -> str:
    """One sentence for a card, a report or a terminal, from `required` or `sign`."""
    state = signoff.get("state", "accepted")
    if state != "accepted":
        return WAIVED if state == "waived" else "No review was needed: no real customer is in the data"
    residual = signoff["residual"]
    bound = "the whole archive was read" if residual["whole_archive"] else f"between {residual['low']:.1%} and {residual['high']:.1%} of all at 95 %"
    if "rule_of_three" in residual:
        bound += f", rule of three {residual['rule_of_three']:.1%}"
    verdict = "accepted" if signoff["accepted"] else "refused"
    return (f"{' and '.join(signoff['reviewers'])} read {signoff['n']} of {signoff['of']} conversations beside their source ({signoff['signed_at'][:10]}): "
            f"{signoff['leaks']} with personal data left, {bound}; {verdict} at a limit of {signoff['limit']:.1%}")
