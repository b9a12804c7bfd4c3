"""T7 pieces over several turns, T8 all languages, T10 planted leaks, and conversations full of what must stay."""

from __future__ import annotations

import random
from collections.abc import Iterator

from benchmarks.pii import national, values
from benchmarks.pii.names import full, person
from benchmarks.pii.negatives import written
from benchmarks.pii.text import case, fill, load, mark, messy, unmark

COUNTRIES = {"ca": "ES", "eu": "ES", "ga": "IE", "gl": "ES"}
MORE = tuple(language for language in load("carriers_more") if language != "talk")
LANGUAGES = (*load("carriers"), *MORE)
PRODUCTS = ("Nokia 3310", "Bosch GSR 18V-55", "Lego 42115", "WH-1000XM5", "Kallax 77x147", "Philips HD9252/90", "iPhone 15 Pro", "Dyson V11")


def turns(lines: list[str], rng: random.Random, slots: dict) -> list[tuple[str, str]]:
    """Template lines with A: and C: in front as (role, marked text)."""
    return [("assistant" if line.startswith("A: ") else "user", fill(line[3:], rng, slots)) for line in lines]


def ordinary(rng: random.Random, wrap=unmark) -> dict:
    """Order numbers, amounts and the like, the same one through the whole conversation."""
    kinds = load("negatives")["kinds"]
    prices = {**kinds["amount"], "shapes": [shape for shape in kinds["amount"]["shapes"] if shape[0] != "-"]}
    drawn = {"order": written(kinds["order"], rng), "amount": written(prices, rng), "amount2": written(prices, rng), "tracking": written(kinds[rng.choice(["ups", "dhl", "postal"])], rng),
             "time": f"{rng.randint(8, 20)}:{rng.choice(['00', '15', '30'])}", "count": str(rng.randint(2, 12)), "product": rng.choice(PRODUCTS)}
    return {key: wrap(value) for key, value in drawn.items()}


def _pieces(kind: str, language: str, rng: random.Random, parts: int) -> tuple[list[str], str, dict]:
    """The marked pieces of one secret, the market, and what the shop knows of the customer."""
    market = load("adversarial")["markets"][language]
    if kind == "national_id":
        market = "US" if language == "en" else market
        number = national.MAKERS[market](rng)[-{"SE": 10}.get(market, 13):]
        cut = 5 if market == "US" else 6
        return [mark(kind, number[:cut]), mark(kind, number[cut:])], market, {}
    if kind in ("phone", "correction"):
        number = values.write_phone(values.phone(rng, market, True), "compact")
        if kind == "correction":
            return [mark("phone", number), mark("phone", values.digits(rng, rng.choice([2, 3, 4])))], market, {}
        sizes = (4, 9) if parts == 2 else (3, 3, 9)
        return [mark(kind, piece) for piece in values.chunks(number, *sizes)], market, {}
    if kind in ("card", "card2"):
        groups = values.card_groups(values.card(rng, rng.choice(["visa", "mastercard", "mastercard 2-series"]), 16))
        return [mark("card", piece) for piece in (groups if kind == "card" else [" ".join(groups[:2]), " ".join(groups[2:])])], market, {}
    if kind == "iban":
        groups = values.chunks(values.iban(rng, market if market not in ("US", "CA") else "GB"), 4)
        third = -(-len(groups) // 3)
        return [mark(kind, " ".join(groups[i:i + third])) for i in (0, third, 2 * third)], market, {}
    if kind == "email":
        local, domain = values.email(rng, market).split("@")
        common = domain in load("values")["markets"][market]["domains"]
        return [mark(kind, local), domain if common else mark(kind, domain)], market, {}
    if kind == "address":
        street = rng.choice(load("adversarial")["streets"])
        new = f"{rng.randint(1, 99)}{rng.choice(['', '', 'a', 'B'])}"
        return [mark(kind, street), mark(kind, new)], market, {"address": street} if rng.random() < 0.5 else {}
    first, last = person(rng, language)
    if kind == "letters":
        while len(last) < 6 or not last.isalpha():
            first, last = person(rng, language)
        between, half = rng.choice([" ", "-", ", ", "."]), len(last) // 2
        return [mark("name", between.join(last[:half].upper())), mark("name", between.join(last[half:].upper()))], market, {}
    return [mark(kind, first), mark(kind, last)], market, {}


def split_over_turns(seed: int = 0, n: int = 4) -> Iterator[dict]:
    """T7: n cases of every way to hand over a secret in pieces, in every language it was written for."""
    for group, spec in load("talks")["split"].items():
        for language, lines in ((key, lines) for key, lines in spec.items() if key != "kind"):
            rng = random.Random(f"{seed}-split_over_turns-{group}-{language}")
            for _ in range(n):
                pieces, market, customer = _pieces(spec["kind"], language, rng, sum("<" in line for line in lines))
                slots = {str(i): piece for i, piece in enumerate(pieces, 1)}
                yield case("split_over_turns", group, language, f"{language}-{market}", turns(lines, rng, slots), customer=customer)


def _secret(kind: str, region: str, country: str | None, rng: random.Random) -> str:
    if kind == "email":
        return values.email(rng, region)
    if kind == "phone":
        return values.write_phone(values.phone(rng, region), rng.choice(["national", "international", "e164", "zeros", "dashed"]))
    styles = values.card_styles(values.card(rng)) if kind == "card" else values.iban_styles(values.iban(rng, country))
    return rng.choice(list(styles.values()))


def all_languages(n: int = 20, seed: int = 0) -> Iterator[dict]:
    """T8: n conversations in each of 37 languages, two to four secrets in each; one in seven slips into English for a turn."""
    words, more = load("carriers"), load("carriers_more")
    for language in LANGUAGES:
        rng = random.Random(f"{seed}-all_languages-{language}")
        spec = more[language] if language in MORE else more["talk"][language]
        carriers = {kind: spec[kind] if language in MORE else words[language][kind]["cue"] for kind in ("email", "phone", "card", "iban")}
        country = spec["bank"] if language in MORE else spec["region"]
        kinds = [kind for kind in carriers if carriers[kind] and (kind != "iban" or country)]
        for _ in range(n):
            messages = [("user", rng.choice(spec["open"]))]
            for kind in rng.sample(kinds, rng.randint(2, min(4, len(kinds)))):
                sentences = words["en"][kind]["cue"] if rng.random() < 1 / 14 else carriers[kind]
                messages.append(("user", messy(fill(rng.choice(sentences), rng, {"x": mark(kind, _secret(kind, spec["region"], country, rng))}), rng)))
            yield case("all_languages", language, language, f"{language}-{COUNTRIES.get(language, spec['region'])}", [*messages, ("user", rng.choice(spec["close"]))])


def kept(n: int = 300, seed: int = 0) -> Iterator[dict]:
    """n conversations with one secret among many order numbers, amounts and products; `keep` marks those."""
    rng, talks, markets = random.Random(f"{seed}-kept"), load("talks")["kept"], load("adversarial")["markets"]
    for i in range(n):
        language = list(talks)[i % len(talks)]
        market = markets[language]
        slots = ordinary(rng, lambda value: mark("keep", value)) | {
            "EMAIL": mark("email", values.email(rng, market)), "PHONE": mark("phone", _secret("phone", market, None, rng)), "NAME": mark("name", full(*person(rng, language), language))}
        yield case("kept", language, language, f"{language}-{market}", turns(rng.choice(talks[language]), rng, slots))


def safe_phone(language: str, rng: random.Random) -> str:
    """A number out of a range reserved for fiction (PTS, BNetzA, ARCEP, Ofcom)."""
    two = f"{rng.randint(5, 99):02d}"
    return {"sv": f"+46 70 174 06 {two}", "de": f"+49 30 23125 {rng.randint(0, 999):03d}", "fr": f"+33 6 39 98 {rng.randint(10, 99)} {two}"}.get(language, f"+44 7700 900{rng.randint(0, 999):03d}")


def token(rng: random.Random) -> str:
    """A password or a key."""
    alphabet = "ABCDEFGHIJKLMNOPQRSTUVWXYZabcdefghijklmnopqrstuvwxyz0123456789"
    return rng.choice([f"sk_live_{values.letters(rng, 24, alphabet)}", f"{rng.choice(['Sommar', 'Winter', 'Passwort', 'Hunter', 'Qwerty'])}{rng.randint(10, 2030)}{rng.choice('!?#$')}",
                       f"AKIA{values.letters(rng, 16, alphabet[:26] + '0123456789')}", f"eyJhbGciOiJIUzI1NiJ9.{values.letters(rng, 40, alphabet)}.{values.letters(rng, 43, alphabet)}",
                       f"ghp_{values.letters(rng, 36, alphabet)}", values.letters(rng, 40, "0123456789abcdef")])


def _leak(kind: str, market: str, customer: dict, rng: random.Random) -> str:
    """What slipped through: something of the known customer's, or anybody's valid number."""
    if kind == "name":
        return rng.choice([customer["name"], *customer["name"].split(" ", 1)])
    if kind == "secret":
        return token(rng)
    if kind == "national_id":
        return rng.choice(list(national.styles(market, national.MAKERS[market](rng)).values()))
    own, anybodys = customer.get(kind), _secret(kind, market, market, rng)
    return own if own and rng.random() < 0.5 else anybodys


def leaks(n: int = 500, seed: int = 0) -> Iterator[dict]:
    """T10: n pairs of clean output and the same with one thing leaked: {"clean": [texts], "leaky": [texts], "customer": what the shop knows, "kind", "leak"}."""
    rng, words, markets = random.Random(f"{seed}-leaks"), load("talks")["leaks"], load("adversarial")["markets"]
    for i in range(n):
        kind = ("card", "iban", "email", "phone", "national_id", "name", "secret")[i % 7]
        language = rng.choice(list(words["clean"]))
        market, safe = markets[language], rng.choice(words["safe_names"][language])
        first, last = person(rng, language)
        while min(len(first), len(last)) < 4 or {first, last} & set(safe.split()):
            first, last = person(rng, language)
        customer = {"name": f"{first} {last}", "email": values.email(rng, market), "phone": values.e164(values.phone(rng, market)), "address": rng.choice(load("adversarial")["streets"])}
        slots = ordinary(rng) | {"safe_name": safe, "safe_email": f"{safe.split()[0].lower()}.{rng.randint(1, 999)}@example.{rng.choice(['com', 'org', 'net'])}", "safe_phone": safe_phone(language, rng)}
        clean = [text for _, text in turns(words["clean"][language], rng, slots)]
        leak = _leak(kind, market, customer, rng)
        carrier = rng.choice(words["secret"] if kind == "secret" else load("carriers")[language]["national_id"]["cue"] if kind == "national_id" else words["tails"])
        tail = fill(carrier.removeprefix("A: "), rng, {"x": leak, "word": national.word(market, leak, language, rng) if kind == "national_id" else ""})
        at = rng.randrange(len(clean))
        leaky = [f"{text} {tail}" if j == at else text for j, text in enumerate(clean)]
        twin = {"email": slots["safe_email"], "phone": slots["safe_phone"], "name": safe}.get(kind)
        if twin and rng.random() < 0.5:
            leaky = [text.replace(twin, leak) for text in clean]
        yield {"set": "leaks", "group": kind, "language": language, "locale": f"{language}-{market}", "customer": customer, "kind": kind, "leak": leak, "clean": clean, "leaky": leaky}
