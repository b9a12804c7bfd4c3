"""Stage `endpoint`: the full suites on any OpenAI-compatible endpoint, so that an assistant somebody already has can be tried in an afternoon.

    make evaluate ARGS="endpoint=http://127.0.0.1:8000/v1 endpoint_model=support company=my-company"

    endpoint/scorecard.json     {"candidates": {"endpoint": {"served": {…}}}}
    endpoint/decision.json      {"passes": true or false, "reasons": […]}
    endpoint/report.html        the same page as the evaluation of a run
    endpoint/suites/            everything that was tried, and what came of it

Nothing is trained and no run is needed. Tools run in the company pack's world, never for real: the endpoint gets their schemas and what they answer. A key is
read from SUPPORTLOOP_ENDPOINT_KEY.
"""

from __future__ import annotations

import json
import os
from concurrent.futures import ThreadPoolExecutor

import openai
from omegaconf import OmegaConf

from data_prep.artifacts import StageError, stage_output
from data_prep.company.pack import Pack, load_pack
from data_prep.conversation import Message, chat_message, write_json, write_jsonl
from data_prep.report import page
from eval import served, suites
from eval.evaluate import gated, refusals
from eval.metrics import AT_MOST, served_row
from serve.engine import Completion, Sampling

UNSEEN = {"reach_alone", "escalation_ece", "needless_handoff"}        # what the model does without its guard, and would have done in its place, and how sure the guard is, no client sees
AT_ONCE = 8           # requests at a time


class OverHttp:
    """An engine that is somewhere else: any OpenAI-compatible endpoint. Raises: StageError where it does not answer."""

    def __init__(self, base_url: str, model: str, tools: list[dict]):
        self.client, self.url, self.model, self.tools = openai.OpenAI(base_url=base_url, api_key=os.environ.get("SUPPORTLOOP_ENDPOINT_KEY", "none"), max_retries=3, timeout=120), base_url, model, tools

    def generate(self, conversations: list[list[Message]], sampling: Sampling) -> list[Completion]:
        with ThreadPoolExecutor(AT_ONCE) as pool:
            return list(pool.map(lambda c: self._one(c, sampling), conversations))

    def _one(self, messages: list[Message], sampling: Sampling) -> Completion:
        try:
            made = self.client.chat.completions.create(model=self.model, messages=[chat_message(m) for m in messages], tools=self.tools, temperature=sampling.temperature, max_tokens=sampling.max_tokens)
        except openai.APIError as error:           # its words may hold what a customer wrote
            status = getattr(error, "status_code", None)
            raise StageError(f"{self.url} did not answer ({type(error).__name__}{f', status {status}' if status else ''}): is it running, is endpoint_model={self.model} its model, "
                             "and does SUPPORTLOOP_ENDPOINT_KEY hold its key?") from None
        choice = made.choices[0]
        calls = "".join(f'<tool_call>{{"name": {json.dumps(c.function.name)}, "arguments": {c.function.arguments}}}</tool_call>' for c in choice.message.tool_calls or [])
        used = made.usage
        return Completion((choice.message.content or "") + calls, choice.finish_reason, used.prompt_tokens if used else 0, used.completion_tokens if used else 0)


def tried(engine: OverHttp, pack: Pack, sizes: suites.Sizes, config, label: str) -> dict[str, list[dict]]:
    """Everything that the suites try, on what is served; the talks are its first trials."""
    records = suites.examine(pack, suites.playing(engine, config, label), None, sizes)
    return records | {"talks": [t for t in records["trials"] if t["trial"] == 0]}


def run(config) -> None:
    if not config.endpoint:
        raise StageError("the stage endpoint needs endpoint=<the address of an OpenAI-compatible endpoint, up to /v1>")
    if not config.company:
        raise StageError("endpoint= needs a company pack, whose customers talk to it: company=<folder>; copy data_prep/company/sample and change it")
    pack = load_pack(config.company)
    gates = {name: value for name, value in OmegaConf.to_container(config.evaluate.hard_gates).items() if name not in UNSEEN}
    with stage_output(config, "endpoint") as out:
        records = tried(OverHttp(config.endpoint, config.endpoint_model, pack.tool_schemas()), pack, suites.sizes_of(config.evaluate), config, "endpoint")
        row = gated({name: metric for name, metric in served_row(records).items() if name not in UNSEEN}, gates, AT_MOST)
        reasons = refusals(row, list(gates))
        for suite, rows in records.items():
            write_jsonl(out / f"suites/{suite}.jsonl", rows)
        write_json(out / "scorecard.json", {"candidates": {"endpoint": {"served": row}}})
        write_json(out / "decision.json", {"passes": not reasons, "reasons": reasons or ["passes every gate"]})
        verdict = "passes every gate" if not reasons else f"does not pass: {', '.join(reasons)}"
        page(out / "report.html", f"Evaluation of {config.endpoint_model}", [f"<p><b>{config.endpoint_model} at {config.endpoint} {verdict}.</b></p>", *served.sections({"endpoint": records}, {"endpoint": {"served": row}}, gates, {}, ours=False)])
        out.summary(f"{config.endpoint_model} {verdict}")
