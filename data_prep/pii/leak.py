"""The leak check: looks at a finished record again, by a path that shares no detector with the one that masked it.

It knows the original and asks of the output alone. Since stand-ins come from reserved ranges or fail their checksum, the
world is closed: any e-mail address, card, IBAN, phone number or national id that could be somebody's is a leak. So is
anything that the helpdesk knew, any masked number or word that still stands somewhere, and any secret.
"""

from __future__ import annotations

import html
import re
import unicodedata
from collections.abc import Iterable

import phonenumbers
from stdnum import get_cc_module, iban, luhn
from stdnum.iso7064 import mod_97_10

from data_prep.pii.structured import IBAN_LENGTHS
from data_prep.pii.surrogates import is_reserved_phone

RESERVED_MAIL = re.compile(r"@example\.(com|org|net)$", re.IGNORECASE)
_mail = re.compile(r"[^\s<>()\[\],;:\"'@]{1,64}@[^\s<>()\[\],;:\"'@]{1,250}\.\w+")
_invisible = re.compile("[\u00ad\u034f\u061c\u115f\u1160\u17b4\u17b5\u180e\u200b-\u200f\u202a-\u202e\u2060-\u206f\ufe00-\ufe0f\ufeff\ufff9-\ufffb\ud800-\udfff\u20e0-\u20e3]")
_escape = re.compile(r"\\+u([0-9a-fA-F]{4})|%([2-7][0-9a-fA-F])")
_digits = re.compile(r"\d(?:[ \t().\u2013-]{0,2}\d)+")
_iban_like = re.compile(r"(?<![A-Z0-9])[A-Z]{2}\d{2}(?:[ -]?[A-Z0-9]){11,30}", re.IGNORECASE)
_no_digit = re.compile(r"\D")
_word = re.compile(r"[^\W\d_]+")
_secret = re.compile(r"(?:sk|pk|rk)_(?:live|test)_\w{8,}|gh[pousr]_\w{16,}|AKIA[A-Z0-9]{12,}|xox[abp]-[\w-]{10,}|eyJ[\w-]{8,}\.[\w.-]{8,}|(?<!\w)(?=[0-9a-f]*[a-f])(?=[0-9a-f]*\d)[0-9a-f]{32,}(?!\w)"
                     r"|(?<!\w)(?:password|passwort|lösenord|lösenordet|wachtwoord|mot de passe|contraseña|hasło|pw|pwd|pin|cvv|cvc|api[ _-]?key|token|bearer)(?!\w)\s*(?:is|ist|är|est|es|:|=)?\s*(?!\*)\S*\d\S*", re.IGNORECASE)
# Ids whose shape alone says what they are. (Runs of 9 to 11 digits pass some country's check too often to be called one.)
_shaped = [(re.compile(pattern, re.IGNORECASE), get_cc_module(*module)) for pattern, module in (
    (r"(?<!\w)\d{6}[-+ABCDEF]\d{3}[0-9A-Z](?!\w)", ("fi", "hetu")), (r"(?<!\w)[A-Z]{6}\d{2}[A-Z]\d{2}[A-Z]\d{3}[A-Z](?!\w)", ("it", "codicefiscale")), (r"(?<!\w)(?:19|20)?\d{6}[-+ ]\d{4}(?!\w)", ("se", "personnummer")), (r"(?<!\w)(?:19|20)\d{10}(?!\w)", ("se", "personnummer")),
    (r"(?<!\w)756\.\d{4}\.\d{4}\.\d\d(?!\w)", ("ch", "ssn")), (r"(?<!\w)\d{6}/\d{3,4}(?!\w)", ("cz", "rc")), (r"(?<!\w)[12](?: ?\d){14}(?!\w)", ("fr", "nir")),
    (r"(?<!\w)\d{2}\.\d{2}\.\d{2}-\d{3}\.\d{2}(?!\w)", ("be", "nn")), (r"(?<!\w)\d{8}-?[A-Z](?!\w)", ("es", "dni")), (r"(?<!\w)\d{7}[A-W][A-I]?(?!\w)", ("ie", "pps")), (r"(?<!\w)[1-8]\d{12}(?!\w)", ("ro", "cnp")),
    (r"(?<!\w)\d{3}-\d{2}-\d{4}(?!\w)", ("us", "ssn")))]


_maybe_shaped = re.compile(r"\d{6}[-+/A-F ]\d{3}|[A-Za-z]{6}\d\d|756\.|\d{8}-?[A-Za-z](?!\w)|\d{7}[A-Wa-w]|\d{12}|[12](?: ?\d){14}|\d\d\.\d\d\.\d\d-|\d{3}-\d\d-\d{4}")          # else none of them can match
# HMRC gives out no number that begins with D, F, I, Q, U or V; a stand-in begins with QQ.
_nino = re.compile(r"(?<!\w)[A-CEGHJ-PR-TW-Z][A-CEGHJ-NPR-TW-Z](?: ?\d\d){3} ?[A-D](?!\w)", re.IGNORECASE)
# Ids that are digits alone: only where a word says so.
_digit_ids = {market: get_cc_module(*name) for market, name in {"GB": ("gb", "nhs"), "NL": ("nl", "bsn"), "DE": ("de", "idnr"), "AT": ("at", "vnr"), "NO": ("no", "fodselsnummer"), "DK": ("dk", "cpr"), "PT": ("pt", "nif"), "PL": ("pl", "pesel"), "CZ": ("cz", "rc"),
              "SK": ("sk", "rc"), "GR": ("gr", "amka"), "CA": ("ca", "sin"), "BE": ("be", "nn")}.items()}
_said_id = re.compile(r"nhs|insurance|nino|\bni\b|bsn|burgerservice|steuer|idnr|svnr|sozialversicherung|fødselsnummer|fnr|cpr|nif|contribuinte|pesel|rodn[éeí]|αμκα|amka|αφμ|\bsin\b|rijksregister|registre national|personn?ummer|pers\.?nr", re.IGNORECASE)


def bare(text: str) -> str:
    """The text without escapes, disguised characters and invisible ones; written apart from the detectors' shadow."""
    text = html.unescape(_escape.sub(lambda m: chr(int(m.group(1) or m.group(2), 16)), text))
    text = unicodedata.normalize("NFKC", text)
    return text if text.isascii() else _invisible.sub("", text)


def _plain(text: str) -> str:
    folded = text.casefold()
    return folded if folded.isascii() else "".join(c for c in unicodedata.normalize("NFKD", folded) if not unicodedata.combining(c))


def leaks(texts: list[str], persons: Iterable[dict], masked: Iterable[tuple[str, str]], public: tuple[re.Pattern, ...], market: str | None = None, ordinary=lambda word: False) -> list[str]:
    """The reasons why these output texts must not be released; never the text itself.

    persons: what the helpdesk knows of the customer and the agents. masked: (kind, original text) of every span that was
    replaced. market: two-letter country of the conversation. ordinary: whether a word in small letters is an everyday one.
    """
    whole = bare("\n".join(texts))
    for pattern in public:
        whole = pattern.sub(" ", whole)
    words = set(_word.findall(whole))
    return sorted({*_known(whole, words, persons, ordinary), *_masked_before(whole, words, masked, ordinary), *_identifiers(whole, market)})


def _known(whole: str, words: set[str], persons: Iterable[dict], ordinary) -> Iterable[str]:
    if not any(len(person) > ("id" in person) for person in persons):
        return
    capitals = {_plain(word) for word in words if word[0].isupper()}
    words = {_plain(word) for word in words}
    folded = whole.casefold()
    digits = re.sub(r"[^\d\n]", "", re.sub(r"\d[a-zA-Z]", "\n", whole))
    for person in persons:
        for key, value in person.items():
            text = str(value).strip() if isinstance(value, str) else ""
            if not text or key == "id":
                continue
            if key == "name" or key.endswith("_name"):
                for part in _word.findall(text):
                    among = capitals if ordinary(part.casefold()) else words
                    if len(part) > 2 and _plain(part) in among:
                        yield "a known name left"
            elif (key in ("email", "address", "street", "username") and text.casefold() in folded and re.search(rf"(?<!\w){re.escape(text.casefold())}(?!\w)", folded)) or (key in ("phone", "iban", "card", "national_id", "personal_number") and len(number := _no_digit.sub("", text)[-9:]) >= 7 and number in digits):
                yield f"a known {key} left"


def _masked_before(whole: str, words: set[str], masked: Iterable[tuple[str, str]], ordinary) -> Iterable[str]:
    """Numbers and words that were replaced in one place must stand in no other."""
    if not masked:
        return
    runs = {_no_digit.sub("", run) for run in _digits.findall(whole)}
    compact = re.sub(r"[\W_]", "", whole).casefold()
    words = {_plain(word) for word in words}
    for kind, original in set(masked):
        text = bare(original)
        digits = _no_digit.sub("", text)
        if kind in ("iban", "card", "national_id", "phone", "account", "document") and len(digits) >= 7 and not _is_made_up(kind, digits) and any(digits in run for run in runs):
            yield f"digits of a masked {kind} left"
        elif kind in ("email", "secret", "url", "document") and len(letters := re.sub(r"[\W_]", "", text).casefold()) >= 6 and letters in compact and not _is_made_up(kind, text):
            yield f"a masked {kind} left"
        elif kind == "name" and any(len(word) > 3 and not ordinary(word.casefold()) and _plain(word) in words for word in _word.findall(text)):
            yield "a masked name left"


def _is_made_up(kind: str, text: str) -> bool:
    """A made-up archive may use the reserved ranges itself: meeting them again says nothing."""
    return (kind == "phone" and is_reserved_phone(text)) or (kind == "email" and RESERVED_MAIL.search(text) is not None)


def _identifiers(whole: str, market: str | None) -> Iterable[str]:
    if "@" in whole and any(not RESERVED_MAIL.search(mail.rstrip(".,;:!?)\"'}]")) for mail in _mail.findall(whole)):
        yield "an e-mail address that is no stand-in"
    if _secret.search(whole):
        yield "a secret"
    if not re.search(r"\d{2}", whole):
        return
    if any(_starts_with_iban(re.sub(r"\W", "", match)) for match in _iban_like.findall(whole)):
        yield "a valid IBAN"
    rest = _iban_like.sub(" ", whole)
    if any(_holds_card(run) for run in _digits.findall(rest)):
        yield "a valid card number"
    if _maybe_shaped.search(rest) and any(module.is_valid(match.group()) for pattern, module in _shaped for match in pattern.finditer(rest)):
        yield "a valid national id"
    if _nino.search(rest) or (market in _digit_ids and any(
            _digit_ids[market].is_valid(re.sub(r"[ ./-]", "", match.group())) and _said_id.search(rest, max(0, match.start() - 60), match.start()) for match in _long_number.finditer(rest))):
        yield "a valid national id"
    if any(_is_somebodys_phone(match.group(), market) for match in _phone_like.finditer(rest)):
        yield "a valid phone number"


_long_number = re.compile(r"(?<!\w)\d(?:[ ./-]?\d){8,12}(?!\w)")
_phone_like = re.compile(r"(?<![\w.,/-])(?:\+\d|\(\d|0\d|\d{2,4}[ -]\d{2,4}[ -])[\d ()./-]{5,18}\d(?![\w])")
_no_phone = re.compile(r"\d{4}-\d\d-\d\d.*|\d{1,2}[./-]\d{1,2}[./-]\d{2,4}.*|[\d.]+,\d\d")


def _is_somebodys_phone(text: str, market: str | None) -> bool:
    if _no_phone.fullmatch(text) or (market is None and not text.startswith("+")) or is_reserved_phone(_no_digit.sub("", text)):
        return False
    try:
        number = phonenumbers.parse(text, market)
    except phonenumbers.NumberParseException:
        return False
    is_valid = phonenumbers.is_valid_number(number) if text.startswith("+") else phonenumbers.is_valid_number_for_region(number, market)
    return is_valid and not is_reserved_phone(f"{number.country_code}{number.national_number}")


def _starts_with_iban(text: str) -> bool:
    length = IBAN_LENGTHS.get(text[:2].upper())
    return length is not None and len(text) >= length and mod_97_10.is_valid(text[4:length] + text[:4]) and iban.is_valid(text[:length])


_first_digits = re.compile(r"4|5[0-8]|2[2-7]|3[04-9]|6|81|9792|1800|2131")


def _holds_card(run: str) -> bool:
    """Whether 13 to 19 digits that begin and end with a group of the run pass Luhn and begin as some issuer's do."""
    groups = re.findall(r"\d+", run)
    for first in range(min(len(groups), 50)):
        digits = ""
        for group in groups[first:first + 10]:
            digits += group
            if len(digits) > 19:
                break
            if len(digits) >= 13 and len(set(digits)) > 1 and luhn.is_valid(digits) and _first_digits.match(digits):
                return True
    return False
