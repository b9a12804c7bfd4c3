"""A company pack: the folder of policies, tools, scenarios and phrases that stands for one company.

    company=<folder>      pack.yaml tools.yaml scenarios.yaml agents.yaml raters.yaml phrases/*.yaml unseen/*.yaml

The pack is data. Its conditions (`requires`, `allowed`, `success`) are small expressions over the world, evaluated
by simpleeval: no code of a pack is ever run.
"""

from __future__ import annotations

import ast
import functools
import random
import re
from dataclasses import dataclass
from pathlib import Path

import yaml
from simpleeval import SimpleEval

LIBYAML = getattr(yaml, "CSafeLoader", yaml.SafeLoader)
NAMES = {"order", "account", "policy", "arguments", "handoff", "customer", "case"}


class PackError(ValueError):
    """A company pack that contradicts itself: which file, what, what to do."""


@dataclass(frozen=True)
class Pack:
    folder: Path
    company: dict                 # pack.yaml
    tools: dict[str, dict]        # by name
    scenarios: list[dict]         # steps parsed into (verb, object) pairs
    agents: list[dict]
    raters: list[dict]
    phrases: dict[str, dict]      # by language: the wordings of training
    unseen: dict[str, dict]       # by language: the wordings of evaluation

    @property
    def languages(self) -> dict[str, float]:
        return self.company["languages"]

    def slots(self) -> list[str]:
        """The things an agent may have to ask for, in the order the scenarios first ask for them."""
        asked = [thing for scenario in self.scenarios for verb, thing in scenario["steps"] if verb == "ask"]
        return list(dict.fromkeys(asked))

    def errands(self) -> list[str]:
        """The ordinary intents: those in which an agent asks for something. A customer may drop one for another."""
        return sorted({scenario["intent"] for scenario in self.scenarios if any(verb == "ask" for verb, _ in scenario["steps"])})

    def asked_for(self, intent: str) -> set[str]:
        """The tools that some scenario of an intent calls, rightly or (by a bad habit) wrongly: what a customer who wants that may be taken to have asked for."""
        return {thing for scenario in self.scenarios if scenario["intent"] == intent for verb, thing in steps_of(scenario) if verb == "call"}

    def claims(self) -> dict[str, list[str]]:
        """By path (`policy.return_days`) the expressions that find where a reply says what holds, of all languages: one of an expression's groups is the number."""
        found: dict[str, list[str]] = {}
        for phrases in self.phrases.values():
            for path, pattern in phrases.get("claims", {}).items():
                found.setdefault(path, []).append(pattern)
        return found

    def files(self) -> list[Path]:
        return sorted(self.folder.rglob("*.yaml"))

    def tool_schemas(self) -> list[dict]:
        """The tools as OpenAI function schemas."""
        return [{"type": "function", "function": {
            "name": tool["name"], "description": tool["description"],
            "parameters": {"type": "object", "required": sorted(tool["parameters"]),
                           "properties": {key: {"type": kind} for key, kind in tool["parameters"].items()}}}}
                for tool in self.tools.values()]


def public_words(pack: Pack) -> list[str]:
    """The company's own names, those of its merchants and products: no person, whatever they sound like."""
    listed = [pack.company.get(key, []) for key in ("merchants", "products", "public_names")]
    return [str(pack.company.get("name", "")), *(name for each in listed for names in (each.values() if isinstance(each, dict) else [each]) for name in names)]


@functools.lru_cache(maxsize=4)
def load_pack(folder: str | Path) -> Pack:
    """Read and check a company pack.

    Raises: PackError with the file, what is wrong and what to do.
    """
    folder = Path(folder)
    if not (folder / "pack.yaml").is_file():
        raise PackError(f"{folder} is no company pack: it has no pack.yaml. Copy data_prep/company/sample and change it")
    company = _read(folder / "pack.yaml")
    pack = Pack(
        folder=folder, company=company,
        tools={tool["name"]: {"requires": {}, "allowed": None, "effects": {}, "returns": {}, "anytime": tool["name"] == "transfer_to_human", **tool} for tool in _read(folder / "tools.yaml")},
        scenarios=[_scenario(raw) for raw in _read(folder / "scenarios.yaml")],
        agents=_read(folder / "agents.yaml"), raters=_read(folder / "raters.yaml"),
        phrases={lang: _read(folder / "phrases" / f"{lang}.yaml") for lang in company["languages"]},
        unseen={lang: _read(folder / "unseen" / f"{lang}.yaml") for lang in company["languages"]},
    )
    _check(pack)
    return pack


def _read(path: Path):
    try:
        return yaml.load(path.read_text(encoding="utf-8"), LIBYAML)
    except FileNotFoundError:
        raise PackError(f"{path} is missing from the company pack") from None
    except yaml.YAMLError as error:
        raise PackError(f"{path} is not valid YAML: {str(error).splitlines()[0]}") from None


def _steps(lines: list[str]) -> list[tuple[str, str]]:
    return [line.partition(" ")[::2] for line in lines]


def _scenario(raw: dict) -> dict:
    habits = {habit: {key: _steps(steps) for key, steps in swaps.items()} for habit, swaps in raw.get("habits", {}).items()}
    return {"order": {}, "insists": 0.0, "angry": False, "unseen_weight": raw.get("weight", 1), "weight": 1, "pleased": "False",
            **raw, "steps": _steps(raw["steps"]), "habits": habits}


def steps_of(scenario: dict) -> list[tuple[str, str]]:
    """All steps of a scenario, those of its habits too."""
    return scenario["steps"] + [step for swaps in scenario["habits"].values() for steps in swaps.values() for step in steps]


def _check(pack: Pack) -> None:
    """Refuse a pack whose parts do not fit together, before an hour of training finds out."""
    for scenario in pack.scenarios:
        where = f"{pack.folder}/scenarios.yaml, scenario {scenario['name']!r}"
        for verb, thing in steps_of(scenario):
            if verb == "call" and thing not in pack.tools:
                raise PackError(f"{where} calls the unknown tool {thing!r}; tools.yaml has {sorted(pack.tools)}")
            act = {"ask": f"ask_{thing}", "say": thing, "handoff": f"handoff_{thing}"}.get(verb)
            for lang, phrases in pack.phrases.items():
                if act and act not in phrases["agent"]["kind"]:
                    raise PackError(f"{where} says {act!r}, which {pack.folder}/phrases/{lang}.yaml has no sentence for")
                if scenario["intent"] not in phrases["customer"]["openings"]:
                    raise PackError(f"{where} has the intent {scenario['intent']!r}, for which phrases/{lang}.yaml has no openings")
        _check_expression(scenario["success"], where)
    for tool in pack.tools.values():
        for expression in [*tool["requires"].values(), *([tool["allowed"]] if tool["allowed"] else [])]:
            _check_expression(expression, f"{pack.folder}/tools.yaml, tool {tool['name']!r}")
    if "transfer_to_human" not in pack.tools:
        raise PackError(f"{pack.folder}/tools.yaml lacks `transfer_to_human`: every assistant must be able to hand over to a person")
    if not pack.tools["transfer_to_human"]["anytime"]:
        raise PackError(f"{pack.folder}/tools.yaml: `transfer_to_human` is `anytime: false`: an assistant would be blamed for handing over to a person. Leave `anytime` out there")


def _check_expression(expression: str, where: str) -> None:
    try:
        tree = ast.parse(str(expression), mode="eval")
    except SyntaxError:
        raise PackError(f"{where}: {expression!r} is not an expression") from None
    names = {node.id for node in ast.walk(tree) if isinstance(node, ast.Name)} - {"told", "said", "True", "False"}
    if names - NAMES:
        raise PackError(f"{where}: {expression!r} speaks of {sorted(names - NAMES)}; an expression knows {sorted(NAMES)}")


_parsed: dict[str, ast.AST] = {}


def evaluate(expression: object, names: dict, functions: dict | None = None) -> object:
    """The value of a pack's expression over the world's names. Anything but a string is its own value."""
    if not isinstance(expression, str):
        return expression
    evaluator = SimpleEval(names=names, functions=functions or {})
    if expression not in _parsed:
        _parsed[expression] = evaluator.parse(expression)
    return evaluator.eval(expression, previously_parsed=_parsed[expression])


_choice = re.compile(r"\{([^{}]*)\}")
_placeholder = re.compile(r"<([a-z_]+(?:\.[a-z_]+)?)>")


def say(patterns: list[str] | str, names: dict, rng: random.Random) -> str:
    """One wording out of a phrase list: choices `{a|b|}` drawn from the innermost out, `<name>` filled in."""
    text = patterns if isinstance(patterns, str) else rng.choice(patterns)
    while (match := _choice.search(text)):
        text = text[: match.start()] + rng.choice(match.group(1).split("|")) + text[match.end():]
    text = _placeholder.sub(lambda m: str(_lookup(m.group(1), names)), text)
    text = re.sub(r"\s+([,.!?:])", r"\1", re.sub(r"\s{2,}", " ", text)).strip()
    return text


def _lookup(path: str, names: dict) -> object:
    value: object = names
    for key in path.split("."):
        value = value[key]
    return value
