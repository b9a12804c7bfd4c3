"""Dates in a text, and the same dates some weeks earlier or later, in the format in which they were written.

All dates of a conversation move by one number of whole weeks: weekdays and intervals stay true, the day itself does not.
A time to the second beside a date would find the same line in any log: it moves by some minutes as well.
Month names are Babel's (Unicode CLDR), in the conversation's language and in English.
"""

from __future__ import annotations

import datetime
import functools
import re
from collections.abc import Iterator

from data_prep.pii.announce import announced
from data_prep.pii.lexicon import language_of

_iso = r"(?P<iy>(?:19|20)\d\d)-(?P<im>0\d|1[0-2])-(?P<id>[0-2]\d|3[01])"
_numeric = r"(?P<n1>\d{1,2})(?P<sep>[./-])(?P<n2>\d{1,2})(?P=sep)(?P<ny>(?:19|20)\d\d|\d\d)(?!\d)"


@functools.cache
def months(language: str) -> dict[str, tuple[int, dict[int, str]]]:
    """Name in small letters → (month, all names of its kind), in a language and in English."""
    from babel import Locale, UnknownLocaleError

    by_name: dict[str, tuple[int, dict[int, str]]] = {}
    for code in dict.fromkeys(({"no": "nb"}.get(language, language), "en")):
        try:
            names = Locale.parse(code).months
        except (UnknownLocaleError, ValueError):
            continue
        for table in (names[context][width] for context in ("format", "stand-alone") for width in ("wide", "abbreviated")):
            kind = {month: name.strip(".") for month, name in table.items()}
            for month, name in kind.items():
                if len(name) > 2 and name.isalpha():
                    by_name.setdefault(name.casefold(), (month, kind))
    return by_name


_ordinal = r"(?:st|nd|rd|th|er|ème|:e|:a|\.|º|ª)?"
_name = r"[^\W\d_]{3,}"
PATTERNS = (
    re.compile(rf"(?<![\w.,/-])(?:{_iso}|{_numeric})(?!-?[A-SU-Za-z])(?P<at>[T ](?:[01]\d|2[0-3]):[0-5]\d:[0-5]\d(?!\d))?"),
    re.compile(rf"(?<![\w.,/-])(?P<wd>\d{{1,2}}){_ordinal} (?:of |de |d['’])?(?P<wm>{_name})\b\.?(?:(?:,| de| of)? (?P<wy>(?:19|20)\d\d))?"),
    re.compile(rf"(?<!\w)(?P<mm>{_name})\.? (?P<md>\d{{1,2}}){_ordinal}(?!\w)(?:,? (?P<my>(?:19|20)\d\d))?"))


def dates(seen: str, locale: str) -> Iterator[tuple[int, int]]:
    """Where dates stand that a calendar has."""
    for pattern in PATTERNS:
        for match in pattern.finditer(seen):
            if _read(match, locale, 2000) is not None and not (pattern is PATTERNS[0] and announced(seen, match.start())[:1] == ["version"]):
                yield match.span()


def shifted(text: str, weeks: int, locale: str, year: int, seconds: int = 0) -> str | None:
    """The date that `text` writes, `weeks` later, written the same way; None where it is no date.

    year: where the text has none. seconds: by how much a time to the second moves as well.
    """
    match = next((found for pattern in PATTERNS if (found := pattern.fullmatch(text))), None)
    read = match and _read(match, locale, year)
    if read is None:
        return None
    day, parts = read
    at = match["at"] if "at" in match.re.groupindex else None
    moment = datetime.datetime.combine(day, datetime.time.fromisoformat(at[1:]) if at else datetime.time())
    try:
        moment += datetime.timedelta(weeks=weeks, seconds=seconds if at else 0)
    except OverflowError:
        return None
    day = moment.date()
    padded = "id" in parts or any(match.group(name).startswith("0") for name in parts)
    new = {"year": str(day.year), "month": day.month, "day": day.day}
    made = text if at is None else f"{text[:match.start('at')]}{at[0]}{moment:%H:%M:%S}"
    for name, what in sorted(parts.items(), key=lambda item: -match.start(item[0])):
        old = match.group(name)
        value = new[what]
        if what == "month" and not old.isdigit():
            value = months(language_of(locale))[old.casefold()][1][value]
            value = value.upper() if old.isupper() else value.capitalize() if old[0].isupper() else value.lower()
        elif what == "year":
            value = value[-len(old):]
        else:
            value = f"{value:02d}" if padded else str(value)
        made = made[:match.start(name)] + str(value) + made[match.end(name):]
    return made


def _read(match: re.Match, locale: str, year: int) -> tuple[datetime.date, dict[str, str]] | None:
    """(date, group → which part of it it writes)."""
    got = {name: value for name, value in match.groupdict().items() if value}
    if "iy" in got:
        parts = {"iy": "year", "im": "month", "id": "day"}
    elif "n1" in got:
        month_first = (locale.endswith("-US") and int(got["n1"]) <= 12) or int(got["n2"]) > 12
        parts = {"n1": "month", "n2": "day", "ny": "year"} if month_first else {"n1": "day", "n2": "month", "ny": "year"}
    elif "wm" in got:
        parts = {"wd": "day", "wm": "month"} | ({"wy": "year"} if "wy" in got else {})
    else:
        parts = {"mm": "month", "md": "day"} | ({"my": "year"} if "my" in got else {})
    values = {"year": year}
    for name, what in parts.items():
        if got[name].isdigit():
            values[what] = int(got[name])
        elif (known := months(language_of(locale)).get(got[name].casefold())) is None:
            return None
        else:
            values[what] = known[0]
    if values["year"] < 100:
        values["year"] += 2000 if values["year"] < 50 else 1900
    try:
        return datetime.date(values["year"], values["month"], values["day"]), parts
    except ValueError:
        return None
