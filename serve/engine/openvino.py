"""The fast engine for CPUs: OpenVINO GenAI's continuous batching, with paged attention and prefixes that are read once.

`convert` makes of a Hugging Face folder what it reads, from the model itself: any decoder of transformers whose attention is `sdpa` and whose cache is
plain keys and values.
"""

from __future__ import annotations

import contextlib
import json
import shutil
from collections.abc import Iterator
from pathlib import Path

import numpy as np
import openvino as ov
import openvino_genai as genai
import torch
from openvino import opset13 as op
from openvino._offline_transformations import apply_make_stateful_transformation
from transformers import AutoModelForCausalLM, AutoTokenizer, DynamicCache
from transformers.cache_utils import DynamicLayer

from serve.engine import Job, Sampling, Step
from serve.engine.exact import ends_of
from serve.engine.grammar import ebnf

CONVERTED = "openvino"                 # folder beside the model's own files
FULL = {"INFERENCE_PRECISION_HINT": "f32", "KV_CACHE_PRECISION": "f32"}          # as transformers reckons on a CPU: greedy tokens are the same
BATCH = 128                            # tokens of a step: a first token then waits for one prompt, and not for all that came at once


class _Plain(torch.nn.Module):
    """The model with its cache as plain arguments and results: what can be traced."""

    def __init__(self, model):
        super().__init__()
        self.model = model

    def forward(self, input_ids, attention_mask, position_ids, *past):
        cache = DynamicCache(config=self.model.config)
        cache.layers = []
        for keys, values in zip(past[::2], past[1::2], strict=True):
            layer = DynamicLayer()
            layer.keys, layer.values, layer.dtype, layer.device, layer.is_initialized = keys, values, keys.dtype, keys.device, True
            cache.layers.append(layer)
        length, new = attention_mask.shape[1], input_ids.shape[1]
        before = torch.arange(length)[None, :] <= torch.arange(length - new, length)[:, None]
        mask = torch.where(before[None, None] & (attention_mask[:, None, None, :] > 0), 0.0, torch.finfo(torch.float32).min)
        made = self.model(input_ids=input_ids, attention_mask=mask, position_ids=position_ids, past_key_values=cache, use_cache=True)
        return (made.logits, *(part for layer in made.past_key_values.layers for part in (layer.keys, layer.values)))


@contextlib.contextmanager
def _keeping_16_bits(model) -> Iterator[None]:
    """While it is traced: weights of 16 bits as constants of the graph, everything between them in fp32. What openvino offers for this, and optimum-intel uses, alters torch too until it is told."""
    if model.dtype == torch.float32:
        yield
        return
    from openvino.frontend.pytorch import patch_model

    name = "_forward_of_32_bits"
    patch_model.__make_16bit_traceable(model, name)
    try:
        yield
    finally:
        patch_model.unpatch_model(model, name)


@torch.no_grad()
def convert(folder: str | Path, out: str | Path) -> None:
    """Write a model for OpenVINO: inputs input_ids, attention_mask, position_ids, beam_idx; output logits; keys and values as state.

    Weights stay as they are stored: those of 16 bits are read as such and reckoned with in fp32, which is what transformers makes of them in fp32, in half the memory and, one reply at a
    time, faster. The shape of what it makes is the one that optimum-intel exports and `SDPAToPagedAttention` looks for.
    """
    folder, out = Path(folder), Path(out)
    partial = out.with_name(out.name + ".partial")
    shutil.rmtree(partial, ignore_errors=True)
    partial.mkdir(parents=True)
    model = AutoModelForCausalLM.from_pretrained(str(folder), trust_remote_code=False, use_safetensors=True, dtype="auto", attn_implementation="sdpa").eval()
    layers, heads, size = model.config.num_hidden_layers, model.config.num_key_value_heads, getattr(model.config, "head_dim", None) or model.config.hidden_size // model.config.num_attention_heads
    inputs = ["input_ids", "attention_mask", "position_ids", *(f"past_key_values.{i}.{part}" for i in range(layers) for part in ("key", "value"))]
    outputs = ["logits", *(f"present.{i}.{part}" for i in range(layers) for part in ("key", "value"))]
    example = (torch.ones(2, 4, dtype=torch.long), torch.ones(2, 7, dtype=torch.long), torch.arange(3, 7)[None].repeat(2, 1), *(torch.zeros(2, heads, 3, size) for _ in range(2 * layers)))
    with _keeping_16_bits(model):
        made = ov.convert_model(_Plain(model), example_input=example)
    for place, (port, name) in enumerate(zip(made.inputs, inputs, strict=True)):
        port.get_tensor().set_names({name})
        port.get_node().set_partial_shape(ov.PartialShape([-1, -1] if place < 3 else [-1, heads, -1, size]))
    for port, name in zip(made.outputs, outputs, strict=True):
        port.get_tensor().set_names({name})
    made.validate_nodes_and_infer_types()
    _as_state(made, inputs[3:], outputs[1:], heads, size)
    ov.save_model(made, partial / "openvino_model.xml", compress_to_fp16=False)
    (partial / "openvino_config.json").write_text(json.dumps({"eos_token_ids": ends_of(model.generation_config)}), encoding="utf-8")
    from openvino_tokenizers import convert_tokenizer  # it registers itself with openvino, which takes a second

    for part, name in zip(convert_tokenizer(AutoTokenizer.from_pretrained(str(folder), trust_remote_code=False), with_detokenizer=True), ("openvino_tokenizer.xml", "openvino_detokenizer.xml"), strict=True):
        ov.save_model(part, partial / name)
    for name in ("config.json", "generation_config.json"):
        if (folder / name).is_file():
            shutil.copy(folder / name, partial / name)
    shutil.rmtree(out, ignore_errors=True)
    partial.rename(out)


def _as_state(made: ov.Model, past: list[str], present: list[str], heads: int, size: int) -> None:
    """Keys and values that are inputs and outputs become the model's state, empty at first, in the order of `beam_idx`."""
    order = op.parameter([-1], ov.Type.i32, name="beam_idx")
    order.output(0).get_tensor().add_names({"beam_idx"})
    made.add_parameters([order])
    for port in made.inputs:
        if port.get_any_name() in past:
            users, ordered = port.get_target_inputs(), op.gather(port, order, op.constant(0))
            for user in users:
                user.replace_source_output(ordered.output(0))
    made.validate_nodes_and_infer_types()
    apply_make_stateful_transformation(made, dict(zip(past, present, strict=True)))
    ids = next(port for port in made.inputs if "input_ids" in port.get_names())
    rows = op.gather(op.shape_of(ids.get_node(), output_type="i64"), op.constant([0]), op.constant(0))
    empty = op.concat([rows, op.constant(np.array([heads, 0, size], dtype=np.int64))], axis=0)
    for node in made.get_ops():
        if node.get_type_name() == "ReadValue":
            node.set_arguments([op.broadcast(op.constant(0.0, dtype=node.get_output_element_type(0)), empty)])
    made.validate_nodes_and_infer_types()


class OpenVino:
    """folder: what `convert` wrote. slots: replies that are made at once. cache: GB of keys and values; where they are more, replies wait for one another."""

    def __init__(self, folder: str | Path, slots: int, threads: int, cache: int = 1):
        scheduler = genai.SchedulerConfig()
        scheduler.max_num_seqs, scheduler.max_num_batched_tokens, scheduler.dynamic_split_fuse, scheduler.enable_prefix_caching = slots, max(BATCH, slots), True, True
        scheduler.cache_size = cache
        self.pipeline = genai.ContinuousBatchingPipeline(str(folder), scheduler, "CPU", {**FULL, **({"INFERENCE_NUM_THREADS": threads} if threads else {})})
        self.ends = json.loads((Path(folder) / "openvino_config.json").read_text(encoding="utf-8"))["eos_token_ids"]
        self.handles, self.number, self.begun, self.unwanted = {}, 0, set(), {}

    def add(self, job: Job) -> None:
        try:
            handle = self.pipeline.add_request(self.number, ov.Tensor(np.array([job.prompt], dtype=np.int64)), self._config(job.sampling))
        except RuntimeError as error:
            raise ValueError("the engine refuses these sampling values") from error
        self.handles[job.id], self.number = handle, self.number + 1

    def _config(self, sampling: Sampling) -> genai.GenerationConfig:
        made = genai.GenerationConfig()
        made.max_new_tokens, made.min_new_tokens, made.ignore_eos = sampling.max_tokens, sampling.min_tokens, sampling.ignore_eos
        made.eos_token_id = self.ends[0] if self.ends else -1
        made.stop_token_ids = {*sampling.stop_token_ids, *(() if sampling.ignore_eos else self.ends)}
        made.repetition_penalty, made.presence_penalty, made.frequency_penalty = sampling.repetition_penalty, sampling.presence_penalty, sampling.frequency_penalty
        made.do_sample = sampling.temperature > 0
        if made.do_sample:
            made.temperature, made.top_p, made.min_p = sampling.temperature, sampling.top_p, sampling.min_p
            if sampling.top_k:
                made.top_k = sampling.top_k
            made.rng_seed = int.from_bytes(np.random.bytes(4), "little") if sampling.seed is None else sampling.seed % 2 ** 32
        if sampling.grammar:
            made.structured_output_config = genai.StructuredOutputConfig(grammar=ebnf(*sampling.grammar))
        return made

    def cancel(self, job_id: str) -> None:
        """At once where something has been made. A prompt that is half read is read to its end first: what is cancelled before leaves cached blocks that were never filled, and who begins
        with the same words would read them."""
        if handle := self.handles.pop(job_id, None):
            if job_id in self.begun:
                self.begun.discard(job_id)
                handle.cancel()
            else:
                self.unwanted[job_id] = handle

    def busy(self) -> bool:
        return self.pipeline.has_non_finished_requests()

    def step(self) -> dict[str, Step]:
        self.pipeline.step()
        for job_id, handle in list(self.unwanted.items()):
            if handle.can_read() or handle.get_status() != genai.GenerationStatus.RUNNING:
                self.unwanted.pop(job_id).cancel()
        made = {}
        for job_id, handle in list(self.handles.items()):
            tokens, finish = [], None
            while handle.can_read():
                for output in handle.read().values():
                    tokens += output.generated_ids
                    finish = {genai.GenerationFinishReason.STOP: "stop", genai.GenerationFinishReason.LENGTH: "length"}.get(output.finish_reason)
            if handle.get_status() not in (genai.GenerationStatus.RUNNING, genai.GenerationStatus.FINISHED):
                finish = "error"
            if tokens:
                self.begun.add(job_id)
            if finish:
                self.handles.pop(job_id)
                self.begun.discard(job_id)
            if tokens or finish:
                made[job_id] = Step(tuple(tokens), finish=finish)
        return made
