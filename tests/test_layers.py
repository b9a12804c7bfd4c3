"""Imports run one way, so that a serving image needs no trl and preparation needs no torch."""

from __future__ import annotations

import ast
import importlib.util
from pathlib import Path

import pytest

ROOT = Path(__file__).resolve().parent.parent
MAY_IMPORT = {"conf": set(), "data_prep": {"conf"}, "training": {"conf", "data_prep", "serve"}, "serve": {"conf", "data_prep"}, "eval": {"conf", "data_prep", "training", "serve"}}
FORBIDDEN = {"data_prep": {"torch", "transformers", "trl", "peft"}, "serve": {"trl"}, "conf": {"torch"}}
FILES = [path for package in MAY_IMPORT for path in sorted((ROOT / package).rglob("*.py"))]


def imported(path: Path) -> set[str]:
    names = set()
    for node in ast.walk(ast.parse(path.read_text(encoding="utf-8"))):
        if isinstance(node, ast.Import):
            names |= {alias.name.split(".")[0] for alias in node.names}
        elif isinstance(node, ast.ImportFrom) and node.module:
            names.add(node.module.split(".")[0])
    return names


@pytest.mark.parametrize("path", FILES, ids=lambda p: str(p.relative_to(ROOT)))
def test_imports_run_one_way(path):
    package = path.relative_to(ROOT).parts[0]
    names = imported(path)
    assert not (names & set(MAY_IMPORT)) - MAY_IMPORT[package] - {package}
    assert not names & FORBIDDEN.get(package, set())


def test_training_takes_of_serving_how_replies_are_decoded_and_nothing_else():
    taken = {node.module for path in FILES if path.relative_to(ROOT).parts[0] == "training" for node in ast.walk(ast.parse(path.read_text(encoding="utf-8")))
             if isinstance(node, ast.ImportFrom) and (node.module or "").split(".")[0] == "serve"}
    assert taken == {"serve.engine.decoding"}


def test_the_pipeline_imports_no_stage():
    names = {f"{node.module}" for node in ast.walk(ast.parse((ROOT / "training/pipeline.py").read_text())) if isinstance(node, ast.ImportFrom)}
    from training.pipeline import STAGES

    assert not names & {stage.module for stage in STAGES}


def test_files_stay_small():
    long = {str(p.relative_to(ROOT)): len(p.read_text().splitlines()) for p in FILES if len(p.read_text().splitlines()) > 320}
    assert not long


def test_no_file_of_the_tests_passes_for_a_library():
    """tests/vllm.py did, where pytest had put this folder on the path: TRL found a `vllm` and asked which version it was."""
    assert not [path.stem for path in (ROOT / "tests").glob("*.py") if importlib.util.find_spec(path.stem)]
