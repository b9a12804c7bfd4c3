"""One frozen base, held once, and many adapters on it: policy, reference, reward models, value model.

Weights alone, four copies of an 8B model are 64 GB in bf16; one base with its adapters is 17.8 GB. An adapter is made active under
try/finally, so that an error in between leaves no other one behind. A reward or value adapter has a head over the hidden state.
"""

from __future__ import annotations

import contextlib
from collections.abc import Callable, Iterator
from pathlib import Path

import torch
from peft import LoraConfig, PeftModel
from safetensors.torch import load_file, save_file

from training.lora import adding
from training.models import load_base, put_adapter
from training.trees import Tree, collate, in_batches

HEAD = "head.safetensors"
BATCH_TOKENS = 8192        # tokens of one forward pass without gradients, padding included


class Head(torch.nn.Module):
    """What a reward or value adapter says of a place: a linear function of its hidden state, and for a reply how likely its tokens are.

    A reply's score is that function at its end, plus `likelihood` times the mean and `least` times the least log-prob that the adapter itself gives the
    reply's tokens (both learned). The linear part alone must find by its own layers that a number was miscopied or a concern mistaken; the language
    model inside knows it already, often by one token: in the mean of a long call that one is lost.
    """

    def __init__(self, hidden_size: int):
        super().__init__()
        self.linear = torch.nn.Linear(hidden_size, 1)
        self.likelihood = torch.nn.Parameter(torch.ones(()))
        self.least = torch.nn.Parameter(torch.full((), 0.5))
        torch.nn.init.zeros_(self.linear.weight)
        torch.nn.init.zeros_(self.linear.bias)

    def forward(self, at_end: torch.Tensor, log_probs: torch.Tensor, of: torch.Tensor) -> torch.Tensor:
        """Scores (L,) from the hidden states at the replies' ends (L, H), their tokens' log-probs (N,), and which reply each token is of (N,)."""
        zeros = log_probs.new_zeros(len(at_end))
        mean = zeros.index_add(0, of, log_probs) / zeros.index_add(0, of, torch.ones_like(log_probs)).clamp_min(1)
        least = zeros.scatter_reduce(0, of, log_probs, "amin")
        return self.linear(at_end.float())[:, 0] + self.likelihood * mean + self.least * least


def index(trees: list[Tree], replies: list[list[list[int]]], device: torch.device | str = "cpu") -> dict[str, torch.Tensor]:
    """Where replies stand in a batch of trees, each given by the places of its tokens: `ends` (L, 2) as row and place of the last one;
    `said` (N, 4), for each token its row, its parent's place, its id, and the number of its reply."""
    ends, said = [], []
    for row, (tree, mine) in enumerate(zip(trees, replies, strict=True)):
        for places in mine:
            said += [(row, tree.parents[place], tree.ids[place], len(ends)) for place in places]
            ends.append((row, places[-1]))
    return {"ends": torch.tensor(ends, device=device).reshape(-1, 2), "said": torch.tensor(said, device=device).reshape(-1, 4)}


def log_probs_of(hidden: torch.Tensor, lm_head: torch.nn.Module, said: torch.Tensor, temperature: float = 1.0) -> tuple[torch.Tensor, torch.Tensor]:
    """(log p, entropy) in nats of the tokens `said`, each (N,), from hidden states (B, T, H): the vocabulary is looked at where they stand alone."""
    log_p = (lm_head(hidden[said[:, 0], said[:, 1]]).float() / temperature).log_softmax(-1)
    return log_p.gather(1, said[:, 2:3])[:, 0], -(log_p.exp() * log_p).sum(-1)


class OneBase:
    """The base and its adapters by name. Nothing has dropout here, and only what `using` makes active takes part.

    `model` is a PeftModel over a causal LM of the Llama shape (a decoder in `.model`, a head over the vocabulary).
    """

    def __init__(self, config, tokenizer):
        self.device = torch.device("cpu" if config.hardware.trainer.use_cpu else "cuda")
        self.base, self.tokenizer = load_base(config).to(self.device).eval().requires_grad_(False), tokenizer
        self.model: PeftModel | None = None
        self.heads: dict[str, Head] = {}

    def add(self, name: str, folder: Path) -> None:
        """Load an adapter, and its head where it has one. Raises: StageError where it was made for another base."""
        self.model = adding(put_adapter(self.model or self.base, name, folder, lora_dropout=0.0)).eval()
        if (folder / HEAD).is_file():
            self.heads[name] = Head(self.base.config.hidden_size).to(self.device)
            self.heads[name].load_state_dict(load_file(folder / HEAD))

    def parameters(self, name: str) -> list[torch.nn.Parameter]:
        """An adapter's trainable weights, its head's among them."""
        own = [parameter for key, parameter in self.model.named_parameters() if f".{name}." in key]
        return own + (list(self.heads[name].parameters()) if name in self.heads else [])

    def weights(self, name: str) -> list[torch.Tensor]:
        """A copy of an adapter's weights as they are now."""
        return [parameter.detach().clone() for parameter in self.parameters(name)]

    @torch.no_grad()
    def put(self, name: str, weights: list[torch.Tensor]) -> None:
        for parameter, weight in zip(self.parameters(name), weights, strict=True):
            parameter.copy_(weight)

    @contextlib.contextmanager
    def having(self, name: str, weights: list[torch.Tensor]) -> Iterator[None]:
        """An adapter with other weights, until the block ends."""
        own = self.weights(name)
        self.put(name, weights)
        try:
            yield
        finally:
            self.put(name, own)

    def save(self, name: str, folder: Path) -> None:
        """Write an adapter as PEFT does (readable by PEFT and vLLM), and its head beside it."""
        weights = {key.replace(f".{name}.", "."): parameter.detach().cpu().contiguous() for key, parameter in self.model.named_parameters() if f".{name}." in key}
        folder.mkdir(parents=True, exist_ok=True)
        save_file(weights, folder / "adapter_model.safetensors", metadata={"format": "pt"})
        lora = LoraConfig(**{**self.model.peft_config[name].to_dict(), "inference_mode": True})
        lora.save_pretrained(folder)
        if name in self.heads:
            save_file({key: value.cpu() for key, value in self.heads[name].state_dict().items()}, folder / HEAD)

    @contextlib.contextmanager
    def using(self, name: str) -> Iterator[None]:
        """This adapter and no other, until the block ends, whatever happens in it."""
        before = self.model.active_adapter
        self.model.set_adapter(name)
        try:
            yield
        finally:
            self.model.set_adapter(before)

    def hidden(self, trees: list[Tree]) -> torch.Tensor:
        """Last hidden states (B, T, H) of a batch of trees under the active adapter."""
        return self.model.get_base_model().model(**collate(trees, self.tokenizer.pad_token_id, self.device), use_cache=False).last_hidden_state

    def log_probs(self, trees: list[Tree], replies: list[list[list[int]]], temperature: float = 1.0) -> tuple[torch.Tensor, torch.Tensor]:
        """(log p, entropy) of the replies' tokens under the active adapter, as it draws at a temperature; each flat, in nats."""
        return log_probs_of(self.hidden(trees), self.model.get_base_model().lm_head, index(trees, replies, self.device)["said"], temperature)

    def values(self, trees: list[Tree], replies: list[list[list[int]]]) -> torch.Tensor:
        """The estimate of the value adapter, which must be the active one, before each token of the replies, flat."""
        said = index(trees, replies, self.device)["said"]
        return self.heads["value"].linear(self.hidden(trees)[said[:, 0], said[:, 1]].float())[:, 0]

    @torch.no_grad()
    def _in_batches(self, name: str, trees: list[Tree], replies: list[list[list[int]]], of: Callable, numbers: Callable[[list[list[int]]], int], max_tokens: int) -> list[torch.Tensor]:
        """`of` (trees, replies) → flat, under an adapter, in batches; split into one tensor a tree, each with `numbers` (its replies), float32 on the CPU."""
        found: list[torch.Tensor] = [torch.empty(0)] * len(trees)
        with self.using(name):
            for batch in in_batches(trees, max_tokens):
                made = of([trees[i] for i in batch], [replies[i] for i in batch]).float().cpu()
                for i, mine in zip(batch, made.split([numbers(replies[i]) for i in batch]), strict=True):
                    found[i] = mine
        return found

    def by_token(self, name: str, trees: list[Tree], replies: list[list[list[int]]], of: Callable, max_tokens: int = BATCH_TOKENS) -> list[torch.Tensor]:
        """What `of` (trees, replies) says of each token of the replies, flat, under an adapter: one tensor a tree."""
        return self._in_batches(name, trees, replies, of, lambda mine: sum(map(len, mine)), max_tokens)

    def log_likelihoods(self, name: str, trees: list[Tree], replies: list[list[list[int]]]) -> list[torch.Tensor]:
        """log p of each reply of each tree under an adapter, in nats."""
        every = self.by_token(name, trees, replies, lambda t, r: self.log_probs(t, r)[0])
        return [torch.stack([each.sum() for each in tokens.split([len(places) for places in mine])]) for tokens, mine in zip(every, replies, strict=True)]

    def scores(self, name: str, trees: list[Tree], replies: list[list[list[int]]]) -> list[torch.Tensor]:
        """A reward adapter's score of each reply of each tree; a reply is given by the places of its tokens."""
        def scored(some: list[Tree], mine: list[list[list[int]]]) -> torch.Tensor:
            hidden, at = self.hidden(some), index(some, mine, self.device)
            log_probs, _ = log_probs_of(hidden, self.model.get_base_model().lm_head, at["said"])
            return self.heads[name](hidden[at["ends"][:, 0], at["ends"][:, 1]], log_probs, at["said"][:, 3])

        return self._in_batches(name, trees, replies, scored, len, BATCH_TOKENS)
