"""T3, continued: values wrapped in formats, and people's names in odd places."""

from __future__ import annotations

import json
import random

from stdnum import luhn

from benchmarks.pii import obfuscation, values
from benchmarks.pii.adversarial import BANKS, carried, draw, group, known, number
from benchmarks.pii.names import person
from benchmarks.pii.text import fill, load, mark


def _record(rng: random.Random, market: str) -> dict:
    first, last = person(rng, load("values")["markets"][market]["languages"][0])
    return {"order": rng.randint(100000, 999999), "name": mark("name", f"{first} {last}"), "email": mark("email", values.email(rng, market)), "phone": mark("phone", values.e164(values.phone(rng, market))),
            "iban": mark("iban", values.iban(rng, market)), "total": f"{rng.randint(5, 300)}.90"}


@group("JSON", "JSON inside JSON", "tool-call arguments", "XML", "CSV rows", "Markdown tables")
def _(rng, name):
    record = _record(rng, market := rng.choice(BANKS))
    some = {key: record[key] for key in ("order", "name", *rng.sample(["email", "phone", "iban"], 2), "total")}
    inner = json.dumps(some, ensure_ascii=False)
    del some["order"], some["total"]
    texts = {
        "JSON": json.dumps({"customer": json.loads(inner), "ok": True}, ensure_ascii=False, indent=rng.choice([None, 2])),
        "JSON inside JSON": json.dumps({"type": "event", "payload": inner}, ensure_ascii=False),
        "tool-call arguments": f"update_customer({json.dumps(some, ensure_ascii=False)})",
        "XML": "<customer>" + "".join(f"<{k}>{v}</{k}>" for k, v in some.items()) + "</customer>",
        "CSV rows": ";".join(some) + "\n" + ";".join(some.values()),
        "Markdown tables": f"| {' | '.join(some)} |\n|{'---|' * len(some)}\n| {' | '.join(some.values())} |",
    }
    return draw(market, [(rng.choice(["user", "assistant"]), texts[name])])


@group("e-mail headers", "quoted replies", "signatures")
def _(rng, name):
    market = rng.choice(BANKS)
    language = load("values")["markets"][market]["languages"][0]
    customer = known(rng, language, market)
    n, e, p, a = (mark(kind, customer[key]) for kind, key in (("name", "name"), ("email", "email"), ("phone", "phone"), ("address", "address")))
    p = mark("phone", values.write_phone(values.phone(rng, market), "international"))
    texts = {"e-mail headers": f"From: {n} <{e}>\nTo: Support\nSubject: Re: order {rng.randint(10000, 99999)}\n\nstill waiting",
             "quoted replies": f"any news?\n\nOn Tue, {n} <{e}> wrote:\n> please call me, {p}\n> > thanks", "signatures": f"see above\n\n--\n{n}\n{a}\nTel. {p}\n{e}"}
    return draw(market, texts[name], language, customer=customer if name == "signatures" or rng.random() < 0.5 else {})


@group("file names")
def _(rng):
    customer = known(rng, language := rng.choice(["en", "de", "sv", "nl", "fr"]), market := load("adversarial")["markets"][language])
    n = mark("name", customer["name"].replace(" ", rng.choice("_-.")))
    return draw(market, rng.choice([f"see Invoice_{n}_{rng.randint(1000, 9999)}.pdf", f"attached: {n}-retour.jpg", f"IMG_{rng.randint(1000, 9999)} and CV.{n}.docx", f"scan_{mark('email', customer['email'])}.png"]), language, customer=customer)


@group("usernames like the customer's name")
def _(rng):
    customer = known(rng, language := rng.choice(["en", "de", "sv", "nl"]), market := load("adversarial")["markets"][language])
    first, last = (customer["name"].split()[i].lower() for i in (0, -1))
    nick = rng.choice([f"{first}{last}", f"{first}.{last}", f"{first}_{last}{values.digits(rng, 2)}", f"{last}{first}", f"{first}{last}{rng.randint(1960, 2004)}"])
    return draw(market, rng.choice([f"my username is {mark('name', nick)}", f"i log in as {mark('name', nick)}", f"insta: @{mark('name', nick)}", f"user {mark('name', nick)} locked", f"skype {mark('name', nick)}"]), language, customer=customer)


@group("same first name, or same surname, twice")
def _(rng):
    customer = known(rng, language := rng.choice(["en", "de", "sv"]), market := load("adversarial")["markets"][language])
    first, last = customer["name"].split()[0], customer["name"].split()[-1]
    other = person(rng, language)[0]
    if rng.random() < 0.5:
        return draw(market, [("assistant", f"Hi {mark('name', first)}, my name is {mark('name', first)} too!"), ("user", f"haha hi {mark('name', first)}")], language, customer=customer, agents=[{"name": first}])
    return draw(market, [("user", f"I'm {mark('name', f'{first} {last}')}, the parcel is for {mark('name', f'{other} {last}')}"), ("assistant", f"Thank you Mrs {mark('name', last)}. And {mark('name', other)} lives there too?")], language, customer=customer)


@group("two languages in one turn")
def _(rng):
    market = rng.choice(["SE", "DE", "NL", "FI", "DK", "NO", "BE", "CH"])
    one, two = carried(rng, "phone", number(rng, "phone", market), market), carried(rng, "email", values.email(rng, market), "GB")
    return draw(market, f"{one['messages'][0][1]} {rng.choice(['or', 'oder', 'eller', '-', 'btw'])} {two['messages'][0][1]}")


@group("speech to text, no case, no marks")
def _(rng):
    language = rng.choice(["en", "de", "sv"])
    market = load("adversarial")["markets"][language]
    customer = known(rng, language, market)
    spelled = obfuscation.spell(values.write_phone(values.phone(rng, market, True), "compact"), language, rng, "pairs").replace(",", "")
    address = obfuscation.email_words(customer["email"], *load("adversarial")["at_dot"][language][0])
    n = mark("name", customer["name"].lower())
    return draw(market, {"en": f"yeah hi this is {n} um my number is {mark('phone', spelled)} and the email is {mark('email', address.lower())} thank you",
                         "de": f"ja hallo hier ist {n} äh meine nummer ist {mark('phone', spelled)} und die mail ist {mark('email', address.lower())} danke",
                         "sv": f"ja hej det är {n} eh mitt nummer är {mark('phone', spelled)} och mejlen är {mark('email', address.lower())} tack"}[language], language, customer=customer)


@group("merchants with people's names (keep)")
def _(rng):
    words = load("adversarial")
    return draw("GB", fill(rng.choice(words["merchant_carriers"]), rng, {"x": mark("keep", rng.choice(words["merchants"]))}))


@group("order numbers that pass Luhn (keep)")
def _(rng):
    body = rng.choice(["100", "200", "71", "80", "90"]) + values.digits(rng, rng.choice([8, 9, 10]))
    number_ = mark("keep", body + luhn.calc_check_digit(body))
    return draw("GB", rng.choice([f"order number {number_} is late", f"Bestellnummer {number_}", f"it's about order {number_}", f"ordernummer {number_} har inte kommit", f"commande n° {number_}", f"bestelnummer {number_}"]))
