"""Dates in a text, and the same dates some weeks earlier or later, in the format in which they were written.

All dates of a conversation move by one number of whole weeks: weekdays and intervals stay true, the day itself does not.
Month names are Babel's (Unicode CLDR), in the languages of `names.yaml`.
"""

from __future__ import annotations

import datetime
import functools
import re
from collections.abc import Iterator

from data_prep.pii.lexicon import phrases

_iso = r"(?P<iy>(?:19|20)\d\d)-(?P<im>0\d|1[0-2])-(?P<id>[0-2]\d|3[01])"
_numeric = r"(?P<n1>\d{1,2})(?P<sep>[./-])(?P<n2>\d{1,2})(?P=sep)(?P<ny>(?:19|20)\d\d|\d\d)(?!\d)"


@functools.cache
def months() -> tuple[dict[str, tuple[str, str, int]], dict[tuple[str, str], dict[int, str]]]:
    """(name in small letters → (language, form, month), (language, form) → month → name)."""
    from babel import Locale

    by_name: dict[str, tuple[str, str, int]] = {}
    tables: dict[tuple[str, str], dict[int, str]] = {}
    for language in sorted(phrases(), key=lambda code: (code != "en", code)):
        names = Locale.parse({"no": "nb"}.get(language, language)).months
        for context in ("format", "stand-alone"):
            for width in ("wide", "abbreviated"):
                table = {month: name.strip(".") for month, name in names[context][width].items()}
                tables[language, f"{context} {width}"] = table
                for month, name in table.items():
                    if any(c.isalpha() for c in name) and len(name) > 2 and not any(c.isdigit() for c in name):
                        by_name.setdefault(name.casefold(), (language, f"{context} {width}", month))
    return by_name, tables


@functools.cache
def pattern() -> re.Pattern:
    names = "|".join(re.escape(name) for name in sorted(months()[0], key=len, reverse=True))
    ordinal = r"(?:st|nd|rd|th|er|ème|:e|:a|\.|º|ª)?"
    worded = rf"(?P<wd>\d{{1,2}}){ordinal} (?:of |de |d['’])?(?P<wm>{names})\b\.?(?:(?:,| de| of)? (?P<wy>(?:19|20)\d\d))?"
    month_first = rf"(?<!\w)(?P<mm>{names})\.? (?P<md>\d{{1,2}}){ordinal}(?!\d)(?:,? (?P<my>(?:19|20)\d\d))?"
    return re.compile(rf"(?<![\w.,/-])(?:{_iso}|{_numeric}|{worded}|{month_first})", re.IGNORECASE)


_worth_a_look = re.compile(r"\d[-./]\d|\d[.:º]?\w{0,3} \w|\w \d")


def dates(seen: str) -> Iterator[tuple[int, int]]:
    """Where dates stand that a calendar has."""
    if _worth_a_look.search(seen):
        for match in pattern().finditer(seen):
            if _read(match, "", 2000) is not None:
                yield match.span()


def shifted(text: str, weeks: int, locale: str, year: int) -> str | None:
    """The date that `text` writes, `weeks` later, written the same way; None where it is no date. year: where the text has none."""
    match = pattern().fullmatch(text)
    read = match and _read(match, locale, year)
    if read is None:
        return None
    day, parts = read
    try:
        day += datetime.timedelta(weeks=weeks)
    except OverflowError:
        return None
    new = {"year": str(day.year), "month": day.month, "day": day.day}
    made = text
    for name, what in sorted(parts.items(), key=lambda item: -match.start(item[0])):
        old = match.group(name)
        value = new[what]
        if what == "month" and not old.isdigit():
            language, form, _ = months()[0][old.casefold()]
            value = months()[1][language, form][value]
            value = value.upper() if old.isupper() else value.capitalize() if old[0].isupper() else value.lower()
        elif what == "year":
            value = value[-len(old):]
        else:
            value = f"{value:0{len(old) if old.startswith('0') or (len(old) == 2 and int(old) < 10) else 1}d}"
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
        values[what] = int(got[name]) if got[name].isdigit() else months()[0][got[name].casefold()][2]
    if values["year"] < 100:
        values["year"] += 2000 if values["year"] < 50 else 1900
    try:
        return datetime.date(values["year"], values["month"], values["day"]), parts
    except ValueError:
        return None
