"""The one way in: which stages there are, in which order, and which of them must run.

    python -m training.pipeline                                   all stages, sample company, tiny model, CPU
    python -m training.pipeline 'stages=[sft]' run_name=acme      one stage
    python -m training.pipeline dry_run=true                      what would run, and why
    python -m training.pipeline --show run_name=acme              the composed configuration

Any key of conf/ can be set as `key=value`. Each stage runs in a process of its own: accelerate, TRL and W&B keep
process-wide state, and a GPU's memory returns only at exit. A stage whose inputs, config, code, data, library versions
and seed are unchanged is skipped.
"""

from __future__ import annotations

import contextlib
import importlib
import os
import shlex
import shutil
import signal
import subprocess
import sys
import time
from dataclasses import dataclass
from pathlib import Path

from omegaconf import OmegaConf

from conf.load import ConfigError, load_config
from data_prep.artifacts import ROOT, FileHashes, StageError, code_hash, hash_value, is_current, module_file, outputs_hash, process_count, process_rank, read_manifest, stage_dir, take_lock, versions
from data_prep.company.pack import PackError, load_pack
from data_prep.signoff import read_signoff, review_folder

TRAIN = ("torch", "transformers", "trl", "peft", "accelerate", "datasets")


@dataclass(frozen=True)
class Stage:
    """One row of the pipeline: what it is made from, and what it reads of the configuration."""

    name: str
    module: str
    needs: tuple[str, ...]          # stages whose output it reads, where they are part of this run
    reads: tuple[str, ...]          # blocks of the configuration
    libraries: tuple[str, ...] = ()
    parallel: bool = False          # hardware.launcher is put in front: several processes train it together
    company: bool = False           # reads the company pack
    signed: bool = False            # depends on the sign-off of two reviewers


STAGES = (
    Stage("generate", "data_prep.company.generate", (), ("generate",), company=True),
    Stage("anonymise", "data_prep.anonymise", ("generate",), ("data", "anonymise"), ("phonenumbers", "python-stdnum", "simplemma"), company=True),
    Stage("prepare", "data_prep.prepare", ("anonymise",), ("prepare",), ("datasketch",), signed=True),
    Stage("pretrain", "training.pretrain", ("prepare",), ("model", "hardware", "trainer", "pretrain"), TRAIN, parallel=True),
    Stage("sft", "training.sft", ("prepare", "pretrain"), ("model", "hardware", "trainer", "sft"), TRAIN, parallel=True),
    Stage("reward", "training.reward", ("prepare", "pretrain", "sft"), ("model", "hardware", "trainer", "reward"), TRAIN),
    Stage("dpo", "training.dpo", ("prepare", "pretrain", "sft"), ("model", "hardware", "trainer", "dpo"), TRAIN, parallel=True),
    Stage("kto", "training.kto", ("prepare", "pretrain", "sft"), ("model", "hardware", "trainer", "kto"), TRAIN, parallel=True),
    Stage("ppo", "training.ppo", ("prepare", "pretrain", "sft", "reward", "dpo"), ("model", "hardware", "reward", "ppo"), TRAIN, parallel=True, company=True),
    Stage("rloo", "training.rloo", ("prepare", "pretrain", "sft", "reward"), ("model", "hardware", "trainer", "reward", "rloo"), TRAIN),
    Stage("evaluate", "eval.evaluate", ("anonymise", "prepare", "pretrain", "sft", "reward", "dpo", "kto", "ppo", "rloo"), ("model", "hardware", "evaluate"), TRAIN, company=True),
    Stage("export", "serve.export", ("anonymise", "prepare", "pretrain", "sft", "dpo", "kto", "ppo", "rloo", "evaluate"), ("model", "export"), TRAIN, company=True, signed=True),
    Stage("verify", "eval.verify", ("evaluate", "export"), ("evaluate", "verify"), TRAIN, company=True),
    Stage("endpoint", "eval.endpoint", (), ("evaluate", "endpoint", "endpoint_model"), company=True),
)
# For glibc: freed memory is kept for the next tensors. Given back, as is the default, every step asks for it page by page again: about a twentieth of the processor's time of a small model.
STOPS = 20            # seconds that a stage has to end when it is told to
KEEP_MEMORY = {"MALLOC_MMAP_THRESHOLD_": str(1 << 32), "MALLOC_TRIM_THRESHOLD_": str(1 << 33), "MALLOC_TOP_PAD_": str(1 << 28)}
NOT_ITS_OWN = {"anonymise": ("signoff", "max_residual")}     # keys of a block that its stage does not read: to waive the sign-off anonymises nothing again
BY_NAME = {stage.name: stage for stage in STAGES}


def built() -> list[str]:
    """The stages whose module exists."""
    return [stage.name for stage in STAGES if module_file(stage.module)]


def planned(config) -> list[Stage]:
    """The stages this run has, in order. Raises: ConfigError for an unknown one, listing the choices."""
    if config.endpoint:
        return [BY_NAME["endpoint"]]
    unknown = [name for name in config.stages if name not in built()]
    if unknown:
        raise ConfigError(f"unknown stages {unknown}; the stages are {built()}")
    absent = set()
    if config.data.format != "company":
        absent.add("generate")
    if not config.model.from_scratch:
        absent.add("pretrain")
    return [stage for stage in STAGES if stage.name in config.stages and stage.name not in absent]


def fingerprint(config, stage: Stage, hashes: FileHashes, code: dict[str, str]) -> dict:
    """Everything a stage is made from, as hashes by kind, so that a change can be named."""
    inputs = {}
    for need in stage.needs:
        manifest = read_manifest(stage_dir(config, need))
        if manifest:
            inputs[need] = outputs_hash(manifest)
    whole = OmegaConf.to_container(config)
    values = {block: {key: value for key, value in whole[block].items() if key not in NOT_ITS_OWN.get(block, ())} if isinstance(whole[block], dict) else whole[block] for block in stage.reads}
    files = {}
    if stage.signed:
        values["signoff"] = [config.anonymise.signoff, read_signoff(config.run_dir)]
    if stage.company and config.company:
        files |= {str(path): hashes.of(path) for path in load_pack(config.company).files()}
    if "data" in stage.reads:
        files |= {str(path): hashes.of(path) for path in _data_files(config)}
    if stage.name not in code:
        code[stage.name] = code_hash(stage.module)
    templates = {str(p.name): hashes.of(p) for p in sorted((ROOT / "training" / "templates").glob("*.jinja"))} if stage.libraries == TRAIN else {}
    return {"inputs": inputs, "config": hash_value(values), "code": code[stage.name], "data": hash_value({**files, **templates}),
            "libraries": versions(stage.libraries), "seed": config.seed}


def _data_files(config) -> list[Path]:
    paths = []
    for key in ("conversations", "feedback", "users", "actions", "exclude_customers", "root"):
        value = config.data[key]
        if value and not Path(value).exists():
            raise ConfigError(f"data.{key}={value} does not exist: give the path of {'a folder' if key == 'root' else 'a file'}")
        if value:
            path = Path(value)
            paths += sorted(p for p in path.rglob("*") if p.is_file()) if path.is_dir() else [path]
    return paths


def why(folder: Path, wanted: dict) -> str:
    """Why a stage must run, in words."""
    manifest = read_manifest(folder)
    if manifest is None:
        return "resuming" if folder.with_name(folder.name + ".partial").exists() else "not done yet"
    changed = [kind for kind in wanted if manifest["made_from"].get(kind) != wanted[kind]]
    if folder.name == "endpoint" and not changed:
        return "asked anew each time: what answers there may be another one today"
    return f"changed: {', '.join(changed)}" if changed else "an output is missing or was changed"


def take_over(config, stage: Stage, wanted: dict) -> bool:
    """Copy a stage of the run named by `reuse` where it was made from the same things."""
    if not config.reuse:
        return False
    source, target = Path(config.reuse) / stage.name, stage_dir(config, stage.name)
    manifest = read_manifest(source)
    if manifest is None or manifest["fingerprint"] != hash_value(wanted):
        return False
    shutil.rmtree(target, ignore_errors=True)
    copy = target.with_name(target.name + ".copy")
    shutil.rmtree(copy, ignore_errors=True)
    shutil.copytree(source, copy)
    copy.rename(target)
    if stage.name == "anonymise" and review_folder(config.reuse).is_dir():       # what was read there is here, byte for byte
        shutil.copytree(review_folder(config.reuse), review_folder(config.run_dir), dirs_exist_ok=True)
    record_config(config, stage, wanted)
    return True


def record_config(config, stage: Stage, wanted: dict) -> Path:
    """Write down the configuration a stage is run with, for its process, the review and erasure. Returns the file."""
    path = Path(config.run_dir) / "config" / f"{stage.name}.yaml"
    path.parent.mkdir(parents=True, exist_ok=True)
    config = config.copy()
    config.fingerprint = wanted
    path.write_text(OmegaConf.to_yaml(config), encoding="utf-8")
    return path


def start(config, stage: Stage, wanted: dict, lock: int) -> None:
    """Run one stage in a process of its own. Raises: StageError when it fails."""
    settings = record_config(config, stage, wanted)
    command = [*(launcher(config) if stage.parallel else [sys.executable]), "-m", "training.pipeline", "--stage", stage.name, str(settings)]
    environment = {**os.environ, "HF_HUB_DISABLE_TELEMETRY": "1", "TOKENIZERS_PARALLELISM": "false", "WANDB_SILENT": "true", "PYTHONHASHSEED": "0"}
    if not (stage.parallel and config.hardware.launcher):        # one process; with several GPUs in sight the Trainer would split its batches over them
        environment["CUDA_VISIBLE_DEVICES"] = os.environ.get("CUDA_VISIBLE_DEVICES", "0").split(",")[0]
    if not sys.stderr.isatty():
        environment["TQDM_MININTERVAL"] = "15"      # a log file wants a line now and then, not a bar
    if config.hardware.threads:
        environment["OMP_NUM_THREADS"] = str(config.hardware.threads)
    if config.hardware.trainer.use_cpu:
        environment = {**KEEP_MEMORY, **environment, "CUDA_VISIBLE_DEVICES": ""}      # or libraries would take a GPU in sight, and several processes speak NCCL
    process = subprocess.Popen(command, env=environment, cwd=ROOT, pass_fds=[lock])
    try:
        code = process.wait()
    except KeyboardInterrupt:            # a launcher passes it on to what it has started
        process.terminate()
        try:
            process.wait(STOPS)
        except subprocess.TimeoutExpired:
            process.kill()
        raise
    if code != 0:
        raise StageError(f"stage {stage.name} stopped (exit {code}); what it finished is kept, the same command goes on from there")


def launcher(config) -> list[str]:
    """What a stage is started by: hardware.launcher, looked for beside this Python first, or this Python. Raises: StageError where there is no such command."""
    program, *rest = shlex.split(config.hardware.launcher) or [sys.executable]
    found = shutil.which(program, path=os.pathsep.join([str(Path(sys.executable).parent), os.environ.get("PATH", "")]))
    if found is None:
        raise StageError(f"hardware.launcher={config.hardware.launcher}: there is no command {program}, neither beside {sys.executable} nor in PATH")
    return [found, *rest]


def run_stage(name: str, settings: str) -> None:
    """The child process: run one stage from the configuration that the parent wrote."""
    config = OmegaConf.load(settings)
    module = importlib.import_module(BY_NAME[name].module)
    if BY_NAME[name].libraries == TRAIN:
        from training.models import quieten

        quieten(config)
    with contextlib.ExitStack() as said_once:
        if process_rank() > 0:
            said_once.enter_context(contextlib.redirect_stdout(said_once.enter_context(open(os.devnull, "w"))))
        module.run(config)
    if process_count() > 1:
        from training.group import leave

        leave()


def run(config) -> None:
    stages = planned(config)
    if config.company:
        load_pack(config.company)
    run_dir = Path(config.run_dir)
    lock = take_lock(run_dir)
    hashes, code, seconds = FileHashes(run_dir / "hashes.json"), {}, {}
    for number, stage in enumerate(stages, 1):
        wanted = fingerprint(config, stage, hashes, code)
        folder = stage_dir(config, stage.name)
        label = f"[{number}/{len(stages)}] {stage.name:<10}"
        if stage.name != "endpoint" and is_current(folder, hash_value(wanted), hashes):       # what answers there may be another one today
            print(f"{label} current, skipped", flush=True)
            continue
        if config.dry_run:
            print(f"{label} would run ({why(folder, wanted)})")
            continue
        if take_over(config, stage, wanted):
            print(f"{label} taken over from {config.reuse}", flush=True)
            continue
        print(f"{label} {why(folder, wanted)}", flush=True)
        began = time.time()
        start(config, stage, wanted, lock)
        seconds[stage.name] = time.time() - began
        print(f"{label} {read_manifest(folder)['summary']} · {seconds[stage.name]:.0f} s", flush=True)
    _print_seconds(config, seconds)


def _print_seconds(config, seconds: dict[str, float]) -> None:
    if not seconds:
        return
    print("\nstage        seconds  peak memory")
    for name, value in seconds.items():
        print(f"{name:<12} {value:7.1f}  {read_manifest(stage_dir(config, name))['peak_memory_gib']:.2f} GiB")
    print(f"{'all':<12} {sum(seconds.values()):7.1f}")


def main(arguments: list[str]) -> int:
    if arguments[:1] == ["--stage"]:
        try:
            run_stage(*arguments[1:3])
        except (StageError, ConfigError, PackError) as error:
            print(f"error: {error}", file=sys.stderr)
            return 1
        except OSError as error:
            print(f"error: {error.strerror or error}: {error.filename or ''}; free some space or check the path, then run the same command again", file=sys.stderr)
            return 1
        except Exception as error:
            if "No space left" not in str(error):       # safetensors has an exception of its own for it
                raise
            print("error: no space left on the disk; free some, then run the same command again", file=sys.stderr)
            return 1
        return 0
    if {"-h", "--help"} & set(arguments):
        print(__doc__)
        print("stages:", ", ".join(built()))
        return 0
    signal.signal(signal.SIGTERM, signal.default_int_handler)           # what a cluster or a container says is what Ctrl-C says: the stage ends too
    try:
        config = load_config([a for a in arguments if a != "--show"])
        if "--show" in arguments:
            print(OmegaConf.to_yaml(config))
        else:
            run(config)
    except (StageError, ConfigError, PackError) as error:
        print(f"error: {error}", file=sys.stderr)
        return 1
    except KeyboardInterrupt:
        print("stopped; the same command goes on from here", file=sys.stderr)
        return 130
    return 0


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
