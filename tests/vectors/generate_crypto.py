"""Write crypto.json: known answers of the base layer, each by another road than the code under test.

HKDF and GHASH from their definitions, keystreams as AES-ECB of counters, shares and packed vectors with Python integers. HPKE draws its own
randomness, so the boxes are recorded once and kept; delete a box from the file to have it sealed anew. Run from the repository root:

    python tests/vectors/generate_crypto.py
"""

import hashlib
import hmac
import json
from pathlib import Path

from cryptography.hazmat.primitives import hpke
from cryptography.hazmat.primitives.asymmetric.ed25519 import Ed25519PrivateKey
from cryptography.hazmat.primitives.asymmetric.mlkem import MLKEM768PrivateKey
from cryptography.hazmat.primitives.asymmetric.x25519 import X25519PrivateKey
from cryptography.hazmat.primitives.ciphers import Cipher, algorithms, modes

FILE = Path(__file__).with_name("crypto.json")
PRIME = 2**31 - 1
CHUNK_BYTES = 256 * 1024
SERVER_ID = 2**64 - 1


def pseudorandom(name, length):
    """Bytes that depend on a name only."""
    return hashlib.shake_256(f"secagg test vectors {name}".encode()).digest(length)


def encoded(label, items):
    """The label and the items, one to one."""
    purpose = b"secagg/1 " + label
    parts = [bytes([len(purpose)]), purpose]
    for item in items:
        if isinstance(item, int):
            parts += [b"\x00", item.to_bytes(8, "big")]
        else:
            parts += [b"\x01", len(item).to_bytes(4, "big"), item]
    return b"".join(parts)


def hkdf(secret, info, salt, length):
    """HKDF-SHA256 as RFC 5869 defines it."""
    extracted = hmac.digest(salt, secret, "sha256")
    block, output = b"", b""
    for counter in range(1, -(-length // 32) + 1):
        block = hmac.digest(extracted, block + info + bytes([counter]), "sha256")
        output += block
    return output[:length]


def aes(key, blocks):
    """AES of whole blocks, each on its own."""
    return Cipher(algorithms.AES(key), modes.ECB()).encryptor().update(blocks)  # noqa: S305 - the block cipher itself


def keystream(key, length):
    """AES of the counters from zero up."""
    counters = b"".join(count.to_bytes(16, "big") for count in range(-(-length // 16)))
    return aes(key, counters)[:length]


def gmac(key, body):
    """The GCM tag of no plaintext and this associated data, with GHASH bit by bit (SP 800-38D, zero nonce of 12 bytes)."""
    hash_key = int.from_bytes(aes(key, bytes(16)), "big")
    padded = body + bytes(-len(body) % 16) + (8 * len(body)).to_bytes(8, "big") + bytes(8)
    state = 0
    for start in range(0, len(padded), 16):
        state ^= int.from_bytes(padded[start : start + 16], "big")
        product, operand = 0, hash_key
        for place in range(127, -1, -1):
            product ^= operand if state >> place & 1 else 0
            operand = operand >> 1 ^ (0xE1 << 120 if operand & 1 else 0)
        state = product
    return (state ^ int.from_bytes(aes(key, bytes(15) + b"\x01"), "big")).to_bytes(16, "big")


def limbs_of(secret):
    """Eight limbs of 29 bits and one of 24."""
    value = int.from_bytes(secret, "little")
    return [value >> 29 * place & 2**29 - 1 for place in range(9)]


def shares_of(secrets, threshold, points, entropy):
    """Every share by Horner's rule: [secret][point][limb]."""
    words = [int.from_bytes(entropy[i : i + 4], "little") % 2**31 for i in range(0, len(entropy), 4)]
    columns = 9 * len(secrets)
    count = (threshold - 1) * columns
    first, spare = words[:count], iter(words[count:])
    while PRIME in first:
        for place in [place for place, word in enumerate(first) if word == PRIME]:
            first[place] = next(spare)
    limbs = [limb for secret in secrets for limb in limbs_of(secret)]
    rows = [limbs] + [first[power * columns : (power + 1) * columns] for power in range(threshold - 1)]
    result = []
    for secret in range(len(secrets)):
        for point in points:
            share = []
            for column in range(9 * secret, 9 * secret + 9):
                value = 0
                for row in reversed(rows):
                    value = (value * point + row[column]) % PRIME
                share.append(value)
            result.append(share)
    return [result[i : i + len(points)] for i in range(0, len(result), len(points))]


def packed(words, bits):
    """One big integer for each column, its words dealt to the rows."""
    width = next(width for width in (8, 16, 32, 64) if bits <= width)
    if bits == width:
        return b"".join(word.to_bytes(width // 8, "little") for word in words)
    lane = -(-len(words) // width)
    padded = list(words) + [0] * (width * lane - len(words))
    columns = [sum(padded[j * lane + c] << j * bits for j in range(width)) for c in range(lane)]
    rows = [[column >> width * row & 2**width - 1 for column in columns] for row in range(bits)]
    return b"".join(word.to_bytes(width // 8, "little") for row in rows for word in row)


def key_pair(suite, mlkem_seed, x25519_seed):
    """The library's private key and the raw public key."""
    x25519 = X25519PrivateKey.from_private_bytes(x25519_seed)
    if suite == "classical":
        return x25519, x25519.public_key().public_bytes_raw()
    mlkem = MLKEM768PrivateKey.from_seed_bytes(mlkem_seed)
    public = mlkem.public_key().public_bytes_raw() + x25519.public_key().public_bytes_raw()
    return hpke.MLKEM768X25519PrivateKey(mlkem, x25519), public


def kdf_section():
    """Derivations and digests."""
    t1, secret = pseudorandom("t1", 32), pseudorandom("secret", 32)
    cases = [
        ("PAIR_SEED", b"pair seed", [t1, 0, 2**64 - 2], 32),
        ("MASK_KEY_MLKEM", b"mask key ML-KEM-768", [], 64),
        ("SELF_STREAM", b"self stream", [0], 32),
        ("CONTEXT", b"context", [b"", b"a", 1, bytes(300)], 1),
    ]
    derive, digest = [], []
    for label, purpose, items, length in cases:
        listed = [item if isinstance(item, int) else {"hex": item.hex()} for item in items]
        info = encoded(purpose, items)
        derive.append(
            {
                "label": label,
                "secret": secret.hex(),
                "context": listed,
                "salt": t1.hex(),
                "output": hkdf(secret, info, t1, length).hex(),
            }
        )
        digest.append({"label": label, "items": listed, "output": hashlib.sha256(info).hexdigest()})
    return {"derive": derive, "digest": digest}


def prg_section():
    """Streams of every word around the boundaries of a chunk, and tags."""
    key = pseudorandom("stream", 32)
    streams = []
    for size in (1, 2, 4, 8):
        chunk = CHUNK_BYTES // size
        for length in (0, 1, 2, 3, chunk - 1, chunk, chunk + 1, 2 * chunk + 1):
            data = keystream(key, length * size)
            words = [int.from_bytes(data[i : i + size], "little") for i in range(0, len(data), size)]
            streams.append(
                {
                    "key": key.hex(),
                    "dtype": f"uint{8 * size}",
                    "length": length,
                    "last_words": words[-3:],
                    "sha256_little_endian": hashlib.sha256(data).hexdigest(),
                }
            )
    tags = [
        {"key": key.hex(), "body": body.hex(), "tag": gmac(key, body).hex()}
        for key, body in ((bytes(32), b""), (key, b"a"), (key, pseudorandom("body", 333)))
    ]
    return {"stream": streams, "gmac": tags}


def sharing_section():
    """Sharing with fixed entropy, once with coefficients that are rejected."""
    secrets = [pseudorandom("root", 32), b"\xff" * 32]
    plain = pseudorandom("coefficients", 4 * 2 * 18)
    # Words 0 and 35 are p, with and without the dropped bit; the first redraw of word 0 is p again.
    rejecting = (
        b"\xff\xff\xff\x7f" + plain[4:-4] + b"\xff\xff\xff\xff" + b"\xff\xff\xff\xff" + pseudorandom("redraws", 8)
    )
    points = [1, 2, 5, PRIME - 1]
    return {
        "share": [
            {
                "secrets": [secret.hex() for secret in secrets],
                "threshold": 3,
                "points": points,
                "entropy": entropy.hex(),
                "shares": shares_of(secrets, 3, points, entropy),
            }
            for entropy in (plain, rejecting)
        ]
    }


def packing_section():
    """Vectors with their largest values side by side and alone."""
    vectors = []
    for bits in (2, 5, 8, 9, 16, 22, 31, 32, 33, 63, 64):
        for length in (0, 1, 2, 33, 65):
            data = pseudorandom(f"words {bits} {length}", 8 * length)
            words = [int.from_bytes(data[i : i + 8], "little") % 2**bits for i in range(0, len(data), 8)]
            words[: length // 2] = [2**bits - 1] * (length // 2)
            vectors.append({"bits": bits, "words": words, "packed": packed(words, bits).hex()})
    return {"pack": vectors}


def box_section(recorded):
    """One box for each suite, and what must not open."""
    mlkem_seed, x25519_seed, binding = pseudorandom("mlkem", 64), pseudorandom("x25519", 32), pseudorandom("t1", 32)
    info = b"secagg/1" + b"\x02" + binding + (7).to_bytes(8, "big") + (2**63 + 1).to_bytes(8, "big")
    plaintext = pseudorandom("plaintext", 72)
    known = {entry["suite"]: entry["box"] for entry in recorded}
    boxes, bad_boxes, bad_keys = [], [], []
    for suite, kem in (("hybrid", hpke.KEM.MLKEM768_X25519), ("classical", hpke.KEM.X25519)):
        private, public = key_pair(suite, mlkem_seed, x25519_seed)
        sealed = known.get(suite) or (
            hpke.Suite(kem, hpke.KDF.HKDF_SHA256, hpke.AEAD.AES_256_GCM)
            .encrypt(plaintext, private.public_key(), info)
            .hex()
        )
        seeds = {"mlkem_seed": mlkem_seed.hex() if suite == "hybrid" else None, "x25519_seed": x25519_seed.hex()}
        bound = {"purpose": 2, "binding": binding.hex(), "sender": 7, "recipient": 2**63 + 1}
        good = {"suite": suite, **seeds, **bound, "box": sealed}
        boxes.append({**good, "public": public.hex(), "plaintext": plaintext.hex()})
        changes = {
            "purpose": {"purpose": 3},
            "binding": {"binding": bytes(32).hex()},
            "sender": {"sender": 8},
            "recipient": {"recipient": SERVER_ID},
            "key": {"x25519_seed": pseudorandom("another", 32).hex()},
            "first byte": {"box": f"{int(sealed[:2], 16) ^ 1:02x}" + sealed[2:]},
            "last byte": {"box": sealed[:-2] + f"{int(sealed[-2:], 16) ^ 128:02x}"},
            "one byte short": {"box": sealed[:-2]},
            "one byte long": {"box": sealed + "00"},
            "empty": {"box": ""},
        }
        bad_boxes += [{"flaw": flaw, **good, **change, "error": "SealError"} for flaw, change in changes.items()]
        flaws = {
            "zero X25519 key": public[:-32] + bytes(32),
            "one byte short": public[:-1],
            "one byte long": public + b"\x00",
            "empty": b"",
        }
        if suite == "hybrid":
            flaws["ML-KEM coefficients above the modulus"] = b"\xff" * 1184 + public[1184:]
        bad_keys += [
            {"flaw": flaw, "suite": suite, "public": key.hex(), "error": "SealError"} for flaw, key in flaws.items()
        ]
    return {"box": boxes, "bad_box": bad_boxes, "bad_public_key": bad_keys}


def bad_section():
    """Shares and packed vectors that are none."""
    good = [[1] * 9, [2] * 9]
    too_large = [[2**29, *[0] * 8], [2**29, *[0] * 8]]
    last_too_large = [[*[0] * 8, 2**24], [*[0] * 8, 2**24]]
    limb = (1).to_bytes(4, "little")
    return {
        "bad_share": [
            {"flaw": "one byte short", "share": (limb * 9)[:-1].hex(), "error": "DecodeError"},
            {"flaw": "one limb long", "share": (limb * 10).hex(), "error": "DecodeError"},
            {"flaw": "a limb of p", "share": (limb * 8 + PRIME.to_bytes(4, "little")).hex(), "error": "DecodeError"},
        ],
        "bad_shares": [
            {"flaw": "the same point twice", "points": [3, 3], "shares": good, "error": "ShareError"},
            {"flaw": "point zero", "points": [0, 1], "shares": good, "error": "ShareError"},
            {"flaw": "point p", "points": [1, PRIME], "shares": good, "error": "ShareError"},
            {"flaw": "a share too many", "points": [1], "shares": good, "error": "ShareError"},
            {"flaw": "a limb of p", "points": [1, 2], "shares": [good[0], [*[0] * 8, PRIME]], "error": "ShareError"},
            {"flaw": "first limb of 30 bits", "points": [1, 2], "shares": too_large, "error": "ShareError"},
            {"flaw": "last limb of 25 bits", "points": [1, 2], "shares": last_too_large, "error": "ShareError"},
        ],
        "bad_packed": [
            {"flaw": "one byte short", "bits": 22, "length": 1, "packed": bytes(87).hex(), "error": "DecodeError"},
            {"flaw": "one byte long", "bits": 22, "length": 1, "packed": bytes(89).hex(), "error": "DecodeError"},
            {"flaw": "not empty", "bits": 22, "length": 0, "packed": "00", "error": "DecodeError"},
            {"flaw": "whole words short", "bits": 32, "length": 2, "packed": bytes(7).hex(), "error": "DecodeError"},
            {
                "flaw": "the first padding entry is one",
                "bits": 22,
                "length": 1,
                "packed": packed([5, 1], 22).hex(),
                "error": "DecodeError",
            },
            {
                "flaw": "the last padding bit is set",
                "bits": 22,
                "length": 33,
                "packed": packed([0] * 63 + [2**21], 22).hex(),
                "error": "DecodeError",
            },
        ],
    }


def signature_section():
    """A client's and the server's signature, and what must not pass."""
    seeds = {5: pseudorandom("client", 32), SERVER_ID: pseudorandom("server", 32)}
    message = pseudorandom("message", 100)
    keys = {party: Ed25519PrivateKey.from_private_bytes(seed) for party, seed in seeds.items()}
    good = []
    for party, key in keys.items():
        signature = key.sign(encoded(b"frame signature", []) + message)
        good.append(
            {
                "seed": seeds[party].hex(),
                "public": key.public_key().public_bytes_raw().hex(),
                "party": party,
                "label": "SIGNATURE_FRAME",
                "message": message.hex(),
                "signature": signature.hex(),
            }
        )
    bad = []
    for entry, fault in zip(good, ("SignatureError", "ServerFault"), strict=True):
        signature = bytes.fromhex(entry["signature"])
        changes = {
            "another label": {"label": "SIGNATURE_STATEMENT"},
            "another message": {"message": (message + b"\x00").hex()},
            "altered": {"signature": (bytes([signature[0] ^ 1]) + signature[1:]).hex()},
            "one byte short": {"signature": signature[:-1].hex()},
            "empty": {"signature": ""},
            "unknown party": {"party": 6},
        }
        for flaw, change in changes.items():
            error = "DecodeError" if flaw == "unknown party" else fault
            bad.append({"flaw": flaw, **entry, **change, "error": error})
    return {"signature": good, "bad_signature": bad}


def build(recorded_boxes):
    """Everything; boxes come from `recorded_boxes` where it has them."""
    return {
        "provenance": "tests/vectors/generate_crypto.py",
        **kdf_section(),
        **prg_section(),
        **sharing_section(),
        **packing_section(),
        **box_section(recorded_boxes),
        **signature_section(),
        **bad_section(),
    }


def rendered(sections):
    """JSON with one line for each entry."""
    lines = []
    for name, entries in sections.items():
        if isinstance(entries, str):
            lines.append(f" {json.dumps(name)}: {json.dumps(entries)}")
        else:
            inner = ",\n".join(f"  {json.dumps(entry)}" for entry in entries)
            lines.append(f" {json.dumps(name)}: [\n{inner}\n ]")
    return "{\n" + ",\n".join(lines) + "\n}\n"


if __name__ == "__main__":
    recorded = json.loads(FILE.read_text("utf-8"))["box"] if FILE.exists() else []
    FILE.write_text(rendered(build(recorded)), "utf-8")
