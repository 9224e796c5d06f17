"""The cases of one bad_*.json: what every signed message, and every set of clients, is refused for whatever it says."""

from generate_round import COHORT, SERVER
from reference import packed, signed

A, B, C, D = COHORT
STRANGER = 77
# A point of order eight: its exchange gives zero with every clamped scalar.
LOW_ORDER = bytes.fromhex("e0eb7a7c3b41b8ae1656e3faf19fc46ada098deb9c32b1fd866205165f49b800")


def flipped(data, place=-1, bit=1):
    """One bit changed."""
    out = bytearray(data)
    out[place] ^= bit
    return bytes(out)


def long_array(encoded):
    """The same MessagePack array with its length in two bytes where one nibble would do."""
    return b"\xdc" + (encoded[0] & 15).to_bytes(2, "big") + encoded[1:]


class Cases:
    """The cases of one file, all for one receiver in one phase."""

    def __init__(self, rnd, to, client, phase):
        self.rnd, self.found = rnd, []
        self.where = {"to": to, "client": client, "phase": phase}

    def add(self, flaw, frame, error, words, **more):
        """One case: who gets what, and the error with some words of its message."""
        self.found.append({"flaw": flaw, **self.where, "frame": frame.hex(), "error": error, "words": words, **more})

    def header(self, kind, name, sender, fields, wrap=lambda frame: frame):
        """What every signed message is refused for, whatever it says.

        Args:
            kind: The message's tag.
            name: Its name in errors.
            sender: Who signs it.
            fields: Its right body.
            wrap: What goes around the signed frame.
        """
        rnd, server = self.rnd, sender == SERVER
        fault = "ServerFault" if server else "DecodeError"
        binding = rnd.context if kind in ("advertise", "advertised", "decline") else rnd.t1
        other = rnd.t1 if binding == rnd.context else rnd.context
        good = rnd.frame(kind, binding, sender, *fields)
        body = [kind, 1, binding, sender, *fields]
        seed = rnd.seed_of(sender)
        thief = B if server or sender != B else D
        odd = {
            "version 2": ([kind, 2, *body[2:]], f"{name}: "),
            "version 0": ([kind, 0, *body[2:]], f"{name}: "),
            "another kind": ([{"confirm": "unmask"}.get(kind, "confirm"), *body[1:]], f"{name}: "),
            "no kind": (body[1:], f"{name}: "),
            "one field short": (body[:-1], f"{name}: "),
            "one field too many": ([*body, 0], f"{name}: "),
            "a binding of 31 bytes": ([kind, 1, binding[:-1], *body[3:]], f"{name}: "),
            "bound to context and T1 exchanged": ([kind, 1, other, *body[3:]], "bound to another round"),
            "bound to another round": ([kind, 1, flipped(binding), *body[3:]], "bound to another round"),
            "a negative sender": ([kind, 1, binding, -1, *fields], f"{name}: "),
            "another sender": ([kind, 1, binding, thief, *fields], f"sender {thief} instead of {sender}"),
        }
        for flaw, (changed, words) in odd.items():
            self.add(f"header: {flaw}", wrap(signed(seed, packed(changed))), fault, words)
        self.add("header: a sender above u64", wrap(signed(seed, _wide_sender(body))), fault, f"{name}: ")
        payload = long_array(packed(body))
        self.add(
            "header: the payload not in shortest form", wrap(signed(seed, payload)), fault, f"{name}: not in canonical"
        )
        self.add("header: the frame not in shortest form", wrap(long_array(good)), fault, "Signed: not in canonical")
        self.add(
            "header: one byte of the payload behind it", wrap(signed(seed, packed(body) + b"\0")), fault, f"{name}: "
        )
        self.add("header: one byte behind the frame", wrap(good + b"\0"), fault, "Signed: ")
        self.add("header: one byte short", wrap(good[:-1]), fault, "Signed: ")
        self.add("header: a signature of 63 bytes", wrap(packed([packed(body), bytes(63)])), fault, "Signed: ")
        stolen = "ServerFault" if server else "SignatureError"
        words = "wrong signature (SIGNATURE_FRAME)"
        self.add("header: another's signature", wrap(signed(rnd.seed_of(thief), packed(body))), stolen, words)
        label = b"statement signature"
        self.add("header: signed as a statement", wrap(signed(seed, packed(body), label)), stolen, words)
        self.add("header: the signature altered", wrap(flipped(good)), stolen, words)

    def members(self, name, wrap):
        """What a set that the server publishes is refused for by its reader."""
        for flaw, members, words in (
            ("not sorted", (B, A, *COHORT[2:]), f"{name} is not sorted"),
            ("one client twice", (A, A, *COHORT[2:]), f"{name} is not sorted"),
            ("a stranger", (A, STRANGER, *COHORT[2:]), f"{name} contains [{STRANGER}]"),
            ("without the reader", COHORT[1:], f"{name} leaves out client {A}"),
            ("too small", COHORT[:2], f"{name} has 2 members"),
            ("empty", (), f"{name} leaves out client {A}"),
        ):
            self.add(flaw, wrap(members), "ServerFault", words)


def _wide_sender(body):
    """A payload whose sender takes nine bytes; MessagePack has no such integer, so it is a float that is one."""
    return (
        packed(body[:3]).replace(b"\x93", bytes([0x90 + len(body)]), 1)
        + b"\xcb\x43\xf0"
        + bytes(6)
        + packed(body[4:])[1:]
    )
