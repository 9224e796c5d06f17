"""What a client must refuse: cases of the frames that the server sends, and of the parts in them, a function a kind."""

from bad_cases import A, B, C, Cases, D, flipped, long_array
from generate_round import COHORT, PAIR_SEED, SERVER, SHARES
from reference import digest, merkle_path, packed, share_bytes, sign, u64


def advertised(rnd):
    """To A, from the server."""
    cases = Cases(rnd, "client", A, "advertise")
    adverts, entries = rnd.up["advertise"], rnd.digests
    peers = [adverts[i] for i in COHORT[1:]]

    def wrap(head, digests=entries, frames=peers):
        return packed(["advertisements", head, digests, frames])

    cases.header("advertised", "Advertised", SERVER, [rnd.t1], wrap)
    good = rnd.frame("advertised", rnd.context, SERVER, rnd.t1)
    cases.members("U1", lambda members: wrap(good, b"".join(u64(i) + bytes(32) for i in members)))
    name = "AdvertisedFrame: "
    for flaw, frame, words in (
        ("no content", b"", name),
        ("one byte behind", wrap(good) + b"\0", name),
        ("one byte short", wrap(good)[:-1], name),
        ("not in shortest form", long_array(wrap(good)), f"{name}not in canonical"),
        ("another kind", packed(["parts", good, entries, peers]), name),
        ("half an entry", wrap(good, entries[:-20]), "bytes of digests"),
        ("more entries than clients", wrap(good, entries + entries[:40]), "bytes of digests"),
        ("another T1", rnd.advertised(entries, peers, flipped(rnd.t1)), "do not give the transcript"),
        ("an advertisement missing", wrap(good, frames=peers[:-1]), "exactly the advertisements"),
        ("its own advertisement too", wrap(good, frames=[adverts[A], *peers]), "exactly the advertisements"),
        ("two exchanged", wrap(good, frames=[peers[1], peers[0], peers[2]]), f"another advertisement of client {B}"),
    ):
        cases.add(flaw, frame, "ServerFault", words)
    for flaw, client, frame, words in (
        ("the reader's own changed", A, flipped(adverts[A]), f"another advertisement of client {A}"),
        ("a peer's of another round", B, rnd.frame("advertise", rnd.t1, B, *rnd.advert_fields(B)), "bound to another"),
        ("a peer's with a wrong signature", B, flipped(adverts[B]), f"client {B}: wrong signature"),
        ("a peer's under another's name", B, adverts[C], f"sender {C} instead of {B}"),
        ("a peer's with one key twice", B, _one_key(rnd, B), "one key for two purposes"),
    ):
        changed = adverts | {client: frame}
        lie = rnd.advertised(rnd.entries(changed), [changed[i] for i in COHORT[1:]])
        cases.add(flaw, lie, "ServerFault", words)
    return cases.found


def _one_key(rnd, client):
    _, mask, *rest = rnd.advert_fields(client)
    return rnd.frame("advertise", rnd.context, client, mask, mask, *rest)


def shared(rnd):
    """To A, from the server."""
    cases = Cases(rnd, "client", A, "share")
    good = [rnd.delivery(i, A, rnd.leaves[i]) for i in COHORT[1:]]
    head = rnd.frame("shared", rnd.t1, SERVER, list(COHORT))

    def wrap(header, deliveries=good):
        return packed(["parts", header, deliveries])

    def first(header=0, leaf=1, path=2):
        whole = dict(enumerate(good[0]))
        parts = [whole.get(item, item) if isinstance(item, int) else item for item in (header, leaf, path)]
        return wrap(head, [parts, *good[1:]])

    cases.header("shared", "Shared", SERVER, [list(COHORT)], wrap)
    cases.members("U2", lambda members: rnd.shared(good, members))
    signed_root, leaf, path = good[0]
    mine = f"the part of client {B} is not what it signed"
    for flaw, frame, words in (
        ("no content", b"", "SharedFrame: "),
        ("one byte behind", wrap(head) + b"\0", "SharedFrame: "),
        ("not in shortest form", long_array(wrap(head)), "SharedFrame: not in canonical"),
        ("a delivery of two fields", wrap(head, [good[0][:2], *good[1:]]), "SharedFrame: "),
        ("a part missing", wrap(head, good[:-1]), "exactly the parts"),
        ("a part twice", wrap(head, [good[0], *good]), "exactly the parts"),
        ("two dealers exchanged", wrap(head, [good[1], good[0], good[2]]), f"sender {C} instead of {B}"),
        ("a part altered", first(leaf=flipped(leaf)), mine),
        ("another holder's part", first(leaf=rnd.leaves[B][2], path=merkle_path(2, rnd.leaves[B])), mine),
        ("a path cut", first(path=path[:-32]), "path is too short"),
        ("a path one hash too long", first(path=path + bytes(32)), "path is too long"),
        ("a path altered", first(path=flipped(path)), "lead to the signed root"),
        ("no path", first(path=b""), "path is too short"),
        ("a root with a wrong signature", first(header=flipped(signed_root)), "wrong signature"),
        ("a root of another round", first(header=rnd.frame("share", rnd.context, B, bytes(32))), "bound to another"),
        ("another root", first(header=rnd.frame("share", rnd.t1, B, bytes(32))), "lead to the signed root"),
    ):
        cases.add(flaw, frame, "ServerFault", words)
    return cases.found


def leaf(rnd):
    """To A: parts that their dealer signed and that are wrong, so that A refuses the dealer."""
    cases = Cases(rnd, "client", A, "share")
    fields = rnd.part_fields(C, A)

    def part(**changes):
        return b"".join((fields | changes).values())

    def boxed(plain):
        root, own = plain[:36], plain[36:]
        return {
            "shares": rnd.seal(SHARES, C, A, plain),
            "root": rnd.commit(C, A, b"root", root),
            "self": rnd.commit(C, A, b"self", own),
        }

    root, own = rnd.shares[C, A, b"root"], rnd.shares[C, A, b"self"]
    large = share_bytes([2**31 - 1, *[1] * 8])
    other_seed = rnd.seal(PAIR_SEED, C, A, bytes(range(32)))
    for flaw, data, error, words in (
        ("one byte short", part()[:-1], "DecodeError", "Part: "),
        ("one byte long", part() + b"\0", "DecodeError", "Part: "),
        ("empty", b"", "DecodeError", "Part: "),
        ("without a pair seed", part(pair=b"", pair_commitment=b""), "DecodeError", "Part: "),
        ("the box of shares altered", part(shares=flipped(fields["shares"])), "SealError", "does not open"),
        ("its encapsulated key altered", part(shares=flipped(fields["shares"], 0)), "SealError", "does not open"),
        ("the box of another holder", part(shares=rnd.part_fields(C, B)["shares"]), "SealError", "does not open"),
        ("the box of another dealer", part(shares=rnd.part_fields(D, A)["shares"]), "SealError", "does not open"),
        ("the root commitment altered", part(root=flipped(fields["root"])), "PeerFault", "a root share that is not"),
        ("the self commitment altered", part(self=flipped(fields["self"])), "PeerFault", "a self share that is not"),
        ("the commitments exchanged", part(root=fields["self"], self=fields["root"]), "PeerFault", "a root share"),
        ("the shares exchanged", part(shares=rnd.seal(SHARES, C, A, own + root)), "PeerFault", "a root share that is"),
        ("a root limb of p", part(**boxed(large + own)), "DecodeError", "limb outside"),
        ("a self limb of p", part(**boxed(root + large)), "DecodeError", "limb outside"),
        ("the box of pair seed altered", part(pair=flipped(fields["pair"])), "SealError", "does not open"),
        ("the pair commitment altered", part(pair_commitment=bytes(32)), "PeerFault", "sealed a pair seed that is not"),
        ("another pair seed than committed", part(pair=other_seed), "PeerFault", "sealed a pair seed that is not"),
    ):
        leaves = [data, *rnd.leaves[C][1:]]
        deliveries = [rnd.delivery(i, A, leaves if i == C else rnd.leaves[i]) for i in COHORT[1:]]
        cases.add(flaw, rnd.shared(deliveries), error, words, refused=[C])
    return cases.found


def survivors(rnd):
    """To A, from the server."""
    cases = Cases(rnd, "client", A, "mask")
    cases.header("survivors", "Survivors", SERVER, [list(rnd.survivors)])
    cases.members("U3", lambda members: rnd.frame("survivors", rnd.t1, SERVER, list(members)))
    cases.add("no content", b"", "ServerFault", "Signed: ")
    cases.add("ids as text", rnd.frame("survivors", rnd.t1, SERVER, ["3"]), "ServerFault", "Survivors: ")
    return cases.found


def quorum(rnd):
    """To A, from the server."""
    cases = Cases(rnd, "client", A, "confirm")
    a, b, d = good = rnd.signatures
    cases.header("quorum", "Quorum", SERVER, [good])
    c = [C, sign(rnd.seed_of(C), b"statement signature", rnd.statement)]
    everybody = digest(b"statement", rnd.t1, *[b"".join(map(u64, COHORT))] * 2)
    split = [D, sign(rnd.seed_of(D), b"statement signature", everybody)]
    for flaw, signatures, words in (
        ("one too few", [a, b], "the quorum has 2 signatures, 3 are needed"),
        ("none", [], "the quorum has 0 signatures"),
        ("one client twice", [a, b, b], "names a client twice"),
        ("not in order", [b, a, d], "names a client twice"),
        ("one that is not in U3", [a, b, c], "not in U3"),
        ("a signature altered", [a, b, [D, flipped(d[1])]], f"client {D} did not sign"),
        ("a signature over another U3", [a, b, split], f"client {D} did not sign"),
        ("one client's signature for another", [a, b, [D, b[1]]], f"client {D} did not sign"),
        ("a signature of 63 bytes", [a, b, [D, d[1][:-1]]], "Quorum: "),
    ):
        cases.add(flaw, rnd.frame("quorum", rnd.t1, SERVER, signatures), "ServerFault", words)
    cases.add("no content", b"", "ServerFault", "Signed: ")
    return cases.found
