"""One person's right to be forgotten: find their records in every run, take them out, and name the models that learned from them.

    python -m data_prep.erase customer=u-77 dry_run=true            what would go; changes nothing
    python -m data_prep.erase customer=u-77 [root=runs] [key_file=…] [vault=…] [participant=true]
    python -m data_prep.erase forget_key=true key_file=… [confirm=<key id>]

`customer` is the id that the source has; records are found by its keyed pseudonym, so this works only while the key exists.
A conversation without a customer's id is found by its own id in the source. A person can also stand among a conversation's
agents (a second customer does); helpdesks number agents and customers apart, so those go only with participant=true.

Files are rewritten whole or not at all, and manifests with them: what was made from them is no longer current. The source
and trained weights are out of reach; the output says what to do about both. `forget_key` destroys the key file for good.
"""

from __future__ import annotations

import datetime
import json
import os
import sys
from collections import Counter
from collections.abc import Iterator
from dataclasses import dataclass, field
from pathlib import Path

from data_prep.anonymise import read_key
from data_prep.artifacts import StageError, hash_file, outputs_hash, read_manifest, take_lock
from data_prep.audit import write_report
from data_prep.conversation import read_jsonl, write_json
from data_prep.pii.mask import pseudonym
from data_prep.signoff import now, read_signoff, released_hash, review_folder

TRAINED = ("pretrain", "sft", "reward", "dpo", "ppo")
OPTIONS = {"customer": "", "root": "runs", "key_file": "", "vault": "", "dry_run": "false", "participant": "false", "forget_key": "false", "confirm": ""}


@dataclass
class Found:
    """What one run holds of a person. `lines`: file → how many lines are theirs, in the order in which they go."""

    run: Path
    ids: frozenset[str]                     # their conversations
    lines: dict[Path, int] = field(default_factory=dict)
    elsewhere: int = 0                      # conversations in which they stand among the agents, and which stay

    def trained(self) -> list[str]:
        """The stages that have made weights from the run, where a training file holds them."""
        in_training = any(path.name == "train.jsonl" for path in self.lines)
        return [stage for stage in TRAINED if in_training and read_manifest(self.run / stage)]

    def exported(self) -> str:
        manifest = read_manifest(self.run / "export")
        return f"{manifest['facts'].get('winner', '?')} {outputs_hash(manifest)}" if manifest and self.trained() else ""

    def released(self) -> str:
        path = self.run / "verify" / "release.json"
        release = json.loads(path.read_text(encoding="utf-8")) if path.is_file() and self.trained() else None
        return f"{release['winner']} {release['served']}" if release else ""


# ---------------------------------------------------------------------------------------------------------------------
# Find
# ---------------------------------------------------------------------------------------------------------------------


def runs_of(root: Path, key: bytes) -> Iterator[tuple[Path, bool]]:
    """(run, was it anonymised under this key) of every run with a finished stage `anonymise`. Raises: StageError where there is none."""
    runs = sorted(path.parent.parent for path in root.glob("*/anonymise/manifest.json"))
    if not runs:
        raise StageError(f"root={root} holds no run with a finished stage anonymise: give the folder of the runs")
    for run in runs:
        yield run, read_manifest(run / "anonymise")["facts"].get("key") == pseudonym(key, "key", "id")


def find(run: Path, key: bytes, customer: str, vault: str = "", participant: bool = False) -> Found:
    """Everything of a person in one run. The files with which they are found come last, so that a killed erasure can be repeated."""
    person, agent, ids, elsewhere = pseudonym(key, "customer", customer), pseudonym(key, "agent", customer), set(), set()
    for _, record in read_jsonl(run / "anonymise" / "conversations.jsonl"):
        if record["customer"]["id"] == person:
            ids.add(record["id"])
        elif any(one["id"] == agent for one in record.get("agents", [])):
            (ids if participant else elsewhere).add(record["id"])
    ids |= {record["id"] for _, record in read_jsonl(run / "anonymise" / "provenance.jsonl") if record["customer"] == person}
    found = Found(run, frozenset(ids), elsewhere=len(elsewhere))
    files = [*sorted((run / "prepare").rglob("*.jsonl")), *sorted(review_folder(run).glob("*.jsonl")), *([Path(vault)] if vault else []),
             *(run / "anonymise" / name for name in ("feedback.jsonl", "provenance.jsonl", "conversations.jsonl"))]
    for path in files:
        count = sum(is_theirs(record, found.ids) for _, record in read_jsonl(path)) if ids else 0
        if count:
            found.lines[path] = count
    return found


def is_theirs(record: object, ids: frozenset[str]) -> bool:
    return isinstance(record, dict) and record.get("conversation_id", record.get("id")) in ids


# ---------------------------------------------------------------------------------------------------------------------
# Erase
# ---------------------------------------------------------------------------------------------------------------------


def erase(found: Found, person: str) -> None:
    """Take a person out of a run, under its lock. Raises: StageError where a pipeline is at work in it.

    New files are written beside the old ones first. Then prepare, the vault and so on take their places; the files by
    which a person is found come last, behind the tombstone and the manifest.
    """
    lock = take_lock(found.run)
    try:
        rewritten = {path: without(path, found.ids) for path in found.lines}
        finders = {path for path in rewritten if path.name == "conversations.jsonl" and path.parent.name == "anonymise"}
        for path in rewritten.keys() - finders:
            hashed(found.run, path, rewritten[path])
            os.replace(rewritten[path], path)
        with open(found.run / "erased.jsonl", "a", encoding="utf-8") as tombstones:
            tombstones.write(json.dumps({"customer": person, "at": now(), "records": sum(found.lines.values()), "conversations": len(found.ids), "trained": found.trained(),
                                         "exported": found.exported(), "released": found.released()}) + "\n")
        for path in finders:
            hashed(found.run, path, rewritten[path])
            os.replace(rewritten[path], path)
    finally:
        os.close(lock)


def without(path: Path, ids: frozenset[str]) -> Path:
    """The file without their lines, beside it; all other lines byte for byte."""
    partial = path.with_name(path.name + ".erased")
    with open(path, encoding="utf-8", errors="surrogateescape", newline="") as lines, open(partial, "w", encoding="utf-8", errors="surrogateescape", newline="") as kept:
        kept.writelines(line for line in lines if not is_theirs(_parsed(line), ids))
        kept.flush()
        os.fsync(kept.fileno())
    return partial


def _parsed(line: str) -> object:
    try:
        return json.loads(line)
    except ValueError:
        return None


def hashed(run: Path, path: Path, content: Path) -> None:
    """Write the hash of a stage's new content into its manifest. What two people read keeps its name: less of it leaks no more."""
    if not path.is_relative_to(run) or (manifest := read_manifest(folder := run / path.relative_to(run).parts[0])) is None:
        return
    if folder.name == "anonymise":
        manifest["released"] = released_hash(manifest)
    manifest["outputs"][str(path.relative_to(folder))] = hash_file(content)
    write_json(folder / "manifest.json", manifest)


# ---------------------------------------------------------------------------------------------------------------------
# Forget the key
# ---------------------------------------------------------------------------------------------------------------------


def missing_for_anonymous(run: Path) -> list[str]:
    """Why the output of a run is still personal data once the key is gone; empty where nothing stands against it."""
    facts, signoff = read_manifest(run / "anonymise")["facts"], read_signoff(run)
    survived = facts["canaries"]["planted"] - facts["canaries"]["removed"]
    return [reason for reason, stands in (("a vault was kept", facts["vault"]), ("no accepted sign-off", not (signoff and signoff["accepted"])),
                                          ("no canary travelled with it", not facts["canaries"]["planted"]), (f"{survived} canaries survived", survived)) if stands]


def destroy(path: Path) -> None:
    """Overwrite a file, then delete it. Copies, backups and what a flash disk keeps of old blocks are out of reach."""
    with open(path, "r+b") as file:
        file.write(os.urandom(path.stat().st_size))
        file.flush()
        os.fsync(file.fileno())
    path.unlink()


def claim_anonymous(run: Path, claim: str) -> None:
    """Write the claim into report and manifest of a run's stage `anonymise`."""
    folder = run / "anonymise"
    write_report(folder, json.loads((folder / "report.json").read_text(encoding="utf-8")) | {"claim": claim})
    for name in ("report.json", "report.html"):
        hashed(run, folder / name, folder / name)
    manifest = read_manifest(folder)
    manifest["facts"]["claim"] = claim
    write_json(folder / "manifest.json", manifest)


def forget_key(root: Path, key_file: str, confirm: str, dry_run: bool) -> int:
    """Destroy the key and say which runs may be called anonymous. Raises: StageError without its confirmation."""
    if not key_file:
        raise StageError("forget_key needs key_file=…: a key in SUPPORTLOOP_KEY stands where only you can delete it")
    if not Path(key_file).is_file():
        raise StageError(f"key_file={key_file} is no file: the key was destroyed before, or it lies elsewhere")
    key = Path(key_file).read_bytes().strip()
    key_id, claim = pseudonym(key, "key", "id"), f"anonymised: the key was destroyed on {datetime.date.today().isoformat()}"
    mine = [run for run, same in runs_of(root, key) if same]
    print(f"key {key_id} in {key_file}: after it nobody can erase a person, make a stand-in again or read a vault.")
    for run in mine:
        print(f"  {run}: " + (f"stays pseudonymised: {', '.join(missing_for_anonymous(run))}" if missing_for_anonymous(run) else f"will say \"{claim}\""))
    if dry_run or not confirm:
        print("nothing was changed" + ("" if dry_run else f": add confirm={key_id} to do it"))
        return 0
    if confirm != key_id:
        raise StageError(f"confirm={confirm} is not the id of this key: nothing was changed")
    locks = [take_lock(run) for run in mine]
    destroy(Path(key_file))
    for run in mine:
        if not missing_for_anonymous(run):
            claim_anonymous(run, claim)
    for lock in locks:
        os.close(lock)
    print("The key is destroyed. That holds as far as no copy or backup of it exists; the source archive is untouched. Export again to have the claim in the model card.")
    return 0


# ---------------------------------------------------------------------------------------------------------------------
# The command
# ---------------------------------------------------------------------------------------------------------------------


def printed(rows: list[list[str]]) -> str:
    widths = [max(len(row[i]) for row in rows) for i in range(len(rows[0]))]
    return "\n".join("  ".join(cell.ljust(width) for cell, width in zip(row, widths, strict=True)).rstrip() for row in rows)


def advice(all_found: list[Found], root: Path, vault: str) -> Iterator[str]:
    """What erasure cannot do by itself."""
    if any(found.ids for found in all_found):
        yield "The source still has them: add the id to the file of data.exclude_customers before anonymise runs again, and delete it at the source."
    if any(found.trained() for found in all_found):
        yield "Weights keep what they learned: withdraw the exports and releases above, also where copies are served, and run their pipelines again (prepare and what follows are no longer current)."
    if not vault and any(found.ids and read_manifest(found.run / "anonymise")["facts"].get("vault") for found in all_found):
        yield "A vault was kept: its lines stay until you give vault=<file>."
    if elsewhere := sum(found.elsewhere for found in all_found):
        yield f"The same id stands among the agents of {elsewhere} more conversations, which stay: participant=true takes them out too, if that is the same person."
    for partial in sorted(root.glob("*/*.partial")):
        yield f"{partial} is unfinished work and was not searched: finish it or delete it."


def main(arguments: list[str]) -> int:
    given = dict(a.split("=", 1) if "=" in a else (a, "") for a in arguments)
    if not arguments or {"-h", "--help"} & set(arguments):
        print(__doc__)
        return 0
    if unknown := sorted(set(given) - set(OPTIONS)):
        raise StageError(f"unknown argument {unknown[0].split('=')[0]}; erase takes {'=, '.join(OPTIONS)}=")
    options = OPTIONS | given
    for name in ("dry_run", "participant", "forget_key"):
        if options[name] not in ("true", "false"):
            raise StageError(f"{name} is true or false")
    root, dry_run, vault = Path(options["root"]), options["dry_run"] == "true", options["vault"]
    if options["forget_key"] == "true":
        return forget_key(root, options["key_file"], options["confirm"], dry_run)
    if not options["customer"]:
        raise StageError("customer=<the id that the source has> is missing")
    if vault and not Path(vault).is_file():
        raise StageError(f"vault={vault} is no file")
    try:
        key = read_key(options["key_file"] or None, sample=False)
    except StageError:
        raise StageError("the key is missing: set SUPPORTLOOP_KEY or key_file. Where it was destroyed nobody can tell any more which records are this person's") from None
    return forget_person(root, key, options["customer"], vault, options["participant"] == "true", dry_run)


def forget_person(root: Path, key: bytes, customer: str, vault: str, participant: bool, dry_run: bool) -> int:
    person, others, all_found = pseudonym(key, "customer", customer), [], []
    for run, same in runs_of(root, key):
        if same:
            all_found.append(find(run, key, customer, vault, participant))
        else:
            others.append(str(run))
    print(f"person {person} under key {pseudonym(key, 'key', 'id')}")
    rows = [[str(found.run), str(len(found.ids)), str(sum(found.lines.values())), ", ".join(found.trained()) or "nothing", found.exported() or "-", found.released() or "-"]
            for found in all_found if found.ids]
    print(printed([["run", "conversations", "lines", "trained on them", "exported", "released"], *rows]) if rows else "no run holds anything of them")
    kinds = Counter()
    for found in all_found:
        for path, count in found.lines.items():
            kinds[path.parent.name if path.name in ("train.jsonl", "validation.jsonl", "test.jsonl") else path.name] += count
    if kinds:
        print("lines: " + ", ".join(f"{count} {name}" for name, count in sorted(kinds.items())))
    if others:
        print(f"under another key, not searched: {', '.join(others)}")
    notes = list(advice(all_found, root, vault))
    if not dry_run:
        for found in all_found:
            if found.lines:
                erase(found, person)
    print(*notes, "dry run: nothing was changed" if dry_run else "done" if rows else "nothing to do", sep="\n")
    return 0


if __name__ == "__main__":
    try:
        sys.exit(main(sys.argv[1:]))
    except StageError as error:
        sys.exit(f"error: {error}")
