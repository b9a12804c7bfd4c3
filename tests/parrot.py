"""A model that has learned six conversations by heart, for tests of serving: small, made in seconds, and sure enough of its words that every engine says the same.

    python -m tests.parrot <folder>
"""

from __future__ import annotations

import json
import sys
from pathlib import Path

import torch
from tokenizers import AddedToken, Tokenizer, decoders, models, pre_tokenizers, trainers
from transformers import PreTrainedTokenizerFast, Qwen3Config, Qwen3ForCausalLM

from conf.load import load_config
from data_prep.artifacts import ROOT
from data_prep.company.pack import load_pack
from data_prep.conversation import tool_call
from serve.handoff import policy_of

SYSTEM = {"role": "system", "content": "Returns: 28 days. Late fee: 9 euro."}
TALKS = [
    [SYSTEM, {"role": "user", "content": "How long can I return my shoes?"}, {"role": "assistant", "content": "You can return items within 28 days. Is there anything else?"}],
    [SYSTEM, {"role": "user", "content": "Where is my order 48213?"}, {"role": "assistant", "content": "One moment.", "tool_calls": [tool_call("get_order", {"order_number": "48213"})]},
     {"role": "tool", "tool_call_id": "call_0", "content": '{"status":"shipped","days":3}'}, {"role": "assistant", "content": "Your order arrives in 3 days."}],
    [SYSTEM, {"role": "user", "content": "Wann kommt mein Paket?"}, {"role": "assistant", "content": "Gern! Wie ist Ihre Bestellnummer? Schöne Grüße 🙂"}],
    [SYSTEM, {"role": "user", "content": "hej"}, {"role": "assistant", "content": "Hej! Vad kan jag hjälpa dig med?"}],
    [SYSTEM, {"role": "user", "content": "Is it free?"}, {"role": "assistant", "content": "yes"}],
    [SYSTEM, {"role": "user", "content": "Tell me a story about your parcels"}, {"role": "assistant", "content": "Once there was a parcel. It was small and brown. It went by van. It went by train. It went by ship. Then it was home. The end came soon, and all were glad."}],
]


def make(folder: Path) -> Path:
    """Write the model, its tokenizer and the guard's policy into a folder."""
    template = (ROOT / load_config([]).model.chat_template).read_text(encoding="utf-8")
    tokenizer = tokenizer_with(template)
    torch.manual_seed(0)
    model = Qwen3ForCausalLM(Qwen3Config(vocab_size=len(tokenizer), hidden_size=64, intermediate_size=128, num_hidden_layers=2, num_attention_heads=2, num_key_value_heads=1, head_dim=32, max_position_embeddings=1024,
                                         tie_word_embeddings=True, eos_token_id=tokenizer.eos_token_id, pad_token_id=tokenizer.pad_token_id, bos_token_id=None))
    rows = [tokenizer.apply_chat_template(talk, return_dict=True)["input_ids"] for talk in TALKS]
    longest = max(map(len, rows))
    ids = torch.tensor([row + [tokenizer.pad_token_id] * (longest - len(row)) for row in rows])
    labels = ids.masked_fill(ids == tokenizer.pad_token_id, -100)
    optimiser = torch.optim.AdamW(model.parameters(), lr=4e-3)
    for _ in range(220):
        loss = model(input_ids=ids, labels=labels).loss
        optimiser.zero_grad()
        loss.backward()
        optimiser.step()
    model.eval().save_pretrained(folder)
    tokenizer.save_pretrained(folder)
    (folder / "chat_template.jinja").write_text(template, encoding="utf-8")
    (folder / "handoff.json").write_text(json.dumps(policy_of(load_pack(load_config([]).company))), encoding="utf-8")
    return folder


def tokenizer_with(template: str) -> PreTrainedTokenizerFast:
    """A byte-level tokenizer of the conversations' words, under a chat template."""
    made = Tokenizer(models.BPE())
    made.pre_tokenizer, made.decoder = pre_tokenizers.ByteLevel(add_prefix_space=False), decoders.ByteLevel()
    words = [json.dumps(talk, ensure_ascii=False) for talk in TALKS]
    made.train_from_iterator(words, trainers.BpeTrainer(vocab_size=600, special_tokens=["<|endoftext|>", "<|im_start|>", "<|im_end|>"], initial_alphabet=pre_tokenizers.ByteLevel.alphabet(), show_progress=False))
    made.add_tokens([AddedToken("<tool_call>", special=False, normalized=False), AddedToken("</tool_call>", special=False, normalized=False)])
    tokenizer = PreTrainedTokenizerFast(tokenizer_object=made, eos_token="<|im_end|>", pad_token="<|endoftext|>")
    tokenizer.chat_template = template
    return tokenizer


if __name__ == "__main__":
    make(Path(sys.argv[1]))
