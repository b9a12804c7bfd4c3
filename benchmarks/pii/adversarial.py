"""T3: inputs that break detectors. One small function per group draws one case; `keep` groups and marks are what must stay."""

from __future__ import annotations

import base64
import random
from collections.abc import Iterator
from importlib import import_module
from urllib.parse import quote

from stdnum import luhn

from benchmarks.pii import national, obfuscation, values
from benchmarks.pii.names import full, person
from benchmarks.pii.text import case, fill, load, mark, messy

MAKERS = {}
MARKETS = list(load("values")["markets"])
BANKS = [market for market in MARKETS if market not in ("US", "CA")]


def group(*names: str):
    """Register a drawing function under one or more group names; with several, the name is its second argument."""
    def register(function):
        for name in names:
            MAKERS[name] = (lambda rng, name=name: function(rng, name)) if len(names) > 1 else function
        return function
    return register


def draw(market: str, text: str | list, language: str | None = None, **known) -> dict:
    """What `adversarial` makes a case of: a text of the customer's, or (role, text) pairs."""
    return {"market": market, "language": language or load("values")["markets"][market]["languages"][0], "messages": [("user", text)] if isinstance(text, str) else text, **known}


def carried(rng: random.Random, kind: str, value: str, market: str, style: str = "cue") -> dict:
    """The value in a sentence of the market's language."""
    language = rng.choice(load("values")["markets"][market]["languages"])
    slots = {"x": mark(kind, value), "word": national.word(market, value, language, rng) if kind == "national_id" else ""}
    return draw(market, messy(fill(rng.choice(load("carriers")[language][kind][style]), rng, slots), rng), language)


def number(rng: random.Random, kind: str, market: str) -> str:
    """A number of the kind in one of its everyday spellings."""
    if kind == "phone":
        return values.write_phone(values.phone(rng, market), rng.choice(values.PHONE_STYLES[:4]))
    return rng.choice(list((values.card_styles(values.card(rng)) if kind == "card" else values.iban_styles(values.iban(rng, market))).values()))


def known(rng: random.Random, language: str, market: str) -> dict:
    """A customer the shop knows."""
    first, last = person(rng, language)
    return {"name": full(first, last, language), "email": values.email(rng, market), "phone": values.e164(values.phone(rng, market)), "address": rng.choice(load("adversarial")["streets"])}


@group(*(f"e-mail in words, {family}" for family in load("adversarial")["families"]))
def _(rng, name):
    words = load("adversarial")
    language = rng.choice(words["families"][name.split(", ", 1)[1]])
    market = words["markets"][language]
    return carried(rng, "email", obfuscation.email_words(values.email(rng, market), *rng.choice(words["at_dot"][language])), market) | {"language": language}


@group("e-mail with bracketed at")
def _(rng):
    market = rng.choice(MARKETS)
    at, dot = rng.choice([("(at)", "."), ("[at]", "."), ("{at}", "."), (" @ ", "."), ("(at)", "(dot)"), (" [at] ", " [dot] "), ("<at>", "."), ("_at_", "."), (" (a) ", "."), ("@", " . ")])
    return carried(rng, "email", values.email(rng, market).replace(".", dot).replace("@", at), market)


@group("e-mail letter by letter")
def _(rng):
    local, domain = values.email(rng).split("@")
    value = rng.choice([f"{' '.join(local)} @ {' '.join(domain)}", f"{' '.join(local)} at {' '.join(domain)}", f"{'-'.join(c for c in local if c.isalnum())} at {domain}", f"{' '.join(local)} @ {domain}"])
    return carried(rng, "email", value, rng.choice(["GB", "IE", "US", "SE", "DE"]))


@group("e-mail without its ending")
def _(rng):
    local = values.email(rng).split("@")[0]
    provider = rng.choice(["gmail", "hotmail", "outlook", "yahoo", "icloud", "gmx", "telia"])
    return carried(rng, "email", rng.choice([f"{local} {provider}", f"{local}@{provider}", f"{local} at {provider}", f"{local} @ {provider}", f"{local}@{provider},com", f"{local}@{provider} com"]), rng.choice(MARKETS))


@group("e-mail with international letters")
def _(rng):
    local = rng.choice([values.email(rng).split("@")[0], rng.choice(["åsa.öberg", "jörg.müller", "zoë", "søren.k", "łukasz", "žofie.n", "νίκος"]) + values.digits(rng, 2)])
    return carried(rng, "email", f"{local}@{rng.choice(load('adversarial')['idn_domains'])}", rng.choice(["DE", "SE", "PL", "CZ", "FR", "GR", "NO"]))


@group("e-mail homoglyphs")
def _(rng):
    market = rng.choice(MARKETS)
    return carried(rng, "email", obfuscation.homoglyphs(values.email(rng, market), rng), market)


@group("e-mail fullwidth and ligatures")
def _(rng):
    address = values.email(rng)
    return carried(rng, "email", rng.choice(["".join(chr(ord(c) + 0xFEE0) for c in address), address.replace("@", "＠"), address.replace("@", "﹫"), "oﬃce." + address, "ﬂora-" + address.replace(".", "．")]), "GB")


@group("e-mail as \\u0040, %40, entity")
def _(rng):
    address = values.email(rng, market := rng.choice(MARKETS))
    at = rng.choice(["\\u0040", "%40", "&#64;", "&commat;", "&#x40;"])
    value = address.replace("@", at)
    if at == "&#64;" and rng.random() < 0.5:
        value = value.replace(".", "&#46;")
    return carried(rng, "email", value, market)


@group("base64 of an e-mail (hard)")
def _(rng):
    token = base64.b64encode(values.email(rng).encode()).decode()
    return draw("GB", rng.choice([f"the link has uid={mark('email', token)} in it", f"token: {mark('email', token)}", f"https://shop.example/u?e={mark('email', quote(token))}"]))


@group("URL with a mail address in it")
def _(rng):
    address = values.email(rng, market := rng.choice(MARKETS))
    address = rng.choice([quote(address), address, address.replace("+", "%2B")])
    return draw(market, rng.choice([f"this link is broken https://shop.example/unsubscribe?email={mark('email', address)}&utm_source=news",
                                    f"https://shop.example/orders/{rng.randint(10000, 99999)}?user={mark('email', address)}",
                                    f"http://track.example/t.php?c=7&e={mark('email', address)}#top geht nicht", f"mailto:{mark('email', address)}?subject=retour",
                                    f"[click]({'https://shop.example/r?to='}{mark('email', address)})"]))


@group("reset and login tokens in URLs")
def _(rng):
    token = rng.choice([values.letters(rng, 32, "abcdef0123456789"), values.letters(rng, 43, "ABCDEFGHIJKLMNOPQRSTUVWXYZabcdefghijklmnopqrstuvwxyz0123456789-_")])
    return draw("GB", rng.choice([f"https://shop.example/reset?token={mark('other', token)} says expired", f"the login link https://shop.example/magic/{mark('other', token)} doesnt work",
                                  f"https://shop.example/password/reset?key={mark('other', token)}&lang=en"]))


@group("cards in pairs, dotted, with odd spaces and dashes", "cards broken over lines")
def _(rng, name):
    card, between = values.card(rng), rng.choice([".", "\u00a0", "\u2009", "–", "—", "/", "  ", " - ", "_"])
    groups = values.chunks(card, 2) if rng.random() < 0.3 else values.card_groups(card)
    if name == "cards broken over lines":
        between = rng.choice(["\n", "\n", " \n", "\r\n", "\t"])
    return carried(rng, "card", between.join(groups), rng.choice(MARKETS), rng.choice(["cue", "bare"]))


@group("cards of unusual length")
def _(rng):
    brand, length = rng.choice([("maestro", 12), ("maestro", 13), ("visa", 13), ("maestro", 18), ("unionpay", 17), ("maestro", 19), ("visa", 19), ("unionpay", 19), ("diners", 14), ("mastercard 2-series", 16), ("jcb", 16)])
    return carried(rng, "card", rng.choice(list(values.card_styles(values.card(rng, brand, length)).values())), rng.choice(MARKETS), rng.choice(["cue", "bare"]))


@group("masked card, the full one elsewhere")
def _(rng):
    card = values.card(rng, rng.choice(["visa", "mastercard", "amex"]))
    last = mark("card", card[-4:])
    masked = rng.choice([f"**** **** **** {last}", f"xxxx-xxxx-xxxx-{last}", f"card ending in {last}", f"•••• {last}", f"ending {last}"])
    whole = rng.choice([f"no its {mark('card', ' '.join(values.card_groups(card)))}", f"the number is {mark('card', card)}", mark("card", card)])
    turns = [("assistant", f"I see a payment with {masked}, is that right?"), ("user", whole)]
    return draw("GB", turns if rng.random() < 0.7 else [("user", whole), ("assistant", f"Thank you, I have removed {masked}.")])


@group("packed against letters")
def _(rng):
    market = rng.choice(BANKS)
    return draw(market, rng.choice([
        f"card{mark('card', values.card(rng, 'visa', 16))}", f"cc:{mark('card', values.card(rng, 'mastercard'))},cvv:{mark('other', values.digits(rng, 3))}", f"IBAN{mark('iban', values.iban(rng, market))}",
        f"tel{mark('phone', values.e164(values.phone(rng, market)))}", f"email:{mark('email', values.email(rng, market))};", f"({mark('iban', values.iban(rng, market))})please",
        f"phone={mark('phone', values.e164(values.phone(rng, market)))}&name=x", f"nr{mark('card', values.card(rng, 'visa', 16))}danke"]))


@group("IBAN lower, dashed, broken, in brackets, run on")
def _(rng):
    number_ = values.iban(rng, market := rng.choice(BANKS))
    groups = values.chunks(number_, 4)
    value = rng.choice([number_.lower(), "-".join(groups), "\n".join([" ".join(groups[:3]), " ".join(groups[3:])]), "\u00a0".join(groups), f"{number_[:2]} {number_[2:]}", " ".join(values.chunks(number_, 2)),
                        ".".join(groups), " ".join(groups).title()])
    result = carried(rng, "iban", value, market, rng.choice(["cue", "bare"]))
    follow = rng.choice(["", " please", " danke", " tack so much", " ok", ")"])
    return result | {"messages": [(role, text.replace("⟧", "⟧" + follow) if follow != ")" else text.replace("⟦", "(⟦").replace("⟧", "⟧)")) for role, text in result["messages"]]}


@group("fullwidth and bold digits", "Arabic-Indic, Persian, Devanagari digits", "superscript and keycap digits")
def _(rng, name):
    script = rng.choice({"f": ["fullwidth", "bold"], "A": ["arabic-indic", "persian", "devanagari"], "s": ["superscript", "keycap"]}[name[0]])
    kind = rng.choice(["card", "phone", "phone"])
    return carried(rng, kind, obfuscation.other_digits(number(rng, kind, market := rng.choice(MARKETS)), script), market)


@group("zero-width, soft hyphen, BOM, direction marks")
def _(rng):
    kind, market = rng.choice(["card", "phone", "email", "iban"]), rng.choice(BANKS)
    value = values.email(rng, market) if kind == "email" else number(rng, kind, market)
    return carried(rng, kind, obfuscation.sprinkle(value, rng), market)


@group("homoglyphs in IBAN and national id")
def _(rng):
    if rng.random() < 0.6:
        market = rng.choice(["BE", "AT", "CZ", "PT", "IE", "NO", "PL", "RO", "HU", "CH", "ES", "SE", "FI"])
        return carried(rng, "iban", obfuscation.homoglyphs(values.iban(rng, market), rng, 1), market)
    value = values.iban(rng, market := rng.choice(BANKS))
    return carried(rng, "iban", value[:2] + value[2:].replace("0", "O", 1).replace("1", "l", 1), market)


@group(*(f"digits in words, {language}" for language in load("adversarial")["digits"]))
def _(rng, name):
    language = name.split(", ")[1]
    words, market = load("adversarial"), load("adversarial")["markets"][language]
    phone = rng.random() < 0.75
    digits = values.write_phone(values.phone(rng, market, True), "compact") if phone else values.card(rng, "visa", 16)
    style = rng.choice(["digits", "digits", "repeats", "pairs"])
    spelled = obfuscation.spell(digits, language, rng, style)
    carriers = words["spelled_digits"][language]
    return draw(market, fill(rng.choice(carriers[:2] if phone else carriers[2:]), rng, {"x": mark("phone" if phone else "card", spelled)}), language)


@group("digits and words mixed")
def _(rng):
    language = rng.choice(["en", "de", "sv", "nl", "fr", "es"])
    market = load("adversarial")["markets"][language]
    digits = values.write_phone(values.phone(rng, market, True), "compact")
    cut = rng.randint(3, 5)
    value = f"{digits[:cut]} {obfuscation.spell(digits[cut:], language, rng, rng.choice(['digits', 'pairs']))}"
    return draw(market, fill(rng.choice(load("adversarial")["spelled_digits"][language][:2]), rng, {"x": mark("phone", value)}), language)


@group("HTML entities inside numbers")
def _(rng):
    card, market = values.card(rng, "visa", 16), rng.choice(BANKS)
    groups = values.card_groups(card)
    value = rng.choice(["&nbsp;".join(groups), "&#160;".join(groups), "".join(f"&#{ord(c)};" for c in card), "&#x20;".join(groups), "<br>".join(groups), "</span> <span>".join(groups)])
    return carried(rng, "card", value, market)


@group("Markdown inside numbers", "emoji inside numbers")
def _(rng, name):
    kind = rng.choice(["card", "phone"])
    market = rng.choice(MARKETS)
    digits = values.card(rng, "visa", 16) if kind == "card" else values.write_phone(values.phone(rng, market), "compact")
    pieces = values.chunks(digits, rng.choice([2, 3, 4]))
    between = rng.choice(load("adversarial")["emoji"])
    value = between.join(pieces) if name.startswith("emoji") else rng.choice([f"**{pieces[0]}**{''.join(pieces[1:])}", " ".join(f"`{p}`" for p in pieces), "_".join(pieces), f"{pieces[0]}**{pieces[1]}**{''.join(pieces[2:])}", "~~" + " ".join(pieces) + "~~"])
    return carried(rng, kind, value, market)


@group("one digit wrong, with a cue")
def _(rng):
    kind, market = rng.choice(["card", "iban", "national_id"]), rng.choice(BANKS)
    value = rng.choice(list(national.styles(market, national.MAKERS[market](rng)).values())) if kind == "national_id" else number(rng, kind, market)
    return carried(rng, kind, obfuscation.typo(value, rng), market)


@group("IMEI and device ids")
def _(rng):
    body = rng.choice(["35", "86", "01"]) + values.digits(rng, 12)
    imei = body + luhn.calc_check_digit(body)
    mac = ":".join(values.letters(rng, 2, "0123456789abcdef") for _ in range(6))
    return draw("GB", rng.choice([f"imei {mark('other', imei)}", f"the phone's IMEI is {mark('other', imei)}", f"IMEI: {mark('other', imei[:2] + '-' + imei[2:8] + '-' + imei[8:14] + '-' + imei[14:])}", f"IMEI-Nummer {mark('other', imei)} steht drauf",
                                  f"router mac {mark('other', mac)}"]))


@group("IP addresses")
def _(rng):
    ip = mark("ip", rng.choice([values.ipv4, values.ipv4, values.ipv6])(rng))
    return draw("GB", rng.choice([f"login from {ip}, that wasn't me", f"my ip is {ip}", f"blocked: {ip}", f"access denied [{ip}] ref 18", f"warum wurde {ip} gesperrt"]))


def adversarial(seed: int = 0, n: int = 24) -> Iterator[dict]:
    """T3: n cases of every group."""
    import_module("benchmarks.pii.adversarial_formats")      # registers the other half
    for name, make in MAKERS.items():
        rng = random.Random(f"{seed}-adversarial-{name}")
        for _ in range(n):
            drawn = make(rng)
            yield case("adversarial", name, drawn["language"], f"{drawn['language']}-{drawn['market']}", drawn["messages"], customer=drawn.get("customer"), agents=drawn.get("agents"))
