"""What the README, the Makefile and the configuration say must be true."""

from __future__ import annotations

import re
import subprocess
from pathlib import Path

import pytest

from conf.load import choices, load_config
from training.pipeline import STAGES, built

ROOT = Path(__file__).resolve().parent.parent
README = (ROOT / "README.md").read_text(encoding="utf-8")
MAKEFILE = (ROOT / "Makefile").read_text(encoding="utf-8")
TARGETS = set(re.findall(r"^([a-z][a-z-]*):", MAKEFILE, re.MULTILINE)) | set(re.search(r"^STAGES := (.*)$", MAKEFILE, re.MULTILINE).group(1).split())


def test_every_stage_is_in_the_readme_and_has_a_make_target():
    for name in built():
        assert f"| {name} |" in README, name
        assert name in TARGETS
    assert load_config([]).stages == [stage.name for stage in STAGES if stage.name not in ("kto", "rloo", "endpoint")], "three are for who asks for them"


def test_every_make_target_that_is_named_exists():
    named = set(re.findall(r"make ([a-z][a-z-]+)", README))
    assert {"train", "test", "smoke", "serve"} <= named
    assert named <= TARGETS


def test_every_path_that_is_named_exists():
    for path in set(re.findall(r"`((?:conf|data_prep|training|eval|serve|tests|benchmarks|deploy)/[\w./-]*)`", README)):
        assert (ROOT / path).exists(), path


def test_every_choice_that_is_named_exists():
    for group, option in re.findall(r"\b(data|model|hardware|tracking|experiment)=(\w+)", README):
        assert option in choices(group) or option in ("runs",), f"{group}={option}"


@pytest.mark.parametrize("command", sorted({line.strip() for line in README.splitlines() if line.strip().startswith("python -m training.pipeline")}))
def test_every_pipeline_command_composes(command):
    import shlex

    overrides = [word for word in shlex.split(command.split("#")[0])[3:] if not word.startswith("--")]
    load_config(overrides)


def test_it_is_short_and_its_picture_is_there():
    assert len(README.splitlines()) <= 250
    for path in re.findall(r"!\[[^]]*\]\(([^)]+)\)", README):
        assert (ROOT / path).is_file(), path


def test_help_prints_itself():
    made = subprocess.run(["make", "help"], cwd=ROOT, capture_output=True, text=True, check=True).stdout
    for target in re.findall(r"^([a-z-]+):.*##", MAKEFILE, re.MULTILINE):
        assert f"make {target}" in made


def test_nothing_names_a_place_of_one_machine():
    made = subprocess.run(["git", "ls-files", "-co", "--exclude-standard"], cwd=ROOT, capture_output=True, text=True, check=True).stdout.split()
    assert made
    for name in made:
        path = ROOT / name
        if path.suffix in (".py", ".md", ".yaml", ".toml", ".txt", ".jinja") or path.name in ("Makefile", "run"):
            assert str(ROOT) + "/" not in path.read_text(encoding="utf-8"), name
