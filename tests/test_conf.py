from __future__ import annotations

import subprocess
import sys
import time
from pathlib import Path

import pytest
from omegaconf import OmegaConf

from conf.load import FOLDER, ConfigError, choices, load_config
from data_prep.artifacts import StageError
from training.pipeline import launcher

GROUPS = sorted(p.name for p in FOLDER.iterdir() if p.is_dir() and p.name not in ("__pycache__", "stage", "serve"))
OPTIONS = [(group, option) for group in GROUPS for option in choices(group)]
NEEDED = {**{("data", name): ["data.conversations=x.jsonl"] for name in ("csv", "intercom", "jsonl", "zendesk")}, ("data", "star"): ["data.root=x"], ("experiment", "star"): ["data.root=x"]}
TRAINERS = {"pretrain": "transformers.TrainingArguments", "sft": "trl.SFTConfig", "reward": "transformers.TrainingArguments", "dpo": "trl.DPOConfig", "kto": "trl.KTOConfig", "rloo": "trl.RLOOConfig"}


def test_there_are_options_to_test():
    assert len(OPTIONS) >= 10
    assert {"data", "model", "hardware", "tracking", "experiment"} <= set(GROUPS)


@pytest.mark.parametrize(("group", "option"), OPTIONS)
def test_every_yaml_composes(group, option):
    assert load_config([f"{group}={option}", *NEEDED.get((group, option), [])]).stages


def test_serve_composes():
    assert load_config(["port=9000"], "serve").port == 9000


@pytest.mark.parametrize("experiment", [None, *choices("experiment")])
def test_every_trainer_key_is_trls(experiment):
    """A typo inside a trainer block passes Hydra; TRL's own dataclasses judge it here."""
    import transformers
    import trl

    config = load_config([f"experiment={experiment}", *NEEDED.get(("experiment", experiment), [])] if experiment else [])
    for stage, name in TRAINERS.items():
        cls = getattr({"trl": trl, "transformers": transformers}[name.split(".")[0]], name.split(".")[1])
        for block in (config.trainer, config.hardware.trainer, config[stage].trainer):
            assert not set(OmegaConf.to_container(block)) - set(cls.__dataclass_fields__), stage
    for model in choices("hardware"):
        load_config([f"hardware={model}"])


@pytest.mark.parametrize(("override", "says"), [
    ("sft.lora.x=3", "unknown config key `sft.lora.x`"), ("lerning_rate=1", "unknown config key `lerning_rate`"),
    ("sft.lora.r=many", "conf/stage/sft.yaml"), ("model=gpt", "conf/model has ['qwen3_4b', 'qwen3_8b', 'tiny']"),
    ("data=jsonl", "data.conversations must be given"), ("experiment=none", "conf/experiment has"),
    ("ppo.drafts=0", "`ppo.drafts`: 0 must be at least 1; see conf/stage/ppo.yaml"), ("model.max_new_tokens=0", "conf/model/")])
def test_a_config_error_says_what_where_and_what_to_do(override, says):
    with pytest.raises(ConfigError) as error:
        load_config([override])
    assert says in str(error.value)
    assert "\n" not in str(error.value)


def test_open_dictionaries_take_any_key_of_trls():
    assert load_config(["sft.trainer.max_steps=3"]).sft.trainer.max_steps == 3


@pytest.mark.parametrize("arguments", [["--help"], ["sft.lora.x=3"], ["stages=[dqo]"]])
def test_help_and_errors_come_within_two_seconds_and_without_torch(arguments):
    code = f"import sys; from training.pipeline import main; main({arguments!r}); assert 'torch' not in sys.modules, 'torch was imported'"
    began = time.time()
    made = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, cwd=FOLDER.parent, check=False)
    assert made.returncode == 0, made.stderr
    assert time.time() - began < 4      # 2 s on a quiet machine; tests run beside other work


def test_an_unknown_stage_lists_the_choices(capsys):
    from training.pipeline import main

    assert main(["stages=[dqo]"]) == 1
    assert "unknown stages ['dqo']; the stages are ['generate', 'anonymise', 'prepare'" in capsys.readouterr().err


def test_a_launcher_is_found_beside_this_python_and_one_that_is_nowhere_is_named():
    config = load_config(["hardware.launcher=torchrun --standalone --nproc_per_node 2"])
    assert launcher(config) == [str(Path(sys.executable).with_name("torchrun")), "--standalone", "--nproc_per_node", "2"]
    assert launcher(load_config([])) == [sys.executable]
    with pytest.raises(StageError, match="no command torchrum"):
        launcher(load_config(["hardware.launcher=torchrum --nproc_per_node 2"]))


@pytest.mark.parametrize("name", ["../../etc", "a/b", ".hidden", "a b"])
def test_a_runs_name_is_no_way_out_of_its_folder(name):
    with pytest.raises(ConfigError, match="run_name"):
        load_config([f"run_name='{name}'"])
