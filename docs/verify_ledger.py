# ruff: noqa: ANN001, ANN002, ANN201, ANN204, D101, D102, D103, INP001, T201
"""Checks a privacy ledger without any of the code that writes it; docs/ledger.md describes the format.

Usage: python verify_ledger.py LEDGER.jsonl [HEAD.json ...] [--key=PARTY=HEX ...]
Needs Python 3.11 or later and `cryptography`. Exit code: 0 holds, 1 cannot be read, 2 changed (bytes, chain, heads),
3 contradiction (the chain holds, and the numbers do not follow from each other).
"""

import base64
import hashlib
import json
import math
import sys
from collections import Counter
from decimal import Decimal
from functools import cache
from pathlib import Path

from cryptography.hazmat.primitives.asymmetric.ed25519 import Ed25519PublicKey

CHANGED, WRONG = 2, 3
COMMON = {"v", "seq", "prev", "kind", "plan", "versions"}
SPENT = COMMON | {"run", "mu", "private", "epsilon", "epsilon_total"}
KEYS = {
    "plan": COMMON | {"body"},
    "reserve": SPENT | {"round", "attempt", "data_set", "draws", "sigma_eff"},
    "commit": SPENT | {"round", "closes", "survivors", "transcript", "sigma_eff"},
    "recovered": SPENT | {"draws", "torn"},
}
FORMS = {int: "v seq round attempt draws closes", str: "run transcript torn", bool: "private", list: "survivors"}
FORMS[float] = "sample_rate"  # only where it is below 1
ORDERS = (*range(2, 65), 128, 256, 512)


def need(holds, code, text):
    if not holds:
        raise AssertionError(code, text)


def canonical(x):  # RFC 8785
    if isinstance(x, dict):
        names = sorted(x, key=lambda name: name.encode("utf-16-be"))
        return "{" + ",".join(f"{canonical(name)}:{canonical(x[name])}" for name in names) + "}"
    if x is None or isinstance(x, bool | str | list):
        return "[" + ",".join(map(canonical, x)) + "]" if isinstance(x, list) else json.dumps(x, ensure_ascii=False)
    need(abs(x) < (1 << 53 if isinstance(x, int) else math.inf), CHANGED, "a number of another form")
    sign, digits, exponent = Decimal(repr(x or 0)).normalize().as_tuple()
    text, point = "".join(map(str, digits)), len(digits) + exponent
    if len(text) <= point <= 21:
        text += "0" * (point - len(text))
    elif 0 < point <= 21:
        text = f"{text[:point]}.{text[point:]}"
    elif -6 < point <= 0:
        text = f"0.{'0' * -point}{text}"
    else:
        text = f"{text[0]}{'.' * (len(text) > 1)}{text[1:]}e{point - 1:+d}"
    return "-" * sign + text


def parse(data):  # canonical JSON has no key twice, and one way to write each number
    whole = json.loads(data.decode(), parse_int=lambda text: float(text) if len(text) > 15 else int(text))
    need(isinstance(whole, dict) and canonical(whole).encode() == data, CHANGED, "not a canonical JSON object")
    return whole


def log_phi(x):  # logarithm of the normal distribution function at -x
    if x < 25:
        return math.log(math.erfc(x / math.sqrt(2)) / 2)
    return -x * x / 2 - math.log(x * math.sqrt(2 * math.pi)) + math.log1p(-(x**-2) + 3 * x**-4 - 15 * x**-6)


def log_sum(logs):
    top = max(logs)
    return top + math.log(sum(math.exp(each - top) for each in logs))


def moment(a, mu, q):  # a record added: log E[(1 - q + q P/Q)^a] of Gaussians P, Q that are mu apart, a binomial sum
    coins = ((k, math.log(math.comb(a, k)) + k * math.log(q) + (a - k) * math.log1p(-q)) for k in range(a + 1))
    return log_sum([each + k * (k - 1) * mu * mu / 2 for k, each in coins])


def moment_replaced(a, mu, q):  # the mean at +1 or 0 against -1 or 0: the trapezoidal rule
    step, low = 0.45 / mu**2 / math.sqrt(a / 4 + mu**-2), -1 - 12 / mu
    if a - 2 * low - 1 > 50_000 * step:
        return math.inf
    zero, one, logs = math.log1p(-q), math.log(q), []
    for x in (low + i * step for i in range(math.ceil((a - 2 * low - 1) / step))):
        up, down = (log_sum([zero, one + (2 * mean * x - 1) * mu * mu / 2]) for mean in (1, -1))
        logs.append(a * up + (1 - a) * down - x * x * mu * mu / 2)
    return log_sum(logs) + math.log(step * mu / math.sqrt(2 * math.pi))


@cache
def renyi(mu, rate, replaced):  # divergences of one release, never above those of a release without coins
    full, of = [a * (mu * (1 + replaced)) ** 2 / 2 for a in ORDERS], moment_replaced if replaced else moment
    return full if rate == 1 else [min(each, of(a, mu, rate) / (a - 1)) for a, each in zip(ORDERS, full, strict=True)]


def promised(route, epsilon, spent):  # is (epsilon, delta) promised after so much was spent?
    delta, squares, draws, curve = spent
    left = delta - (1 + math.exp(min(700, epsilon))) * draws * 2.0**-100  # the noise sampler's part is paid first
    if left <= 0 or route == "closed_form":
        t, half = epsilon / math.sqrt(squares), math.sqrt(squares) / 2
        return left > 0 and math.exp(log_phi(t - half)) - math.exp(min(700, epsilon + log_phi(t + half))) <= left
    pairs = zip(ORDERS, curve, strict=True)
    return max(0.0, min(r + math.log1p(-1 / a) - math.log(left * a) / (a - 1) for a, r in pairs)) <= epsilon


def check_epsilon(told, name, *spent):
    need(told.keys() == {"closed_form", "rdp"}, WRONG, f"{name} lacks a route")
    for route, bound in told.items():
        if bound is None or spent[1] == 0:  # no bound, or nothing spent
            right = bound == 0 if spent[1] == 0 else not any(promised(route, e / 4, spent) for e in range(2800))
        else:
            low, high = bound * (1 - 1e-6) - 1e-9, bound * (1 + 1e-6) + 1e-9
            right = promised(route, high, spent) and (low <= 0 or not promised(route, low, spent))
        need(right, WRONG, f"{name} by {route} = {bound!a} does not follow from the entries")


class Books:
    def __init__(self):
        self.plans, self.open, self.sums, self.hashes, self.data_set = {}, {}, {}, [], ...

    def book(self, line):
        entry, seq, kind = (found := parse(line)), len(self.hashes), found["kind"]
        optional = set() if kind == "plan" else {"sample_rate"}
        need(entry.keys() - optional == KEYS.get(kind), CHANGED, "not an entry: wrong keys")
        typed = all(type(entry[name]) is form for form in FORMS for name in FORMS[form].split() if name in entry)
        need(typed and entry["v"] == 1, CHANGED, "a value of another type, or another version of the format")
        need(entry["seq"] == seq, CHANGED, f"seq is {entry['seq']!a}, and {seq} belongs here")
        need(entry["prev"] == (self.hashes or ["0" * 64])[-1], CHANGED, "prev is not the hash of the line before")
        plan = self.plans.get(entry["plan"])
        need(plan or kind == "plan" or (kind == "recovered" and not self.plans), WRONG, "no such plan stands before")
        instead = getattr(self, kind)(entry, plan)
        self.hashes.append(hashlib.sha256(line).hexdigest())
        for name, book in (("epsilon", entry["run"]), ("epsilon_total", ...)) if plan else ():
            sums, draws = self.sums.get(book, (Counter(), 0))
            group, rate = (plan["unit"], plan["relation"]), entry.get("sample_rate", 1)
            for mu, sign in (entry["mu"], 1), (instead, -1):  # without coins mu**2 times what a release of mu = 1 costs
                sums[(group, mu, rate) if mu and rate < 1 else (group, 1, 1)] += (
                    sign if rate < 1 and mu else sign * mu**2
                )
            self.sums[book] = sums, draws + entry.get("draws", 0)
            one = len({kind[0] for kind in sums}) < 2
            twice = [(n, mu, rate, not one and g[1] != "replace-one") for (g, mu, rate), n in sums.items() if n]
            squares = sum(n * (mu * (1 + double)) ** 2 for n, mu, _, double in twice)
            curve = [sum(each) for each in zip(*([n * r for r in renyi(*kind)] for n, *kind in twice), strict=True)]
            check_epsilon(entry[name], name, plan["delta"], max(0.0, squares), self.sums[book][1], curve)

    def plan(self, entry, known):
        right = hashlib.sha256(canonical(entry["body"]).encode()).hexdigest() == entry["plan"]
        need(right and not known, WRONG, "not the hash of the plan, or a plan twice")
        self.plans[entry["plan"]] = entry["body"]

    def noise(self, entry, plan, survivors):
        rate = entry.get("sample_rate", 1)
        need(rate == plan.get("sample_rate", 1), WRONG, f"sample_rate = {rate} does not follow from the plan")
        # whole grid steps; at the floor the plan's mu; each survivor adds noise
        floor = plan["sites"] - plan["dropouts"]
        need(floor <= survivors <= plan["sites"], WRONG, f"{survivors} survivors are not what the plan is for")
        steps = round(entry["mu"] * entry["sigma_eff"])
        share = (entry["sigma_eff"] ** 2 + 9) / (survivors - plan["colluders"])  # each survivor's variance
        mu = steps / math.sqrt(share * (floor - plan["colluders"]) - 9)
        whole = math.isclose(entry["mu"] * entry["sigma_eff"], steps, rel_tol=1e-9)
        right = whole and share > 63.999 and math.isclose(mu, 1 / plan["noise_multiplier"], rel_tol=1e-9)
        need(right, WRONG, "mu and sigma_eff do not follow from the plan and the survivors")
        return steps

    def reserve(self, entry, plan):
        entry["steps"] = self.noise(entry, plan, plan["sites"] - plan["dropouts"])
        draws = plan["sites"] * (plan["dimension"] + ("adaptive" in plan))  # an adaptive clip norm sends one bit more
        need(entry["draws"] == draws, WRONG, "draws do not follow from the plan")
        need(self.data_set in {..., entry["data_set"]}, WRONG, "another data set")
        self.data_set, self.open[entry["seq"]] = entry["data_set"], entry
        return 0.0

    def commit(self, entry, plan):
        held = self.open.pop(entry["closes"], {})
        same = all(held.get(name) == entry[name] for name in ("plan", "run", "round", "private"))
        need(same, WRONG, "no open reservation that it could close")
        survivors = len(set(entry["survivors"]))
        same = self.noise(entry, plan, survivors) == held["steps"] and survivors == len(entry["survivors"])
        need(same, WRONG, "another sensitivity than was reserved, or a survivor twice")
        return held["mu"]

    def recovered(self, entry, _plan):
        counts = not base64.b64decode(entry["torn"]).startswith((b'{"body":', b'{"closes":'))
        most = max((1 / plan["noise_multiplier"] for plan in self.plans.values()), default=0.0)
        right = math.isclose(entry["mu"], counts * most, rel_tol=1e-9)
        rates = [plan.get("sample_rate", 1) for plan in self.plans.values()] or [1]
        need(right and entry.get("sample_rate", 1) == max(rates), WRONG, "an interrupted write must count")
        return 0.0


def check_heads(path, rest, hashes):
    keys, signed = dict(each[6:].split("=", 1) for each in rest if each.startswith("--key=")), set()
    own = path.with_name(f"{path.stem}.head.json")
    for file in [own] * own.exists() + [Path(each) for each in rest if not each.startswith("--key=")]:
        whole = parse(file.read_bytes().removesuffix(b"\n"))
        heads, writer = (whole["heads"], whole["writer"]) if "heads" in whole else ({"writer": whole}, "writer")
        known = whole["format"] in {"privacy-ledger-head/1", "privacy-ledger-heads/1"}
        need(known and writer in heads, CHANGED, f"{file}: another format, or its writer has not signed")
        for party, head in heads.items():
            name, seq = f"{file} ({party!a})", head["seq"]
            message = {"format": "privacy-ledger-head/1", "hash": head["hash"], "key": head["key"], "seq": seq}
            need(head == message | {"signature": head["signature"]}, CHANGED, f"{name}: not a head")
            key = Ed25519PublicKey.from_public_bytes(bytes.fromhex(head["key"]))
            key.verify(bytes.fromhex(head["signature"]), canonical(message).encode())
            need(0 <= seq < len(hashes), CHANGED, f"the tail was cut: {name} signs {seq + 1} of {len(hashes)} entries")
            need(hashes[seq] == head["hash"], CHANGED, f"line {seq + 1}: a fork: {name} signs another entry here")
            late = file == own and party == writer and seq < len(hashes) - 2  # a crash leaves it one behind
            need(not late, CHANGED, f"{name} signs {seq + 1} of {len(hashes)} entries: the rest is not signed")
            known = [who for who, key in keys.items() if key == head["key"]]
            need(not keys or known, CHANGED, f"{name}: signed by a key that is not pinned")
            signed.update(known)
            print(f"{known[0] if known else ascii(party) + ' (key not pinned)'} signs {seq + 1} entries")
    need(signed == keys.keys(), CHANGED, f"no head by {', '.join(keys.keys() - signed)}")
    return "" if own.exists() else "; no signed head: whether the tail was cut cannot be seen"


def main(ledger, *rest):
    books, where = Books(), ""
    try:
        *lines, torn = Path(ledger).read_bytes().split(b"\n")
        for at, line in enumerate(lines):
            where = f"line {at + 1}: "
            books.book(line)
        where = ""
        note = check_heads(Path(ledger), rest, books.hashes) + "; a torn last line" * bool(torn)
    except AssertionError as error:
        code, text = error.args
    except OSError as error:
        code, text = 1, str(error)
    except Exception as error:  # noqa: BLE001 - whatever foreign bytes provoke: a wrong type, a missing key, a wrong signature
        code, text = CHANGED, f"not of the documented form, or not signed by the key it names: {error!r:.80}"
    else:
        code, text = 0, f"{len(lines)} entries, {len(books.open)} reservations open{note}"
    print(f"{('HOLDS', 'UNREADABLE', 'CHANGED', 'CONTRADICTION')[code]}: {where}{text}")
    return code


if __name__ == "__main__":
    sys.exit(main(*sys.argv[1:]) if len(sys.argv) > 1 else __doc__)
