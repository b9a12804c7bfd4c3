"""What a reply must be like, as a grammar (EBNF) that every engine understands: JSON of a schema, a regular expression, one of some strings, a tool call, or one that is given in EBNF.

JSON is written without blanks between its parts: a small model that may write blanks writes nothing else. What would take seconds to make ready is refused: everybody would wait.
"""

from __future__ import annotations

import functools
import json
import math
import re

import xgrammar

LONGEST, DEEPEST = 32768, 64           # characters of what describes a reply, and brackets within brackets in it
PLAIN, UNROLLED = 20000, 10000         # characters of a grammar, and copies that its repetitions make, up to which the fast engine's reader is quick


@functools.lru_cache(maxsize=64)
def ebnf(kind: str, text: str) -> str:
    """Of a `Sampling.grammar`. Raises: ValueError, in words for clients, where it is none. Kept, for it is asked to refuse, to choose an engine, and by that."""
    if len(text) > LONGEST or _depth(text) > DEEPEST:
        raise ValueError(f"structured output: at most {LONGEST} characters, and {DEEPEST} levels of brackets")
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


def is_plain(grammar: str) -> bool:
    """Whether the fast engine's reader, which is an older one, knows all that stands in a grammar and makes it ready in no time: it has no calls such as Regex(…), and writes every repetition out."""
    bare = re.sub(r'"(?:\\.|[^"\\])*"|\[(?:\\.|[^\]\\])*\]', "", grammar)
    copies = math.prod(max(1, int(most or least)) for least, most in re.findall(r"\{(\d+),? ?(\d*)\}", bare))
    return len(grammar) <= PLAIN and copies <= UNROLLED and not re.search(r"\w\(", bare)


def _depth(text: str) -> int:
    deepest = now = 0
    for sign in text:
        now += (sign in "([{") - (sign in ")]}")
        deepest = max(deepest, now)
    return deepest


def _call(one: dict) -> xgrammar.Grammar:
    begin, end = (xgrammar.Grammar.from_regex(either([one[part]])) for part in ("begin", "end"))
    return xgrammar.Grammar.concat(begin, xgrammar.Grammar.from_json_schema(json.dumps(one["schema"]), any_whitespace=False), end)


def either(choices: list[str]) -> str:
    """A regular expression of these very strings."""
    return "|".join("".join(f"\\{char}" if char in r"\.+*?()|[]{}^$-/" else char for char in choice) for choice in choices)
