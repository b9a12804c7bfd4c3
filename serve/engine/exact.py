"""The engine that can do everything and hurries at nothing: transformers, a token of every job in turn, each with a cache of its own.

It makes log probabilities, biased and penalised draws, and whatever the fast engine lacks; where there is no fast one it makes everything. Greedy tokens of
the fast engine are held to these.
"""

from __future__ import annotations

import time
from dataclasses import dataclass, field
from pathlib import Path

import torch
import xgrammar
from transformers import AutoModelForCausalLM, AutoTokenizer, DynamicCache

from serve.engine import Alternatives, Job, Likely, Step, where
from serve.engine.decoding import nucleus
from serve.engine.grammar import ebnf

GRAMMARS = 64_000_000  # bytes of structures that are kept ready
TURN = 0.02           # seconds of a step: the fast engine's jobs wait meanwhile
PIECE, WAIT = 512, 0.5           # tokens of a prompt that are read at once, and seconds: so that nobody waits long for somebody's long prompt


@dataclass
class Row:
    """A job at work. `said`: its tokens so far; `left`: what of the prompt is still unread."""

    job: Job
    left: list[int]
    generator: torch.Generator
    matcher: object | None
    cache: DynamicCache
    said: list[int] = field(default_factory=list)
    read: list[Alternatives | None] = field(default_factory=lambda: [None])


class Exact:
    """folder: a Hugging Face model. adapters: LoRA folders by name, over that very model."""

    def __init__(self, folder: str | Path, adapters: dict[str, str] | None = None):
        self.model = AutoModelForCausalLM.from_pretrained(str(folder), trust_remote_code=False, use_safetensors=True, dtype=torch.float32).eval()
        self.ends = ends_of(self.model.generation_config)
        self.folder, self.rows, self.grammars, self.piece = folder, {}, None, 16
        if adapters:
            from peft import PeftModel  # optional: only adapters need it

            self.places = {name: f"adapter_{place}" for place, name in enumerate(adapters)}          # no module may have a dot in its name
            for name, path in adapters.items():
                if isinstance(self.model, PeftModel):
                    self.model.load_adapter(path, adapter_name=self.places[name])
                else:
                    self.model = PeftModel.from_pretrained(self.model, path, adapter_name=self.places[name])
            self.model.eval()

    def add(self, job: Job) -> None:
        generator = torch.Generator()
        if job.sampling.seed is None:
            generator.seed()
        else:
            generator.manual_seed(job.sampling.seed)
        self.rows[job.id] = Row(job, list(job.prompt), generator, self._matcher(job.sampling.grammar) if job.sampling.grammar else None, DynamicCache(config=self.model.config))

    def cancel(self, job_id: str) -> None:
        self.rows.pop(job_id, None)

    def busy(self) -> bool:
        return bool(self.rows)

    @torch.inference_mode()
    def step(self) -> dict[str, Step]:
        """A token of each job in turn, as many jobs as TURN has room for, and of one at least; the others are first the next time."""
        made, until = {}, time.perf_counter() + TURN
        for place, row in enumerate(list(self.rows.values())):
            if place and time.perf_counter() > until:
                break
            self.rows[row.job.id] = self.rows.pop(row.job.id)          # the last in the line now
            try:
                step = self._one(row)
            except Exception as error:           # of this job's own values; the others go on
                step = Step(finish="error", failed=where(error))
            if step is not None:
                made[row.job.id] = step
                if step.finish:
                    self.cancel(row.job.id)
        return made

    def _one(self, row: Row) -> Step | None:
        sampling, first = row.job.sampling, not row.said
        began, size = time.perf_counter(), self.piece
        piece, row.left = row.left[:size], row.left[size:]
        logits = self._forward(row, piece)
        if first and sampling.prompt_logprobs is not None:
            ahead = [*piece[1:], *row.left[:1]]
            row.read += alternatives(logits[:len(ahead)], ahead, sampling.prompt_logprobs)
        if len(piece) == size:          # as many as a model of this size reads in so long
            self.piece = min(PIECE, 2 * size, max(1, int(size * WAIT / (time.perf_counter() - began))))
        if row.left:
            return None
        raw, token = logits[-1], self._draw(row, logits[-1])
        row.said.append(token)
        row.left = [token]
        is_end = ((token in self.ends and not sampling.ignore_eos) or token in sampling.stop_token_ids) and len(row.said) > sampling.min_tokens
        if row.matcher is not None:
            row.matcher.accept_token(token)
        finish = "stop" if is_end else "length" if len(row.said) >= sampling.max_tokens else None
        return Step((token,), tuple(alternatives(raw[None], [token], sampling.logprobs)) if sampling.logprobs is not None else (), finish, tuple(row.read) if first and sampling.prompt_logprobs is not None else None)

    def _forward(self, row: Row, ids: list[int]) -> torch.Tensor:
        """The logits (tokens, vocabulary) behind each of these tokens."""
        if row.job.adapter is not None:
            self.model.set_adapter(self.places[row.job.adapter])
        return self.model(input_ids=torch.tensor([ids]), past_key_values=row.cache, use_cache=True).logits[0].float()

    def _draw(self, row: Row, logits: torch.Tensor) -> int:
        sampling, logits = row.job.sampling, penalised(logits, row.job.prompt, row.said, row.job.sampling)
        if len(row.said) < sampling.min_tokens:
            logits[[*self.ends, *sampling.stop_token_ids]] = -torch.inf
        if row.matcher is not None:
            xgrammar.apply_token_bitmask_inplace(logits, self._allowed(row.matcher))
        if sampling.temperature == 0:
            return int(logits.argmax())
        return int(torch.multinomial(narrowed(logits / sampling.temperature, sampling), 1, generator=row.generator))

    def _matcher(self, grammar: tuple[str, str]) -> xgrammar.GrammarMatcher:
        """What may come next of a reply that a grammar describes. Raises: ValueError where it is none."""
        if self.grammars is None:
            tokenizer = AutoTokenizer.from_pretrained(str(self.folder), trust_remote_code=False)
            self.grammars = xgrammar.GrammarCompiler(xgrammar.TokenizerInfo.from_huggingface(tokenizer, vocab_size=self.model.config.vocab_size, stop_token_ids=self.ends), cache_limit_bytes=GRAMMARS)
        return xgrammar.GrammarMatcher(self.grammars.compile_grammar(ebnf(*grammar)))

    def _allowed(self, matcher: xgrammar.GrammarMatcher) -> torch.Tensor:
        mask = xgrammar.allocate_token_bitmask(1, self.model.config.vocab_size)
        matcher.fill_next_token_bitmask(mask)
        return mask[0]


def ends_of(generation_config) -> list[int]:
    ids = generation_config.eos_token_id
    return ids if isinstance(ids, list) else [] if ids is None else [ids]


def alternatives(logits: torch.Tensor, tokens: list[int], count: int) -> list[Alternatives]:
    """Of logits (N, V) and N tokens: each token's log probability and those of so many of the likeliest, before any temperature or penalty, as vLLM gives them."""
    logprobs = logits.log_softmax(-1)
    own = logprobs.gather(1, torch.tensor(tokens, dtype=torch.long)[:, None])
    ranks, top = 1 + (logprobs > own).sum(1), logprobs.topk(count)
    firsts = 1 + (top.values[:, None, :] > top.values[:, :, None]).sum(2)          # equals have one rank
    return [{token: Likely(value, rank), **{i: Likely(v, r) for i, v, r in zip(ids, values, places, strict=True)}} for token, value, rank, ids, values, places
            in zip(tokens, own[:, 0].tolist(), ranks.tolist(), top.indices.tolist(), top.values.tolist(), firsts.tolist(), strict=True)]


def penalised(logits: torch.Tensor, prompt: tuple[int, ...], said: list[int], sampling) -> torch.Tensor:
    """Logits (V,) less what repeats: repetition over prompt and reply (arXiv:1909.05858), presence and frequency over the reply (OpenAI's); then the bias."""
    logits = logits.clone()
    if sampling.repetition_penalty != 1:
        seen = torch.tensor(sorted({*prompt, *said}))
        logits[seen] = torch.where(logits[seen] > 0, logits[seen] / sampling.repetition_penalty, logits[seen] * sampling.repetition_penalty)
    if said and (sampling.presence_penalty or sampling.frequency_penalty):
        counts = torch.bincount(torch.tensor(said), minlength=len(logits))
        logits -= sampling.frequency_penalty * counts + sampling.presence_penalty * (counts > 0)
    if sampling.logit_bias:
        tokens, biases = zip(*sampling.logit_bias, strict=True)
        logits[list(tokens)] += torch.tensor(biases)
    return logits


def narrowed(logits: torch.Tensor, sampling) -> torch.Tensor:
    """Probabilities (V,) of the tokens that top_k, min_p (arXiv:2407.01082) and top_p leave, in vLLM's order."""
    if 0 < sampling.top_k < len(logits):
        logits = logits.masked_fill(logits < logits.topk(sampling.top_k).values[-1], -torch.inf)
    p = logits.softmax(-1)
    if sampling.min_p > 0:
        p = p.masked_fill(p < sampling.min_p * p.max(), 0)
    if sampling.top_p < 1:
        p = nucleus(p / p.sum(), sampling.top_p)
    return p / p.sum()
