"""E-mail addresses as people say and disguise them: "anna dot berg at gmail dot com", "anna [at] post.se", "a n n a @ g m x . d e"."""

from __future__ import annotations

import functools
import re
from collections.abc import Callable

from data_prep.pii.announce import data

try:
    import re2
except ImportError:         # slower, with the same matches
    re2 = None


@functools.cache
def _at_words() -> tuple[str, ...]:
    words = data("announce.yaml")["at"]
    return ("@", "(at)", "[at]", "{at}", "<at>", "_at_", "(a)", "[a]", " at ", " chez ", " bei ", " bij ", *(word for word in words if word != "at"))


def may_say_mail(seen: str) -> bool:
    """Without one of these words no address is being spelled out."""
    return _any_of(_at_words())(seen)


@functools.cache
def _any_of(words: tuple[str, ...]) -> Callable[[str], bool]:
    """Whether one of these words occurs in a text, in any case: by RE2 in one pass over its bytes, else word by word."""
    if re2 is None:
        return lambda seen: any(word in seen.lower() for word in words)
    options = re2.Options()
    options.log_errors = False
    pattern = re2.compile("|".join(map(re2.escape, words)).encode(), options)
    return lambda seen: pattern.search(seen.lower().encode("utf-8", "replace")) is not None


@functools.cache
def said_mail() -> re.Pattern:
    """An e-mail address as it is spoken or disguised: "anna dot berg at gmail dot com", "anna [at] post.se", "a n n a @ g m x . d e"."""
    words = data("announce.yaml")
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
def _providers() -> tuple[str, ...]:
    return tuple(f" {word}" for word in data("announce.yaml")["providers"])


def has_provider(seen: str) -> bool:
    return _any_of(_providers())(seen)


@functools.cache
def bare_provider() -> re.Pattern:
    """"anna.berg gmail": a name that cannot be a word, and a provider's, where a mail address is asked for or announced."""
    words = data("announce.yaml")
    return re.compile(rf"(?<![\w.+-])(?=[\w+-]{{0,40}}[._+\d])[\w.+-]{{2,64}} (?:{'|'.join(words['providers'])})(?!\w)", re.IGNORECASE)
