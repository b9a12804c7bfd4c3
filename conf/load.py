"""Compose a configuration and turn Hydra's refusals into one line: what, where, what to do."""

from __future__ import annotations

import re
from pathlib import Path

from hydra import compose, initialize_config_dir
from hydra.errors import HydraException
from omegaconf import DictConfig, OmegaConf
from omegaconf.errors import OmegaConfBaseException

from conf.schema import register

FOLDER = Path(__file__).resolve().parent
_open_key = re.compile(r"^(\w+\.)?(trainer|sft_trainer|full_trainer|architecture|gates|hard_gates|columns|roles|adapters)\.[\w-]+=")     # open dictionaries: any key may be set
COUNTS = ("model.max_tokens", "model.max_new_tokens", "reward.members", "ppo.steps", "ppo.episodes", "ppo.drafts", "ppo.max_replies", "ppo.rollout_batch", "ppo.batch_tokens", "ppo.epochs", "ppo.minibatches",
          "ppo.language_batch", "ppo.save_steps", "evaluate.every", "verify.every", "dpo.max_pairs", "dpo.pool")


class ConfigError(ValueError):
    """The configuration cannot be composed."""


def load_config(overrides: list[str], name: str = "config") -> DictConfig:
    """The composed, type-checked configuration, every value resolved.

    Raises: ConfigError in one line, for an unknown key, a wrong type, a missing value, an unknown choice of a group, or less than one of what there must be some of.
    """
    register()
    try:
        # Serving has a config root of its own: in conf/, `model=` would pick an option of the group model.
        root = FOLDER / name if (FOLDER / name).is_dir() else FOLDER
        with initialize_config_dir(str(root), version_base="1.3"):
            config = compose(name, overrides=[_open_key.sub(r"++\g<0>", override) for override in overrides])
        OmegaConf.resolve(config)
    except (HydraException, OmegaConfBaseException) as error:
        raise ConfigError(_one_line(error, name)) from None
    if (run := OmegaConf.select(config, "run_name")) is not None and not re.fullmatch(r"\w[\w.-]*", str(run)):
        raise ConfigError(f"run_name={run} is no name of a folder: letters, digits, '.', '-' and '_'; where it lies is run_dir's to say")
    missing = sorted(OmegaConf.missing_keys(config))
    if missing:
        raise ConfigError(f"{', '.join(missing)} must be given: add {missing[0]}=… to the command line")
    for key in COUNTS:
        if (value := OmegaConf.select(config, key)) is not None and value < 1:
            raise ConfigError(f"config key `{key}`: {value} must be at least 1; see {_file_of(key, name)}")
    return config


def choices(group: str) -> list[str]:
    return sorted(path.stem for path in (FOLDER / group).glob("*.yaml"))


def _one_line(error: Exception, name: str) -> str:
    cause = error.__cause__ or error
    text = " ".join(f"{error} {cause if cause is not error else ''}".split())
    if match := re.search(r"full_key: (\S+)", text):
        key = match.group(1)
        if "not in struct" in text or "not in 'Config'" in text or re.search(r"Key '[^']+' not in", text):
            parent = key.rpartition(".")[0]
            return f"unknown config key `{key}`: {parent or 'the configuration'} has no such key; see {_file_of(key, name)}"
        return f"config key `{key}`: {text.split(' full_key:')[0]}; see {_file_of(key, name)}"
    if match := re.search(r"Could not find '(\w+)/(\w+)'", text):
        group, option = match.groups()
        return f"unknown {group} `{option}`; conf/{group} has {choices(group)}"
    return text


def _file_of(key: str, name: str) -> str:
    """The YAML file in which a key would be found."""
    if (FOLDER / name).is_dir():
        return f"conf/{name}/{name}.yaml"
    top = key.split(".")[0]
    if (FOLDER / "stage" / f"{top}.yaml").is_file():
        return f"conf/stage/{top}.yaml"
    return f"conf/{top}/" if (FOLDER / top).is_dir() else "conf/config.yaml"
