"""Stage `anonymise`: personal data out, stand-ins in, and nothing released that the leak check objects to.

    python -m training.pipeline 'stages=[anonymise]' data=jsonl data.conversations=chats.jsonl
    python -m data_prep.anonymise [fit=runs/acme/anonymise/fit] [company=<folder>] < in.jsonl > out.jsonl      as a filter: one line out per line in

First `fit` reads the archive and learns its words, macros and names; then `apply` masks each conversation by itself, so
that any order and any number of workers give the same bytes. The conversation is the unit: what is found once is
replaced everywhere in it. What leaves carries a seal (HMAC); a sealed record passes through unchanged. A record that
still leaks goes to `quarantine.jsonl`: its id and the reasons, never its text. Canaries travel with the archive.
"""

from __future__ import annotations

import contextlib
import functools
import json
import os
import pickle
import shutil
import sys
from collections import Counter
from collections.abc import Iterable, Iterator
from itertools import chain, islice
from pathlib import Path

from data_prep.artifacts import StageError, stage_output
from data_prep.audit import write_report
from data_prep.company.pack import load_pack, public_words
from data_prep.conversation import BadRecord, Conversation, Feedback, write_jsonl
from data_prep.engines import ENGINES, mapped
from data_prep.ingest import Reader
from data_prep.pii import fit as fitting
from data_prep.pii import ner
from data_prep.pii.canaries import canaries, survivors
from data_prep.pii.mask import Masked, Masker, compiled, is_sealed, pseudonym, texts_of
from data_prep.pii.surrogates import MODES

DEMO_KEY = b"supportloop demo key: for the sample company only"
CLAIM = "pseudonymised: whoever holds the key can tell which conversations are one customer's"
SHARD = 500             # conversations that are masked, written and, after a kill, not masked again


def read_key(key_file: str | None, *, sample: bool) -> bytes:
    """The secret that stand-ins and pseudonyms depend on. Raises: StageError where a real archive has none."""
    if key_file:
        if not Path(key_file).is_file():
            raise StageError(f"anonymise.key_file={key_file} is no file: without its key no stand-in can be made again")
        return Path(key_file).read_bytes().strip()
    if os.environ.get("SUPPORTLOOP_KEY"):
        return os.environ["SUPPORTLOOP_KEY"].encode()
    if sample:
        return DEMO_KEY
    raise StageError("anonymise needs a secret key of your own: set SUPPORTLOOP_KEY or anonymise.key_file (the published demo key serves the sample company only)")


def make_masker(key: bytes, fit: str | Path, company: str | None, mode: str = "surrogate", scope: str = "conversation", model: str | None = None, vault: bool = False,
                max_rare: int | None = None) -> Masker:
    """The masker of these settings; in each worker anew, from what pickles."""
    pack = load_pack(company) if company else None
    facts = pack.company if pack else {}
    rules = compiled(tuple(facts.get("public_identifiers", [])), tuple(facts.get("business_numbers", [])))
    return Masker(key, fitting.load(Path(fit), public_words(pack) if pack else ()), rules, mode, scope, ner.load(model) if model else None, vault, max_rare)


def make_work(*settings) -> functools.partial:
    return functools.partial(mask_shard, make_masker(*settings))


def mask_shard(masker: Masker, shard: list[tuple[Conversation, list[str]]]) -> list[Masked]:
    return [masker.apply(conversation, edits) for conversation, edits in shard]


def run(config) -> None:
    settings = config.anonymise
    key = read_key(settings.key_file, sample=config.data.format in ("company", "star"))
    _check(settings)
    with stage_output(config, "anonymise") as out:
        fit = Path(settings.fit) if settings.fit else learn(config, out / "fit")
        digest = fitting.digest_of(fit)          # here, not in a worker, a wrong folder is refused
        reader, edits = Reader(config), edits_by_conversation(config)
        planted: dict[str, list[str]] = {}
        conversations = chain(_with_edits(reader, edits, locales := set()), _canaries(settings.canaries, config.seed, locales, planted))
        make = functools.partial(make_work, key, str(fit), config.company, settings.mode, settings.scope, settings.ner, bool(settings.vault), settings.max_rare)
        report, masked_edits = _release(config, out, _finished(out / "shards", make, conversations, settings), planted)
        feedback = _write_feedback(out, reader, masked_edits, key)
        report |= {"feedback": feedback, "input": dict(reader.counts), "fit": digest, "key": pseudonym(key, "key", "id"), "mode": settings.mode, "scope": settings.scope,
                   "claim": CLAIM, "vault": bool(settings.vault)}
        with open(out / "quarantine.jsonl", "a", encoding="utf-8") as quarantine:
            quarantine.writelines(json.dumps({"id": bad["where"], "reasons": [bad["reason"]]}) + "\n" for bad in reader.bad)
        shutil.rmtree(out / "shards")
        write_report(out.path, report)
        out.summary(f"{report['conversations']} conversations, {sum(report['masked'].values())} personal details masked, {report['quarantined']} quarantined, "
                    f"{report['canaries']['removed']} of {report['canaries']['planted']} canaries removed, {report['feedback']} feedback", **report)


def _check(settings) -> None:
    for key, allowed in (("mode", MODES), ("scope", ("conversation", "customer")), ("engine", ENGINES)):
        if settings[key] not in allowed:
            raise StageError(f"anonymise.{key}={settings[key]} is unknown; choose one of {', '.join(allowed)}")


def learn(config, folder: Path) -> Path:
    """Read the archive once and write the fitted artefact; one that a killed run finished is kept."""
    from tqdm import tqdm  # not above: the filter starts within a second and draws no bar

    if not (folder / "fit.json").is_file():
        pack = load_pack(config.company) if config.company else None
        learner = fitting.Learner(fitting.load(company=public_words(pack) if pack else ()))
        for conversation in tqdm(Reader(config).conversations(), desc="learn", unit="conv"):
            learner.see(conversation, config.anonymise.k)
        partial = folder.with_name("fit.partial")
        learner.write(partial, config.anonymise.k)
        partial.rename(folder)
    return folder


def _with_edits(reader: Reader, edits: dict, locales: set[str]) -> Iterator[tuple[Conversation, list[str]]]:
    """The archive's conversations with what agents made of drafts. Fills `locales`."""
    for conversation in reader.conversations():
        locales.add(conversation.locale)
        yield conversation, [f.edit for f in edits.get(conversation.id, [])]


def _canaries(count: int, seed: int, locales: set[str], planted: dict[str, list[str]]) -> Iterator[tuple[Conversation, list[str]]]:
    """Canaries of the archive's locales, which are known when it has been read. Fills `planted`: id → what must not survive."""
    for conversation, secrets in canaries(count, seed, locales):
        planted[conversation.id] = secrets
        yield conversation, []


def _finished(folder: Path, make, items: Iterable[tuple[Conversation, list[str]]], settings) -> Iterator[Masked]:
    """What became of each conversation, in order. A shard that a killed run finished is read, not masked again."""
    from tqdm import tqdm

    folder.mkdir(exist_ok=True)
    done = len(list(folder.glob("*.pickle")))
    items = iter(items)
    shards = iter(lambda: list(islice(items, SHARD)), [])
    bar = tqdm(desc="anonymise", unit="conv")
    for number in range(done):
        bar.update(len(next(shards, ())))
        yield from pickle.loads((folder / f"{number:06d}.pickle").read_bytes())
    for number, made in enumerate(mapped(make, shards, settings.engine, settings.workers), done):
        partial = folder / f"{number:06d}.partial"
        partial.write_bytes(pickle.dumps(made))
        partial.rename(folder / f"{number:06d}.pickle")
        bar.update(len(made))
        yield from made
    bar.close()


def _release(config, out, results: Iterator[Masked], planted: dict[str, list[str]]) -> tuple[dict, dict[str, list[str]]]:
    """Write what may leave, count everything, and stop where too much leaks or a canary survives.

    Returns (report, source id → masked edits of each conversation that was released).
    """
    counts, reasons, first, kept, quarantined, survived = Counter(), Counter(), None, 0, 0, []
    masked_edits: dict[str, list[str]] = {}
    with (open(out / "conversations.jsonl", "w", encoding="utf-8") as conversations, open(out / "quarantine.jsonl", "w", encoding="utf-8") as quarantine,
          open(out / "provenance.jsonl", "w", encoding="utf-8") as provenance, opened_vault(config) as vault):
        for result in results:
            if result.id in planted:
                if result.record is not None and (left := survivors([text for _, text in texts_of(result.record["messages"])], planted[result.id])):
                    survived.append((result.id, len(left)))
            elif result.record is None:
                quarantined, first = quarantined + 1, first or result
                reasons.update(result.reasons)
                quarantine.write(json.dumps({"id": result.id, "reasons": result.reasons}) + "\n")
            else:
                kept += 1
                counts.update(result.counts)
                conversations.write(json.dumps(result.record, ensure_ascii=False, sort_keys=True) + "\n")
                provenance.write(json.dumps({"id": result.record["id"], "customer": result.record["customer"]["id"], "spans": result.spans}) + "\n")
                masked_edits[result.id] = result.edits
                if result.vault:
                    vault.write(json.dumps({"id": result.record["id"], "sealed": result.vault}) + "\n")
    if quarantined > config.anonymise.max_leak_fraction * (quarantined + kept):
        raise StageError(f"{quarantined} of {quarantined + kept} conversations still leak after masking (first: {first.id}: {', '.join(first.reasons)}); "
                         "nothing was released. Mend the source, or raise anonymise.max_leak_fraction")
    if survived:
        raise StageError(f"{len(survived)} of {len(planted)} canaries survived (first: {survived[0][0]}, {survived[0][1]} details); nothing was released. This is a bug of the detectors: report it")
    kinds = Counter()
    for name, count in counts.items():
        kinds[name.split("|")[0]] += count
    return {"conversations": kept, "quarantined": quarantined, "reasons": dict(reasons), "masked": dict(kinds), "counts": dict(sorted(counts.items())), "canaries": {"planted": len(planted), "removed": len(planted) - len(survived)}}, masked_edits


def opened_vault(config):
    """Where stand-ins can be looked up again, encrypted: outside the run, under access of its own. Nowhere by default."""
    path = config.anonymise.vault
    if not path:
        return contextlib.nullcontext()
    if Path(path).resolve().is_relative_to(Path(config.run_dir).resolve()):
        raise StageError(f"anonymise.vault={path} lies inside the run: whoever may read the data must not thereby read the vault. Give a path elsewhere")
    Path(path).parent.mkdir(parents=True, exist_ok=True)
    return open(path, "w", encoding="utf-8")


def edits_by_conversation(config) -> dict[str, list[Feedback]]:
    edits: dict[str, list[Feedback]] = {}
    for _, record in Reader(config).adapter.feedback(config.data, config.run_dir):
        if isinstance(record, dict) and record.get("kind") == "edit":
            try:
                feedback = Feedback.from_record(record)
            except BadRecord:
                continue            # counted where all feedback is read
            edits.setdefault(feedback.conversation_id, []).append(feedback)
    return edits


def _write_feedback(out, reader: Reader, masked_edits: dict[str, list[str]], key: bytes) -> int:
    """Feedback on what was released: ids and raters as pseudonyms, edits masked, times left away."""
    remaining = {source: iter(edits) for source, edits in masked_edits.items()}

    def released(feedback: Feedback) -> dict:
        record = feedback.to_record() | {"conversation_id": pseudonym(key, "conversation", feedback.conversation_id)}
        record.pop("at", None)
        if feedback.kind == "edit":
            record["edit"] = next(remaining[feedback.conversation_id])
        if feedback.rater_id and feedback.rater_id != "customer":
            record["rater_id"] = pseudonym(key, "rater", feedback.rater_id)
        return record

    return write_jsonl(out / "feedback.jsonl", (released(f) for f in reader.feedback(masked_edits.__contains__)))


def main(arguments: list[str]) -> int:
    """The filter: JSONL in, JSONL out, one line a line. Arguments: fit=, company=, mode=, scope=, ner=, key_file=."""
    options = dict(argument.split("=", 1) for argument in arguments if "=" in argument)
    unknown = sorted(set(options) - {"fit", "company", "mode", "scope", "ner", "key_file"}) + [a for a in arguments if "=" not in a]
    if unknown:
        raise StageError(f"unknown argument {unknown[0]}; the filter takes fit=, company=, mode=, scope=, ner= and key_file=")
    key = read_key(options.get("key_file"), sample=False)
    masker = make_masker(key, options.get("fit", fitting.SHIPPED), options.get("company"), options.get("mode", "surrogate"), options.get("scope", "conversation"), options.get("ner"))
    for line in sys.stdin:
        print(json.dumps(filtered(line, masker, key), ensure_ascii=False, sort_keys=True), flush=True)
    return 0


def filtered(line: str, masker: Masker, key: bytes) -> dict:
    """What becomes of one line: the masked record, the sealed one as it was, or the reasons why nothing leaves."""
    try:
        record = json.loads(line)
        if isinstance(record, dict) and is_sealed(record, key):
            return record
        conversation = Conversation.from_record(record)
    except BadRecord as error:
        return {"id": None, "quarantined": [str(error)]}
    except (ValueError, RecursionError):
        return {"id": None, "quarantined": ["not JSON"]}
    result = masker.apply(conversation)
    return result.record or {"id": conversation.id, "quarantined": result.reasons}


if __name__ == "__main__":
    try:
        sys.exit(main(sys.argv[1:]))
    except StageError as error:
        sys.exit(f"error: {error}")
