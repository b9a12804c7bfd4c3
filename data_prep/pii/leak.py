"""The leak check: looks at a finished record again, by a path that shares nothing with the detectors' spans.

It knows what was in the original, and asks of the output alone: does a known person, or a number that was masked once,
still stand anywhere? Is there an e-mail address or a valid card or IBAN that is no surrogate?
"""

from __future__ import annotations

import re

from stdnum import iban, luhn

RESERVED_MAIL = re.compile(r"@example\.(com|org|net)$", re.IGNORECASE)
_mail = re.compile(r"\S+@\S+\.\w+")
_digits = re.compile(r"\d(?:[\d ().-]*\d)?")
_iban_like = re.compile(r"\b[A-Z]{2}\d{2}(?: ?[A-Z0-9]){11,30}", re.IGNORECASE)


def _starts_with_iban(text: str) -> bool:
    return any(iban.is_valid(text[:length]) for length in range(15, min(len(text), 34) + 1))


def leaks(texts: list[str], known: dict[str, str], masked: list[tuple[str, str]], public: tuple[re.Pattern, ...]) -> list[str]:
    """The reasons why these output texts must not be released; never the text itself.

    known: surface form → kind of what the helpdesk knew. masked: (kind, original text) of every span that was replaced.
    """
    reasons = set()
    whole = "\n".join(texts)
    for pattern in public:
        whole = pattern.sub(" ", whole)
    folded = whole.casefold()
    for surface, kind in known.items():
        if re.search(rf"(?<!\w){re.escape(surface.casefold())}(?!\w)", folded):
            reasons.add(f"known {kind} left")
    numbers = {re.sub(r"\D", "", run) for run in _digits.findall(whole)}
    for kind, original in masked:
        digits = re.sub(r"\D", "", original)
        if kind in ("iban", "card", "national_id", "phone") and len(digits) >= 7 and any(digits in number for number in numbers):
            reasons.add(f"digits of a masked {kind} left")
        if kind == "email" and original.casefold() in folded:
            reasons.add("a masked e-mail address left")
    reasons |= {"an e-mail address that is no surrogate" for m in _mail.findall(whole) if not RESERVED_MAIL.search(m.rstrip(".,;:!?)\"'}]"))}
    cards = {re.sub(r"\D", "", run) for run in _digits.findall(_iban_like.sub(" ", whole))}
    reasons |= {"a valid card number" for n in cards if 13 <= len(n) <= 19 and luhn.is_valid(n)}
    reasons |= {"a valid IBAN" for m in _iban_like.findall(whole) if _starts_with_iban(m.replace(" ", ""))}
    return sorted(reasons)
