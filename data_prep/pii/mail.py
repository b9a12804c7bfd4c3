"""E-mail addresses as people say and disguise them: "anna dot berg at gmail dot com", "anna [at] post.se", "a n n a @ g m x . d e"."""

from __future__ import annotations

import functools
import re
from pathlib import Path

import yaml

from data_prep.pii.announce import LOADER


@functools.cache
def may_say_mail() -> re.Pattern:
    """Without one of these words no address is being spelled out."""
    words = yaml.load((Path(__file__).parent / "announce.yaml").read_text(encoding="utf-8"), LOADER)
    return re.compile("|".join(re.escape(word) for word in [" at ", "@", "(at)", "[at]", "{at}", "<at>", "_at_", "(a)", "[a]", " chez ", " bei ", " bij ", *words["at"][1:]]), re.IGNORECASE)


@functools.cache
def said_mail() -> re.Pattern:
    """An e-mail address as it is spoken or disguised: "anna dot berg at gmail dot com", "anna [at] post.se", "a n n a @ g m x . d e"."""
    words = yaml.load((Path(__file__).parent / "announce.yaml").read_text(encoding="utf-8"), LOADER)
    at = "|".join(re.escape(word) for word in words["at"])
    dot = "|".join(re.escape(word) for word in words["dot"])
    provider = "|".join(words["providers"])
    dotted = rf"(?: ?[(\[{{] ?(?:{dot}|\.) ?[)\]}}] ?| (?:{dot}) | \. |\.)"
    local, part = r"[\w+'-]{1,40}", r"[\w-]{1,40}"
    bracketed = rf" ?[(\[{{<] ?(?:{at}|@|a) ?[)\]}}>] ?|_at_"
    clear_at = rf"(?:{bracketed}| ?@ ?| (?:{at.replace('at|', '', 1)}) )"
    letters = r"(?:\w(?: ?[-._] ?| )){3,60}\w"
    return re.compile(
        rf"(?<!\w){local}(?:{dotted}{local}){{0,4}}{clear_at}{part}(?:{dotted}{part}){{1,4}}(?!\w)"
        rf"|(?<!\w){local}(?:{dotted}{local}){{0,4}} (?:at|chez|bei|bij) {part}(?:(?: ?[(\[{{] ?(?:{dot}) ?[)\]}}] ?| (?:{dot}) ){part}){{1,4}}(?!\w)"
        rf"|(?<!\w){local}(?:{dotted}{local}){{0,4}}(?:{clear_at}| at )(?:{provider})(?:{dotted}{part}|[ ,.](?:com|net|org|de|fr|se|nl|pl|es|it|co\.uk)){{0,3}}(?!\w)"
        rf"|(?<!\w){letters} ?(?:@|{at}|{bracketed}) ?(?:{letters}|{part}(?:{dotted}{part}){{1,3}})(?!\w)", re.IGNORECASE)


@functools.cache
def bare_provider() -> re.Pattern:
    """"anna.berg gmail": a name that cannot be a word, and a provider's, where a mail address is asked for or announced."""
    words = yaml.load((Path(__file__).parent / "announce.yaml").read_text(encoding="utf-8"), LOADER)
    return re.compile(rf"(?<![\w.+-])(?=[\w+-]{{0,40}}[._+\d])[\w.+-]{{2,64}} (?:{'|'.join(words['providers'])})(?!\w)", re.IGNORECASE)
