"""The name and type of every key of the configuration, and no value: values live in the YAML files beside this one.

A misspelt key or a wrong type is refused by Hydra before anything runs. `trainer` blocks stay open dictionaries: they
are merged over one shared base and judged by TRL's own dataclasses (`tests/test_conf.py` checks every key in them).
"""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import Any

from hydra.core.config_store import ConfigStore
from omegaconf import MISSING


@dataclass
class Data:
    format: str = MISSING                 # one of data_prep.ingest.FORMATS
    root: str | None = MISSING            # a folder, for formats that are folders
    conversations: str | None = MISSING   # a file, for formats that are files
    feedback: str | None = MISSING
    users: str | None = MISSING           # a file of the helpdesk's people, where they are not in the conversations' file
    actions: str | None = MISSING         # a file of what agents did outside the chat
    exclude_customers: str | None = MISSING   # a text file with one customer's id a line
    max_age_days: float | None = MISSING  # conversations that began earlier are left out
    today: str | None = MISSING           # from when age counts; null is now
    columns: dict[str, Any] = MISSING     # of tables: our name of a column → theirs, or null
    roles: dict[str, str] = MISSING       # of tables: their word for who wrote → customer, agent, system, tool, bot, note
    limit: int | None = MISSING           # only the first so many conversations
    max_bad_fraction: float = MISSING     # more unreadable records than this stop the run


@dataclass
class Lora:
    r: int = MISSING
    alpha: int = MISSING
    dropout: float = MISSING
    target_modules: Any = MISSING         # "all-linear" or a list


@dataclass
class Model:
    name: str | None = MISSING            # a local folder or a model id; null where from_scratch
    revision: str | None = MISSING
    from_scratch: bool = MISSING
    architecture: dict[str, Any] = MISSING   # of a model from scratch: Qwen3Config's fields
    vocab_size: int | None = MISSING
    chat_template: str = MISSING          # a Jinja file with {% generation %} markers
    dtype: str = MISSING
    max_tokens: int = MISSING             # of prompt and completion together
    max_new_tokens: int = MISSING


@dataclass
class Hardware:
    launcher: str = MISSING               # put before each training stage, e.g. "accelerate launch"
    threads: int | None = MISSING
    trainer: dict[str, Any] = MISSING
    sft_trainer: dict[str, Any] = MISSING


@dataclass
class Tracking:
    report_to: str = MISSING              # none | wandb
    project: str = MISSING
    mode: str = MISSING                   # W&B's: online | offline


@dataclass
class Generate:
    conversations: int = MISSING
    drafts: float = MISSING               # how many of the messages where colleagues would differ get their drafts


@dataclass
class Anonymise:
    key_file: str | None = MISSING        # else SUPPORTLOOP_KEY; the sample company has a published demo key
    max_leak_fraction: float = MISSING    # more quarantined records than this fail the stage
    fit: str | None = MISSING
    mode: str = MISSING
    scope: str = MISSING
    ner: str | None = MISSING
    workers: int = MISSING
    engine: str = MISSING
    canaries: int = MISSING
    k: int = MISSING
    max_rare: int | None = MISSING
    vault: str | None = MISSING
    signoff: str = MISSING                # required | waived
    max_residual: float = MISSING         # share of conversations that may still hold something, at the upper end of its interval


@dataclass
class Prepare:
    held_out_customers: float = MISSING
    newest: float = MISSING               # the newest share of the archive; only held-out customers' are kept (test)
    near_duplicate: float = MISSING       # Jaccard similarity of 3-word shingles above which a conversation is dropped
    min_gap: float = MISSING              # severity-corrected stars between chosen and rejected
    canaries: int = MISSING               # made-up secrets of each kind, planted into SFT's training rows
    canary_repeats: int = MISSING         # how often each


@dataclass
class Pretrain:
    drills: int = MISSING
    topic_drills: int = MISSING
    call_drills: int = MISSING
    conversations: int = MISSING          # practice conversations drawn from the archive
    swapped: float = MISSING              # of the decisions, how many are put in the place of the real one
    min_reads: float = MISSING            # share of values in unmet conversations below which it warns
    trainer: dict[str, Any] = MISSING


@dataclass
class Sft:
    min_stars: float | None = MISSING
    lora: Lora = field(default_factory=Lora)
    full_parameter: bool = MISSING        # train all weights too, as a candidate beside LoRA
    trainer: dict[str, Any] = MISSING
    full_trainer: dict[str, Any] = MISSING   # what is different there


@dataclass
class RewardGate:
    accuracy: float = MISSING             # of held-out pairs, at the lower end of its interval
    ece: float = MISSING                  # expected calibration error; judged from 2,000 pairs on
    length_correlation: float = MISSING   # of reward and length within a pair, beyond that of the ratings
    state_over_words: float = MISSING     # how much more than a bag of words it knows where only the world's state tells replies apart
    spoiled: float = MISSING              # good replies above themselves spoiled (another turn's, another conversation's, cut short, spliced), at the lower end


@dataclass
class Reward:
    members: int = MISSING
    sources: list[str] = MISSING          # pairs, ratings
    contested: float = MISSING            # share of the conversations, by repeating them
    margin: float = MISSING
    language: float = MISSING             # weight of the loss of writing the good replies, beside that of judging
    centre: float = MISSING
    spread_penalty: float = MISSING
    gate: RewardGate = field(default_factory=RewardGate)
    trainer: dict[str, Any] = MISSING


@dataclass
class Dpo:
    max_chosen_drop: float = MISSING      # nats per reply; a larger fall of chosen log-probs raises the alarm
    max_length_drift: float = MISSING     # times; replies that grew or shrank by more raise the alarm
    pool: int | None = MISSING            # so many others, at random, are looked through for those that SFT gets most wrong; null: all
    max_pairs: int | None = MISSING       # trained on; null: all
    offset: float = MISSING               # times log(1 + gap in stars): how much further apart a pair is kept
    average: float = MISSING              # share of what was trained in the average with SFT that goes out, above 0 up to 1
    trainer: dict[str, Any] = MISSING


@dataclass
class Kto:
    by: list[str] = MISSING               # agent, customer
    good: float = MISSING                 # corrected stars
    bad: float = MISSING
    max_rows: int | None = MISSING
    trainer: dict[str, Any] = MISSING


@dataclass
class Rloo:
    prompts: int = MISSING
    trainer: dict[str, Any] = MISSING


@dataclass
class Ppo:
    start: str = MISSING                  # the stage whose adapter the policy goes on from: sft or dpo
    steps: int = MISSING
    episodes: int = MISSING
    again: float = MISSING                # share of them with customers of the step before, those to whom a reply was the most better than expected
    max_replies: int = MISSING            # assistant messages after which a conversation is given up
    temperature: float = MISSING
    rollout_batch: int = MISSING
    vllm: str | None = MISSING            # the address of a running vLLM
    max_disagreement: float = MISSING
    batch_tokens: int = MISSING
    epochs: int = MISSING
    minibatches: int = MISSING
    learning_rate: float = MISSING
    value_learning_rate: float = MISSING
    warmup: int = MISSING
    final_rate: float = MISSING
    max_grad_norm: float = MISSING
    clip: float = MISSING
    value_clip: float = MISSING
    lam: float = MISSING
    drafts: int = MISSING
    prompt_weight: float = MISSING
    language: float = MISSING
    language_batch: int = MISSING
    turn_discount: float = MISSING
    beta: float = MISSING
    kl_target: float = MISSING            # nats a reply, summed over its tokens
    kl_budget: float = MISSING
    average: float = MISSING              # share of what was trained in the average with the weights it began with, above 0 up to 1
    missing_end_penalty: float = MISSING
    save_steps: int = MISSING


@dataclass
class Evaluate:
    candidates: list[str] = MISSING
    conversations: int = MISSING          # simulated, with unseen wordings, per candidate
    seen_conversations: int = MISSING
    batch_size: int = MISSING
    max_replies: int = MISSING            # assistant messages after which a simulated conversation is given up
    seed: int = MISSING
    every: int = MISSING                  # each so many-eth message of the handoff suite, on the best two candidates
    attacks: int = MISSING                # of each class and language
    persona_conversations: int = MISSING  # of each persona
    trials: int = MISSING                 # of one case, each in other words
    trial_conversations: int = MISSING
    judge: str | None = MISSING           # an LLM judge's address
    judge_model: str = MISSING
    against: str | None = MISSING         # the run that was released last
    margin: float = MISSING               # of the paired comparison with it
    minutes: float = MISSING              # time budget
    gates: dict[str, float] = MISSING     # of the model alone: metric: least value (or most, for harm)
    hard_gates: dict[str, float] = MISSING   # of what is served


@dataclass
class Export:
    force: bool = MISSING
    parity_prompts: int = MISSING
    min_agreement: float = MISSING
    dtype: str = MISSING
    openvino_below: float = MISSING       # thousand million parameters


@dataclass
class Verify:
    conversations: int = MISSING
    persona_conversations: int = MISSING  # of each persona
    every: int = MISSING                  # each so many-eth message of the handoff suite
    attacks: int = MISSING                # of each class and language
    max_difference: float = MISSING       # how far success over HTTP may lie below the evaluated one


@dataclass
class Config:
    run_name: str = MISSING
    run_dir: str = MISSING
    seed: int = MISSING
    stages: list[str] = MISSING
    reuse: str | None = MISSING
    dry_run: bool = MISSING
    company: str | None = MISSING
    endpoint: str | None = MISSING
    endpoint_model: str = MISSING
    trainer: dict[str, Any] = MISSING
    data: Data = field(default_factory=Data)
    model: Model = field(default_factory=Model)
    hardware: Hardware = field(default_factory=Hardware)
    tracking: Tracking = field(default_factory=Tracking)
    generate: Generate = field(default_factory=Generate)
    anonymise: Anonymise = field(default_factory=Anonymise)
    prepare: Prepare = field(default_factory=Prepare)
    pretrain: Pretrain = field(default_factory=Pretrain)
    sft: Sft = field(default_factory=Sft)
    reward: Reward = field(default_factory=Reward)
    dpo: Dpo = field(default_factory=Dpo)
    kto: Kto = field(default_factory=Kto)
    ppo: Ppo = field(default_factory=Ppo)
    rloo: Rloo = field(default_factory=Rloo)
    evaluate: Evaluate = field(default_factory=Evaluate)
    export: Export = field(default_factory=Export)
    verify: Verify = field(default_factory=Verify)
    experiment: str | None = None
    fingerprint: dict[str, Any] | None = None    # filled in by the pipeline for the stage it starts


@dataclass
class Serve:
    model: str = MISSING
    host: str = MISSING
    port: int = MISSING
    served_model_name: str = MISSING
    engine: str = MISSING                 # auto, openvino, transformers, or an address
    upstream_model: str | None = MISSING
    max_tokens: int = MISSING
    slots: int = MISSING
    waiting: int = MISSING
    threads: int | None = MISSING
    guard: bool = MISSING                 # the guard of serve/handoff.py looks at every reply
    api_keys: str | None = MISSING
    requests_per_minute: int = MISSING
    most_bytes: int = MISSING
    drain: float = MISSING                # seconds
    completions: bool = MISSING
    cache: int = MISSING                  # GB
    traces: str | None = MISSING
    adapters: dict[str, str] = MISSING
    base: str | None = MISSING


def register() -> None:
    """Put the schemas where Hydra finds them."""
    store = ConfigStore.instance()
    store.store(name="schema", node=Config)
    store.store(name="serve_schema", node=Serve)
