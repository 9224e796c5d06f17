"""What the server must refuse: cases of the frames that clients send, a function a kind."""

import generate_crypto as crypto
from bad_cases import LOW_ORDER, STRANGER, A, B, C, Cases, flipped, long_array
from generate_round import COHORT, MAC_KEY, SERVER
from reference import digest, info_of, mask_frame, merkle_root, packed, share_bytes, sign, signed, u64


def advertise(rnd):
    """To the server, from A."""
    cases = Cases(rnd, "server", A, "advertise")
    channel, mask, commitment, mac_box = fields = rnd.advert_fields(A)
    cases.header("advertise", "Advertise", A, fields)
    cases.add("empty", b"", "DecodeError", "without content")
    context = rnd.context
    short = rnd.boxes.seal("classical", rnd.server_public, bytes(31), info_of(MAC_KEY, context, A, SERVER))
    for flaw, changed, error, words in (
        ("a seed commitment of 31 bytes", [channel, mask, commitment[:-1], mac_box], "DecodeError", "Advertise: "),
        (
            "a channel key of 31 bytes",
            [channel[:-1], mask, commitment, mac_box],
            "PeerFault",
            "channel key of 31 bytes",
        ),
        ("a mask key of 33 bytes", [channel, mask + b"\0", commitment, mac_box], "PeerFault", "mask key of 33 bytes"),
        ("no mask key", [channel, b"", commitment, mac_box], "PeerFault", "mask key of 0 bytes"),
        ("one key twice", [mask, mask, commitment, mac_box], "PeerFault", "one key for two purposes"),
        ("a zero channel key", [bytes(32), mask, commitment, mac_box], "PeerFault", "channel key that nobody"),
        ("a zero mask key", [channel, bytes(32), commitment, mac_box], "PeerFault", "mask key that nobody"),
        ("a mask key of low order", [channel, LOW_ORDER, commitment, mac_box], "PeerFault", "mask key that nobody"),
        ("a channel key of order one", [b"\1" + bytes(31), mask, commitment, mac_box], "PeerFault", "that nobody"),
        ("the MAC box altered", [channel, mask, commitment, flipped(mac_box)], "PeerFault", "MAC key wrongly"),
        ("the MAC box cut", [channel, mask, commitment, mac_box[:-1]], "PeerFault", "MAC key wrongly"),
        ("no MAC box", [channel, mask, commitment, b""], "PeerFault", "MAC key wrongly"),
        ("another's MAC box", [channel, mask, commitment, rnd.advert_fields(B)[3]], "PeerFault", "MAC key wrongly"),
        ("a MAC key of 31 bytes", [channel, mask, commitment, short], "PeerFault", "MAC key of 31 bytes"),
    ):
        cases.add(flaw, rnd.frame("advertise", context, A, *changed), error, words)
    return cases.found


def share(rnd):
    """To the server, from A."""
    cases = Cases(rnd, "server", A, "share")
    leaves = rnd.leaves[A]
    head = rnd.share_head(A, leaves)

    def wrap(header, parts=leaves):
        return packed(["shares", header, parts])

    def dealt(parts):
        return wrap(rnd.share_head(A, parts), parts)

    cases.header("share", "ShareHeader", A, [merkle_root(leaves)], wrap)
    name = "ShareFrame: "
    for flaw, frame, error, words in (
        ("no content", b"", "DecodeError", "without content"),
        ("one byte behind", wrap(head) + b"\0", "DecodeError", name),
        ("one byte off the end", wrap(head)[:-1], "DecodeError", name),
        ("not in shortest form", long_array(wrap(head)), "DecodeError", f"{name}not in canonical"),
        ("another kind around it", packed(["parts", head, leaves]), "DecodeError", name),
        ("a root of 31 bytes", wrap(rnd.frame("share", rnd.t1, A, bytes(31))), "DecodeError", "ShareHeader: "),
        ("a part altered", wrap(head, [*leaves[:-1], flipped(leaves[-1])]), "DecodeError", "under its signed root"),
        ("two parts exchanged", wrap(head, [leaves[0], leaves[3], leaves[2], leaves[1]]), "DecodeError", "under its"),
        ("a part missing", wrap(head, leaves[:-1]), "DecodeError", "under its signed root"),
        ("more parts than clients", dealt([*leaves, b""]), "DecodeError", "more than there are clients"),
        ("a signed part too few", dealt(leaves[:-1]), "PeerFault", "sent 3 parts for 4 holders"),
        ("a signed part too short", dealt([*leaves[:-1], leaves[-1][:-1]]), "PeerFault", "of a wrong length"),
        ("a signed part too long", dealt([*leaves[:-1], leaves[-1] + b"\0"]), "PeerFault", "of a wrong length"),
        (
            "a signed part without its pair seed",
            dealt([leaves[0], leaves[2], *leaves[2:]]),
            "PeerFault",
            "wrong length",
        ),
        ("its own part too long", dealt([leaves[0] + b"\0", *leaves[1:]]), "PeerFault", "of a wrong length"),
    ):
        cases.add(flaw, frame, error, words)
    return cases.found


def mask(rnd):
    """To the server, from A."""
    cases = Cases(rnd, "server", A, "mask")
    body = rnd.body(A)
    head = rnd.mask_head(A, body)
    tag = crypto.gmac(rnd.clients[A].mac_key, body)
    cases.header("mask", "MaskHeader", A, [len(body), [], tag], lambda header: mask_frame(header, body))
    good = mask_frame(head, body)
    gap = -(4 + len(head)) % 16
    padded = crypto.packed([*rnd.masked[A, 0], 1], 20) + body[-8:]
    for flaw, frame, error, words in (
        ("no content", b"", "DecodeError", "without content"),
        ("three bytes", good[:3], "DecodeError", "a mask frame of 3 bytes"),
        ("the body one byte short", good[:-1], "DecodeError", "a mask frame of"),
        ("the body one byte long", good + b"\0", "DecodeError", "a mask frame of"),
        ("a header longer than the frame", b"\xff\xff\xff\xff" + good[4:], "DecodeError", "a mask frame of"),
        ("no padding", mask_frame(head, body, b""), "DecodeError", "a mask frame of"),
        ("padding not zero", mask_frame(head, body, bytes(gap - 1) + b"\1"), "DecodeError", "not padded with zeros"),
        ("the body altered", flipped(good), "DecodeError", "header authenticates"),
        ("the tag altered", _mask(rnd, body, tag=flipped(tag)), "DecodeError", "header authenticates"),
        ("a tag of 15 bytes", _mask(rnd, body, tag=tag[:-1]), "DecodeError", "MaskHeader: "),
        (
            "another's MAC key",
            _mask(rnd, body, tag=crypto.gmac(rnd.clients[B].mac_key, body)),
            "DecodeError",
            "authent",
        ),
        ("another length in the header", _mask(rnd, body, length=len(body) - 1), "DecodeError", "authenticates"),
        ("a negative length", _mask(rnd, body, length=-1), "DecodeError", "MaskHeader: "),
        ("itself refused", _mask(rnd, body, [A]), "PeerFault", "not its neighbours"),
        ("a stranger refused", _mask(rnd, body, [STRANGER]), "PeerFault", "not its neighbours"),
        ("one refused twice", _mask(rnd, body, [B, B]), "PeerFault", "not in order"),
        ("refused out of order", _mask(rnd, body, [C, B]), "PeerFault", "not in order"),
        ("more refused than c", _mask(rnd, body, [B, C]), "PeerFault", "refused 2 dealers"),
        ("padding of a block not zero", _mask(rnd, padded), "PeerFault", "block 'update': the padding"),
    ):
        cases.add(flaw, frame, error, words)
    return cases.found


def _mask(rnd, body, refused=(), **changes):
    return mask_frame(rnd.mask_head(A, body, refused, **changes), body)


def confirm(rnd):
    """To the server, from A; a confirmation is signed inside, over the statement."""
    cases = Cases(rnd, "server", A, "confirm")
    good = [*["confirm", 1, rnd.t1, A], sign(rnd.seed_of(A), b"statement signature", rnd.statement)]
    signature, seed = good[-1], rnd.seed_of(A)
    everybody = digest(b"statement", rnd.t1, *[b"".join(map(u64, COHORT))] * 2)
    wrong, words = "SignatureError", "wrong signature (SIGNATURE_STATEMENT)"
    for flaw, frame, error, text in (
        ("no content", b"", "DecodeError", "without content"),
        ("one byte short", packed(good)[:-1], "DecodeError", "Confirm: "),
        ("one byte behind", packed(good) + b"\0", "DecodeError", "Confirm: "),
        ("not in shortest form", long_array(packed(good)), "DecodeError", "Confirm: not in canonical"),
        ("version 2", packed(["confirm", 2, *good[2:]]), "DecodeError", "Confirm: "),
        ("another kind", packed(["quorum", *good[1:]]), "DecodeError", "Confirm: "),
        ("signed as a frame too", signed(seed, packed(good)), "DecodeError", "Confirm: "),
        ("bound to the context", packed(["confirm", 1, rnd.context, *good[3:]]), "DecodeError", "bound to another"),
        ("another sender", packed([*good[:3], B, signature]), "DecodeError", f"sender {B} instead of {A}"),
        ("a signature of 63 bytes", packed([*good[:4], signature[:-1]]), "DecodeError", "Confirm: "),
        ("the signature altered", packed([*good[:4], flipped(signature)]), wrong, words),
        ("another's signature", packed([*good[:4], rnd.signatures[1][1]]), wrong, words),
        ("signed as a frame", packed([*good[:4], sign(seed, b"frame signature", rnd.statement)]), wrong, words),
        ("another U3", packed([*good[:4], sign(seed, b"statement signature", everybody)]), wrong, words),
    ):
        cases.add(flaw, frame, error, text)
    return cases.found


def unmask(rnd):
    """To the server, from A."""
    cases = Cases(rnd, "server", A, "unmask")
    a, b, c, d = good = rnd.answers(A)
    cases.header("unmask", "Unmask", A, [good])
    both = ["self", C, rnd.shares[C, A, b"self"]]
    root = ["root", B, rnd.shares[B, A, b"root"], rnd.seed_of_edge(A, B)]
    asked = "exactly the clients that the signed statement asks for"
    large = share_bytes([2**31 - 1, *[1] * 8])
    for flaw, answers, error, words in (
        ("an answer missing", [a, b, c], "PeerFault", asked),
        ("none", [], "PeerFault", asked),
        ("a stranger's", [*good, ["self", 2**63 + 6, bytes(36)]], "PeerFault", asked),
        ("one twice", [a, b, b, c, d], "PeerFault", asked),
        ("not in order", [b, a, c, d], "PeerFault", asked),
        ("both shares of one client", [a, b, both, c, d], "PeerFault", asked),
        ("a survivor's root", [a, root, c, d], "PeerFault", asked),
        ("a dropped client's self seed", [a, b, both, d], "PeerFault", asked),
        ("a self share altered", [a, ["self", B, flipped(b[2], 0)], c, d], "PeerFault", f"self secret of client {B}"),
        (
            "its own self share altered",
            [["self", A, flipped(a[2])], b, c, d],
            "PeerFault",
            f"self secret of client {A}",
        ),
        ("a limb of p", [a, ["self", B, large], c, d], "PeerFault", f"wrong share of the self secret of client {B}"),
        (
            "a root share altered",
            [a, b, ["root", C, flipped(c[2]), c[3]], d],
            "PeerFault",
            f"root secret of client {C}",
        ),
        ("a self share as a root's", [a, b, ["root", C, both[2], c[3]], d], "PeerFault", f"root secret of client {C}"),
        ("a pair seed altered", [a, b, ["root", C, c[2], flipped(c[3])], d], "PeerFault", f"pair seed with client {C}"),
        ("a share of 35 bytes", [a, ["self", B, b[2][:-1]], c, d], "DecodeError", "Unmask: "),
        ("a pair seed of 31 bytes", [a, b, ["root", C, c[2], c[3][:-1]], d], "DecodeError", "Unmask: "),
        ("a root without its pair seed", [a, b, c[:3], d], "DecodeError", "Unmask: "),
        ("a self share with a pair seed", [a, [*b, bytes(32)], c, d], "DecodeError", "Unmask: "),
        ("an answer of no kind", [a, ["both", *b[1:]], c, d], "DecodeError", "Unmask: "),
    ):
        cases.add(flaw, rnd.frame("unmask", rnd.t1, A, answers), error, words)
    cases.add("no content", b"", "DecodeError", "without content")
    return cases.found


def decline(rnd):
    """To the server, from A in exchange 2: where its word is none, what is wrong is that it is no frame of that exchange."""
    cases = Cases(rnd, "server", A, "share")
    right = ["share", "min_cohort", "too small"]
    seed, name = rnd.seed_of(A), "ShareFrame: "
    body = ["decline", 1, rnd.context, A, *right]
    for flaw, frame in (
        ("another exchange", rnd.frame("decline", rnd.context, A, "mask", *right[1:])),
        ("no exchange", rnd.frame("decline", rnd.context, A, "", *right[1:])),
        ("an exchange of 17 letters", rnd.frame("decline", rnd.context, A, "s" * 17, *right[1:])),
        ("a rule of 65 letters", rnd.frame("decline", rnd.context, A, "share", "r" * 65, "")),
        ("a reason of 513 letters", rnd.frame("decline", rnd.context, A, "share", "", "r" * 513)),
        ("text that is no UTF-8", signed(seed, packed(body)[:-1] + b"\xff")),
        ("bound to T1", rnd.frame("decline", rnd.t1, A, *right)),
        ("another sender", rnd.frame("decline", rnd.context, B, *right, signer=A)),
        ("another's signature", rnd.frame("decline", rnd.context, A, *right, signer=B)),
        ("signed as a statement", rnd.frame("decline", rnd.context, A, *right, label=b"statement signature")),
        ("version 2", rnd.frame("decline", rnd.context, A, *right, version=2)),
        ("one byte behind", rnd.frame("decline", rnd.context, A, *right) + b"\0"),
        ("one byte short", rnd.frame("decline", rnd.context, A, *right)[:-1]),
        ("not in shortest form", signed(seed, long_array(packed(body)))),
    ):
        cases.add(flaw, frame, "DecodeError", name)
    return cases.found
