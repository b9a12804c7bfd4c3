"""What a stage leaves behind and how we know that it is still true.

    runs/<run_name>/<stage>/…             the outputs, renamed into place when whole
    runs/<run_name>/<stage>/manifest.json written last: its existence means done
    runs/<run_name>/<stage>.partial/      a stage at work, or one that was killed and will resume

A stage is current when its fingerprint is unchanged: the hash of its inputs, its part of the config, the first-party
modules it imports, the data files it reads, the versions of the libraries it names, and the seed.
"""

from __future__ import annotations

import ast
import contextlib
import datetime
import fcntl
import functools
import hashlib
import importlib.metadata
import json
import os
import re
import resource
import shutil
import sys
import time
from collections.abc import Callable, Iterator
from pathlib import Path

from omegaconf import DictConfig, OmegaConf
from omegaconf.errors import OmegaConfBaseException

from data_prep.conversation import write_json

ROOT = Path(__file__).resolve().parent.parent
PACKAGES = ("conf", "data_prep", "training", "eval", "serve")
ON_A_BASE = ("sft", "reward", "dpo", "kto", "ppo", "rloo")         # stages whose adapters belong to the base they were trained on


class StageError(RuntimeError):
    """A stage cannot go on. The message is one line: what, where, what to do."""


def stage_dir(config, stage: str) -> Path:
    return Path(config.run_dir) / stage


def read_manifest(folder: str | Path) -> dict | None:
    path = Path(folder) / "manifest.json"
    return json.loads(path.read_text(encoding="utf-8")) if path.is_file() else None


def require(config, stage: str, asked_by: str) -> Path:
    """The folder of a finished stage. Raises: StageError naming the stage to run where there is none, or where it was trained on another base than this run's:
    of the same shape that would load, and mean nothing."""
    folder = stage_dir(config, stage)
    manifest = read_manifest(folder)
    if manifest is None:
        raise StageError(f"{asked_by} needs the output of {stage}, and {folder} has none: run 'stages=[{stage}]' first")
    if _has_another_base(config, stage, manifest):
        raise StageError(f"{folder} was trained on another base model than this run has now: run 'stages=[{stage}]' again, then {asked_by}")
    return folder


def _has_another_base(config, stage: str, manifest: dict) -> bool:
    if stage not in ON_A_BASE:
        return False
    if config.model.from_scratch:
        made, base = manifest["made_from"].get("inputs", {}).get("pretrain"), read_manifest(stage_dir(config, "pretrain"))
        return None not in (made, base) and made != outputs_hash(base)
    if not (Path(config.run_dir) / "config" / f"{stage}.yaml").is_file():
        return False
    made = recorded_config(config.run_dir, stage).model
    return (made.name, made.revision) != (config.model.name, config.model.revision)


def recorded_config(run_dir: str | Path, stage: str, overrides: list[str] = ()) -> DictConfig:
    """The configuration a stage was run with, from `<run_dir>/config/`, with `key.key=value` changes.

    Raises: StageError where it is not there, or a key of the overrides is not in it.
    """
    path = Path(run_dir) / "config" / f"{stage}.yaml"
    if not path.is_file():
        raise StageError(f"{path} does not exist: give the folder of a run of the pipeline, e.g. runs/acme")
    config, changes = OmegaConf.load(path), OmegaConf.from_dotlist(list(overrides))
    config.run_dir = str(run_dir)
    OmegaConf.set_struct(config, True)
    try:
        return OmegaConf.merge(config, changes)
    except OmegaConfBaseException:
        raise StageError(f"unknown key among {', '.join(o.split('=')[0] for o in overrides)}: {path} has no such key") from None


def take_lock(run_dir: Path) -> int:
    """Hold the run folder for this process and the stages it starts; a stage that outlives its killed parent still holds it.

    Raises: StageError where the folder cannot be written, or somebody else is at work in it.
    """
    try:
        run_dir.mkdir(parents=True, exist_ok=True)
        lock = os.open(run_dir / ".lock", os.O_RDWR | os.O_CREAT)
    except OSError as error:
        raise StageError(f"cannot write to {run_dir}: {error.strerror}; choose another place with run_dir=…") from None
    try:
        fcntl.flock(lock, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except OSError:
        raise StageError(f"another pipeline is at work in {run_dir}: wait for it, stop it, or choose another run_name") from None
    return lock


# ---------------------------------------------------------------------------------------------------------------------
# Fingerprints
# ---------------------------------------------------------------------------------------------------------------------


def hash_value(value: object) -> str:
    return hashlib.sha256(json.dumps(value, sort_keys=True, default=str).encode()).hexdigest()[:16]


def hash_file(path: str | Path) -> str:
    digest = hashlib.sha256()
    with open(path, "rb") as file:
        while chunk := file.read(1 << 20):
            digest.update(chunk)
    return digest.hexdigest()[:16]


def module_file(module: str) -> Path | None:
    base = ROOT.joinpath(*module.split("."))
    for path in (base.with_suffix(".py"), base / "__init__.py"):
        if path.is_file():
            return path
    return None


@functools.cache
def imports_of(module: str) -> frozenset[str]:
    """The first-party modules that a module imports, also inside its functions."""
    path = module_file(module)
    found: set[str] = set()
    for node in ast.walk(ast.parse(path.read_text(encoding="utf-8"))) if path else ():
        if isinstance(node, ast.Import):
            found |= {alias.name for alias in node.names}
        elif isinstance(node, ast.ImportFrom) and node.module and node.level == 0:
            found.add(node.module)
            found |= {f"{node.module}.{alias.name}" for alias in node.names}
    return frozenset(name for name in found if name.split(".")[0] in PACKAGES and module_file(name))


def code_hash(module: str) -> str:
    """The hash of a module and of every first-party module it imports, transitively: its syntax tree, not its comments, and the tables and models it names beside it."""
    seen, queue = set(), [module]
    while queue:
        name = queue.pop()
        if name not in seen:
            seen.add(name)
            queue += imports_of(name)
    trees = {name: ast.parse(module_file(name).read_text(encoding="utf-8")) for name in sorted(seen)}
    tables = {str(path.relative_to(ROOT)): hash_file(path) for name, tree in trees.items() for path in _tables_beside(module_file(name), tree)}
    return hash_value({**{name: ast.dump(tree) for name, tree in trees.items()}, **tables})


def _tables_beside(module: Path, tree: ast.AST) -> list[Path]:
    """The files that a module names in its strings, and all in the folders it names ("suites/")."""
    named = {node.value for node in ast.walk(tree) if isinstance(node, ast.Constant) and isinstance(node.value, str) and re.fullmatch(r"[\w/]+(?:\.yaml|\.crfsuite|/)", node.value)}
    found = [module.parent / name for name in sorted(named)]
    return [path for path in found if path.is_file()] + [path for folder in found if folder.is_dir() for path in sorted(folder.rglob("*")) if path.is_file()]


def versions(libraries: tuple[str, ...]) -> dict[str, str]:
    return {name: importlib.metadata.version(name) for name in libraries}


class FileHashes:
    """Content hashes of data files, remembered by size and modification time so that a large file is read once."""

    def __init__(self, cache: Path):
        self.cache = cache
        self.known = json.loads(cache.read_text()) if cache.is_file() else {}

    def of(self, path: Path) -> str:
        stat = path.stat()
        key, mark = str(path.resolve()), [stat.st_size, stat.st_mtime_ns]
        if self.known.get(key, {}).get("mark") != mark:
            self.known[key] = {"mark": mark, "hash": hash_file(path)}
            write_json(self.cache, self.known)
        return self.known[key]["hash"]


def outputs_hash(manifest: dict) -> str:
    return hash_value(manifest["outputs"])


def is_current(folder: Path, fingerprint: str, hashes: FileHashes) -> bool:
    """Done, made from the same things, and every output still there unchanged."""
    manifest = read_manifest(folder)
    if manifest is None or manifest["fingerprint"] != fingerprint:
        return False
    return all((folder / name).is_file() and hashes.of(folder / name) == digest for name, digest in manifest["outputs"].items())


# ---------------------------------------------------------------------------------------------------------------------
# Output
# ---------------------------------------------------------------------------------------------------------------------


_BEGUN = time.time()
_workers: dict[int, int] = {}          # by process, the most that workers of this one held


def held_by_workers(peaks: dict[int, int]) -> None:
    """Count the memory of workers, as {process: bytes}, with a stage's own."""
    _workers.update(peaks)


def peak_memory() -> int:
    """Bytes that this process held at most. Linux counts what its parent held before it into getrusage's figure, so VmHWM is read where there is one."""
    with contextlib.suppress(OSError):
        for line in Path("/proc/self/status").read_text().splitlines():
            if line.startswith("VmHWM:"):
                return int(line.split()[1]) * 1024
    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * (1 if sys.platform == "darwin" else 1024)


def process_rank() -> int:
    """This process's number among those that train a stage together, as torchrun and accelerate set it; 0 alone."""
    return int(os.environ.get("RANK", 0))


def process_count() -> int:
    return int(os.environ.get("WORLD_SIZE", 1))


class StageOutput(os.PathLike):
    """The folder a stage writes into, and the one line it says at the end."""

    def __init__(self, path: Path):
        self.path, self.line, self.facts = path, "", {}
        self.is_main = process_rank() == 0        # of several processes that train together, the one that writes

    def __fspath__(self) -> str:
        return str(self.path)

    def __truediv__(self, name: str) -> Path:
        return self.path / name

    def summary(self, line: str, **facts: object) -> None:
        """What went in and what came out, in one line; facts go into the manifest."""
        self.line, self.facts = line, facts


def _wait(ready: Callable[[], object], seconds: float = 600) -> None:
    """Until it is true, or gives nothing, without an error. Raises: StageError when another process of the stage does not get there."""
    until = time.time() + seconds
    while time.time() < until:
        with contextlib.suppress(OSError, ValueError):
            if ready() is not False:
                return
        time.sleep(0.1)
    raise StageError(f"another process of this stage did not come within {seconds:.0f} s: see what it printed, then run the same command again")


@contextlib.contextmanager
def stage_output(config, stage: str) -> Iterator[StageOutput]:
    """Write a stage's outputs into `<stage>.partial/`, then rename it and write the manifest.

    A partial folder left by a kill is kept, and the stage resumes in it, only when it has the same fingerprint. Of several processes (RANK and WORLD_SIZE, as torchrun
    and accelerate set them) the first makes the folder and finishes it once the others have left the block; they read checkpoints there and write nothing.
    """
    final = stage_dir(config, stage)
    partial = final.with_name(final.name + ".partial")
    fingerprint = OmegaConf.to_container(config.fingerprint)
    mark = partial / "fingerprint.json"
    rank, others = process_rank(), process_count() - 1
    if rank > 0:
        _wait(lambda: json.loads(mark.read_text()) == fingerprint)
        yield StageOutput(partial)
        write_json(partial / f"left-{rank}", peak_memory())
        return
    if partial.exists() and not (mark.is_file() and json.loads(mark.read_text()) == fingerprint):
        shutil.rmtree(partial)
    partial.mkdir(parents=True, exist_ok=True)
    for left in partial.glob("left-*"):
        if left.stat().st_mtime < _BEGUN:           # of a start that was killed; in a stage that had only to be finished another process may have come and gone already
            left.unlink()
    write_json(mark, fingerprint)
    out, started = StageOutput(partial), time.time()
    yield out
    for other in range(1, others + 1):
        left = partial / f"left-{other}"
        _wait(left.stat)
        held_by_workers({-other: json.loads(left.read_text())})
        left.unlink()
    mark.unlink()
    for checkpoints in list(partial.rglob("checkpoints")):
        shutil.rmtree(checkpoints, ignore_errors=True)
    if final.exists():
        shutil.rmtree(final)
    partial.rename(final)
    outputs = {str(p.relative_to(final)): hash_file(p) for p in sorted(final.rglob("*")) if p.is_file()}
    write_json(final / "manifest.json", {
        "stage": stage, "fingerprint": hash_value(fingerprint), "made_from": fingerprint, "outputs": outputs,
        "summary": out.line, "facts": out.facts, "seconds": round(time.time() - started, 1),
        "peak_memory_gib": round((peak_memory() + sum(_workers.values())) / 2**30, 2),
        "finished_at": datetime.datetime.now(datetime.UTC).isoformat(timespec="seconds")})
