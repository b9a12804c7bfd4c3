"""The clients that people have: each makes a real call, to a real server with the model of `tests/parrot.py`.

`make test-clients` installs those that are not among this project's own libraries, into an environment of their own, and runs these tests.
"""

from __future__ import annotations

import json
import os
import subprocess
import sys

import openai
import pytest

from data_prep.artifacts import ROOT
from tests.exchanges import FREE, ORDER, RETURN, TOOLS
from tests.serving import served

pytestmark = pytest.mark.slow
SAYS = "You can return items within 28 days. Is there anything else?"


@pytest.fixture(scope="module")
def url(parrot, tmp_path_factory):
    with served(parrot, tmp_path_factory.mktemp("clients"), guard="false", key="sl-test") as ours:
        yield ours


def test_openai(url):
    client = openai.OpenAI(base_url=f"{url}/v1", api_key="sl-test")
    assert client.chat.completions.create(model="supportloop", messages=RETURN, temperature=0).choices[0].message.content == SAYS
    with client.chat.completions.stream(model="supportloop", messages=ORDER, temperature=0, tools=TOOLS) as stream:
        final = stream.get_final_completion()
    assert json.loads(final.choices[0].message.tool_calls[0].function.arguments) == {"order_number": "48213"}
    parsed = client.chat.completions.create(model="supportloop", messages=FREE, temperature=0, extra_body={"structured_outputs": {"choice": ["yes", "no"]}, "min_p": 0.1, "ignore_eos": False})
    assert parsed.choices[0].message.content in ("yes", "no")


@pytest.fixture(scope="module")
def clients():
    """The interpreter that has them."""
    if not (python := ROOT / ".venv-clients/bin/python").exists():
        pytest.skip("make test-clients installs LangChain, LiteLLM, guidellm and schemathesis")
    return python


def run(python, program: str, *arguments) -> str:
    done = subprocess.run([python, "-c", program, *map(str, arguments)], capture_output=True, text=True, timeout=300)
    assert not done.returncode, (done.stdout + done.stderr)[-3000:]
    return done.stdout


def test_langchain(url, clients):
    said = run(clients, """
import json, sys
from langchain_openai import ChatOpenAI
url, returned, order, tools = sys.argv[1], *map(json.loads, sys.argv[2:])
chat = ChatOpenAI(base_url=url + "/v1", api_key="sl-test", model="supportloop", temperature=0)
pairs = lambda messages: [(m["role"], m["content"]) for m in messages]
print(json.dumps([chat.invoke(pairs(returned)).content, "".join(piece.content for piece in chat.stream(pairs(returned))), chat.bind_tools(tools).invoke(pairs(order)).tool_calls[0]["args"]]))
""", url, *map(json.dumps, (RETURN, ORDER, TOOLS)))
    assert json.loads(said) == [SAYS, SAYS, {"order_number": "48213"}]


def test_litellm(url, clients):
    said = run(clients, """
import json, sys, litellm
where = {"model": "hosted_vllm/supportloop", "api_base": sys.argv[1] + "/v1", "api_key": "sl-test", "messages": json.loads(sys.argv[2]), "temperature": 0}
chunks = list(litellm.completion(**where, stream=True, stream_options={"include_usage": True}))
print(json.dumps([litellm.completion(**where).choices[0].message.content, "".join(c.choices[0].delta.content or "" for c in chunks if c.choices)]))
""", url, json.dumps(RETURN))
    assert json.loads(said.splitlines()[-1]) == [SAYS, SAYS]


def test_guidellm(url, clients, parrot, tmp_path):
    out = tmp_path / "report.json"
    done = subprocess.run([clients.with_name("guidellm"), "run", "--backend", f"kind=openai_http,target={url},model=supportloop,api_key=sl-test", "--profile", "kind=concurrent,streams=4", "--constraint", "kind=max_requests,count=12",
                           "--data", "kind=synthetic_text,prompt_tokens=40,output_tokens=16", "--tokenizer", f"kind=hf_auto,model={parrot}", "--output", f"kind=json,path={out}", "--disable-console"], capture_output=True, text=True, timeout=300, env={**os.environ, "HF_HUB_OFFLINE": "1"})
    assert not done.returncode, (done.stdout + done.stderr)[-3000:]
    [benchmark] = json.loads(out.read_text())["benchmarks"]
    assert len(benchmark["requests"]["successful"]) == 12
    assert not benchmark["requests"]["errored"]


def test_vllm_bench(url, parrot, tmp_path):
    if not (vllm := ROOT / ".venv-vllm/bin/vllm").exists():
        pytest.skip("make test-vllm installs vLLM")
    done = subprocess.run([vllm, "bench", "serve", "--backend", "openai-chat", "--endpoint", "/v1/chat/completions", "--base-url", url, "--model", "supportloop", "--tokenizer", parrot, "--dataset-name", "random", "--random-input-len", "40", "--random-output-len", "16",
                           "--num-prompts", "12", "--ignore-eos", "--save-result", "--result-filename", tmp_path / "result.json"], capture_output=True, text=True, timeout=300, env={**os.environ, "OPENAI_API_KEY": "sl-test", "HF_HUB_OFFLINE": "1", "VLLM_NO_USAGE_STATS": "1"})
    assert not done.returncode, (done.stdout + done.stderr)[-3000:]
    result = json.loads((tmp_path / "result.json").read_text())
    assert (result["completed"], result["total_output_tokens"]) == (12, 12 * 16)


def test_whatever_schemathesis_thinks_of_is_answered_and_never_by_a_500(url, clients):
    """Requests made from the OpenAPI description, right and wrong ones. SCHEMATHESIS=<n> asks for so many examples of each kind."""
    done = subprocess.run([clients.with_name("schemathesis"), "run", f"{url}/openapi.json", "-H", "Authorization: Bearer sl-test", "--phases", "fuzzing", "--max-examples", os.environ.get("SCHEMATHESIS", "60"), "--checks", "not_a_server_error", "--request-timeout", "60", "--seed", "1", "--workers", "4"], capture_output=True, text=True, timeout=3000)
    assert not done.returncode, done.stdout[-4000:]
    assert "passed" in done.stdout


def test_lm_eval_with_log_probabilities(url, parrot, tmp_path):
    """Of two continuations the learned one is likelier: `local-completions` asks with echo and logprobs, by token ids."""
    pytest.importorskip("lm_eval", reason="make test-extras installs lm-evaluation-harness")
    (tmp_path / "likelier.yaml").write_text("""task: likelier
custom_dataset: !function docs.rows
test_split: test
output_type: multiple_choice
doc_to_text: "{{text}}"
doc_to_choice: !function docs.choices
doc_to_target: 0
metric_list: [{metric: acc, aggregation: mean, higher_is_better: true}]
""")
    (tmp_path / "docs.py").write_text("""from datasets import Dataset
def choices(doc):
    return [doc["good"], doc["bad"]]
def rows(**_):
    return {"test": Dataset.from_list([{"text": "You can return items", "good": "within 28 days", "bad": "glad train small"}, {"text": "It went by van. It went", "good": "by train", "bad": "Grüße days"}])}
""")
    done = subprocess.run([sys.executable, "-m", "lm_eval", "run", "--model", "local-completions", "--model_args", f"model=supportloop,base_url={url}/v1/completions,tokenizer={parrot}", "--include_path", str(tmp_path), "--tasks", "likelier",
                           "--output_path", str(tmp_path / "out.json")], capture_output=True, text=True, timeout=300, env={**os.environ, "OPENAI_API_KEY": "sl-test"})
    assert not done.returncode, done.stderr[-2000:]
    [found] = tmp_path.glob("out*.json")
    assert json.loads(found.read_text())["results"]["likelier"]["acc,none"] == 1.0
