"""What a reply must be like, as a grammar (EBNF) that every engine understands: JSON of a schema, a regular expression, one of some strings, a tool call, or one that is given in EBNF.

JSON is written without blanks between its parts: a small model that may write blanks writes nothing else.
"""

from __future__ import annotations

import json
import re

import xgrammar


def ebnf(kind: str, text: str) -> str:
    """Of a `Sampling.grammar`. Raises: ValueError, in words for clients, where it is none."""
    try:
        if kind == "json":
            made = xgrammar.Grammar.from_json_schema(text, any_whitespace=False)
        elif kind == "calls":
            made = xgrammar.Grammar.union(*(_call(one) for one in json.loads(text)))
        elif kind in ("grammar", "structural_tag"):
            made = xgrammar.Grammar.from_ebnf(text) if kind == "grammar" else xgrammar.Grammar.from_structural_tag(text)
        else:
            made = xgrammar.Grammar.from_regex(text if kind == "regex" else either(json.loads(text)))
    except (RuntimeError, ValueError) as error:
        raise ValueError(f"structured output: no {kind} that can be followed") from error
    return re.sub(r"(?<=[\w)\]])\{(\d+), ?-1\}", r"{\1,}", str(made))            # "so many or more", as the xgrammar within OpenVINO reads it


def _call(one: dict) -> xgrammar.Grammar:
    begin, end = (xgrammar.Grammar.from_regex(either([one[part]])) for part in ("begin", "end"))
    return xgrammar.Grammar.concat(begin, xgrammar.Grammar.from_json_schema(json.dumps(one["schema"]), any_whitespace=False), end)


def either(choices: list[str]) -> str:
    """A regular expression of these very strings."""
    return "|".join("".join(f"\\{char}" if char in r"\.+*?()|[]{}^$-/" else char for char in choice) for choice in choices)
