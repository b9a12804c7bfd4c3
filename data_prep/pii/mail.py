"""E-mail addresses as people say and disguise them: "anna dot berg at gmail dot com", "anna [at] post.se", "a n n a @ g m x . d e"."""

from __future__ import annotations

import functools
import re
from collections.abc import Iterator

from data_prep.pii.announce import data, in_small_letters

BEFORE = 250            # characters of a name in front of the at


@functools.cache
def _at() -> re.Pattern:
    """How the at is said or disguised: "@", "[at]", " chiocciola "; `word` where it is an ordinary word too."""
    words = "|".join(re.escape(word) for word in data("announce.yaml")["at"] if word != "at")
    return re.compile(rf"(?P<clear> ?[(\[{{<] ?(?:at|{words}|@|a) ?[)\]}}>] ?|_at_| (?:{words}) | ?@ ?)|(?P<word> (?:at|chez|bei|bij) )")


@functools.cache
def _sides() -> dict[str, re.Pattern]:
    """What stands in front of an at, and what follows a clear one, one that may be an ordinary word, and one after single letters."""
    dot, provider = "|".join(re.escape(word) for word in data("announce.yaml")["dot"]), "|".join(data("announce.yaml")["providers"])
    said = rf"(?: ?[(\[{{] ?(?:{dot}) ?[)\]}}] ?| (?:{dot}) )"
    dotted = rf"(?:{said}| ?[(\[{{] ?\. ?[)\]}}] ?| \. |\.)"
    dashed = rf"(?: (?:{'|'.join(re.escape(word) for word in data('announce.yaml')['dash'])}) )"
    local, part, letters = r"[\w+'-]{1,40}", rf"[\w-]{{1,40}}(?:{dashed}[\w-]{{1,40}}){{0,2}}", r"(?:\w(?: ?[-._] ?| )){3,60}\w"
    at_provider = rf"(?:{provider})(?:{dotted}{part}|[ ,.](?:com|net|org|de|fr|se|nl|pl|es|it|co\.uk)){{0,3}}(?!\w)"
    clear = rf"{part}(?:{dotted}{part}){{1,4}}(?!\w)|{at_provider}"
    return {side: re.compile(pattern) for side, pattern in {"before": rf"(?<!\w){local}(?:(?:{dotted}|{dashed}){local}){{0,4}}\Z", "letters": rf"(?<!\w){letters}\Z",
                                                             "clear": clear, "word": rf"{part}(?:{said}{part}){{1,4}}(?!\w)|{at_provider}", "after letters": rf"{letters}(?!\w)|{clear}"}.items()}


def said_mails(seen: str) -> Iterator[tuple[int, int]]:
    """An e-mail address as it is spoken or disguised: "anna dot berg at gmail dot com", "anna [at] post.se", "a n n a @ g m x . d e"."""
    small, sides = in_small_letters(seen), _sides()
    for at in _at().finditer(small):
        low = max(0, at.start() - BEFORE)
        for before, after in (("letters", "after letters"), ("before", at.lastgroup)):
            if (behind := sides[after].match(small, at.end())) and (name := sides[before].search(small, low, at.start())):
                yield name.start(), behind.end()
                break


@functools.cache
def _provider() -> re.Pattern:
    return re.compile(rf" (?:{'|'.join(data('announce.yaml')['providers'])})(?!\w)")


_before_provider = re.compile(r"(?<![\w.+-])(?=[\w+-]{0,40}[._+\d])[\w.+-]{2,64}\Z")


def bare_providers(seen: str) -> Iterator[tuple[int, int]]:
    """"anna.berg gmail": a name that cannot be a word, and a provider's, where a mail address is asked for or announced."""
    for provider in _provider().finditer(in_small_letters(seen)):
        if name := _before_provider.search(seen, max(0, provider.start() - 65), provider.start()):
            yield name.start(), provider.end()
