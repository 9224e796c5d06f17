"""Write round_classical.json, round_hybrid.json and graph.json: whole rounds and a sparse graph, by another road than the code under test.

A second implementation of docs/protocol.md without the package: MessagePack by hand, HKDF, GMAC, keystreams, shares and packing from
generate_crypto.py, rings and Merkle trees with Python integers and lists. HPKE draws its own randomness, so the boxes are recorded
once and kept, and everything else follows from them; delete a file to have its boxes sealed anew. Run from the repository root:

    python tests/vectors/generate_round.py
"""

from pathlib import Path

import generate_crypto as crypto
from reference import (
    Boxes,
    derive,
    digest,
    info_of,
    mask_frame,
    merkle_path,
    merkle_root,
    packed,
    public_of,
    recorded_boxes,
    share_bytes,
    sign,
    signed,
    u64,
)

FOLDER = Path(__file__).parent
SUITES = ("classical", "hybrid")
SERVER = 2**64 - 1
COHORT = (3, 200, 2**40 + 1, 2**63 + 5)
SILENT = COHORT[2]
THRESHOLD, COLLUDERS, DROPOUTS, QUORUM, MIN_SURVIVORS = 3, 1, 1, 3, 3
BLOCKS = (("update", 5, 20, 1000), ("count", 1, 64, 10**15))
INPUTS = {
    COHORT[0]: ([0, 1, -1, 1000, -1000], [10**15]),
    COHORT[1]: ([1000, 1000, -1000, 1000, -1000], [-1]),
    COHORT[2]: ([7, 7, 7, 7, 7], [7]),
    COHORT[3]: ([-1000, 999, -512, 511, 0], [-(10**15)]),
}
MAC_KEY, SHARES, PAIR_SEED = 1, 2, 3


class Client:
    """A client's secrets and what follows from them before anybody else has spoken."""

    def __init__(self, suite, place, context):
        self.id, self.place, self.point = COHORT[place], place, place + 1
        name = f"round {suite} client {place}"
        self.identity_seed = crypto.pseudorandom(f"{name} identity", 32)
        # The order in which a client draws: R, the channel root, b, the MAC key, the coefficients of both secrets' shares.
        self.entropy = crypto.pseudorandom(f"{name} entropy", 4 * 32 + 4 * (THRESHOLD - 1) * 18)
        self.root, self.channel_root, self.self_seed, self.mac_key = (
            self.entropy[i : i + 32] for i in range(0, 128, 32)
        )
        self.mask_mlkem, self.mask_x25519 = _seeds(self.root, b"mask key", context)
        self.channel_mlkem, self.channel_x25519 = _seeds(self.channel_root, b"channel key", context)
        self.mask_public = crypto.key_pair(suite, self.mask_mlkem, self.mask_x25519)[1]
        self.channel_public = crypto.key_pair(suite, self.channel_mlkem, self.channel_x25519)[1]
        self.seed_commitment = digest(b"self seed commitment", context, self.id, self.self_seed)


def _seeds(root, name, context):
    return (
        derive(root, name + b" ML-KEM-768", salt=context, length=64),
        derive(root, name + b" X25519", salt=context),
    )


class Round:
    """One round of four, the third silent from exchange 3 on: every value, every frame."""

    def __init__(self, suite, boxes):
        self.suite, self.boxes = suite, boxes
        self.params = self.encode_params()
        self.context = digest(b"context", self.params)
        self.server_seed = crypto.pseudorandom(f"round {suite} server identity", 32)
        self.server_mlkem = crypto.pseudorandom(f"round {suite} server ML-KEM", 64)
        self.server_x25519 = crypto.pseudorandom(f"round {suite} server X25519", 32)
        self.server_public = crypto.key_pair(suite, self.server_mlkem, self.server_x25519)[1]
        self.clients = {COHORT[place]: Client(suite, place, self.context) for place in range(len(COHORT))}
        self.survivors = tuple(i for i in COHORT if i != SILENT)
        self.up, self.down = {}, {}
        for step in (self.advertise, self.deal, self.share, self.mask, self.confirm, self.unmask):
            step()

    def encode_params(self, **changes):
        """The canonical encoding of the parameters, some of them changed."""
        fields = {
            "version": 1,
            "suite": self.suite,
            "session": crypto.pseudorandom(f"round {self.suite} session", 16),
            "round": 300,
            "cohort": list(COHORT),
            "threshold": THRESHOLD,
            "degree": len(COHORT) - 1,
            "colluders": COLLUDERS,
            "dropouts": DROPOUTS,
            "blocks": [list(block) for block in BLOCKS],
            "app_context": crypto.pseudorandom(f"round {self.suite} application", 32),
            "min_survivors": MIN_SURVIVORS,
            "adversary": "lying",
        }
        return packed(list((fields | changes).values()))

    def seed_of(self, party):
        """The Ed25519 seed of a client or the server."""
        return self.server_seed if party == SERVER else self.clients[party].identity_seed

    def frame(self, kind, binding, sender, *fields, version=1, signer=None, label=b"frame signature"):
        """A signed message."""
        payload = packed([kind, version, binding, sender, *fields])
        return signed(self.seed_of(sender if signer is None else signer), payload, label)

    def seal(self, purpose, sender, recipient, plaintext):
        """A box from one client to another, or to the server."""
        if recipient == SERVER:
            public = self.server_public
        else:
            peer = self.clients[recipient]
            public = peer.channel_public if purpose == SHARES else peer.mask_public
        info = info_of(purpose, self.context if purpose == MAC_KEY else self.t1, sender, recipient)
        return self.boxes.seal(self.suite, public, plaintext, info)

    def others(self, client):
        """Everybody else, in order."""
        return tuple(i for i in COHORT if i != client)

    def chooses(self, client, peer):
        """Whether the client chooses the pair seed of this edge."""
        p, q = COHORT.index(client), COHORT.index(peer)
        return (p < q) == ((p + q) % 2 == 1)

    def advert_fields(self, client):
        """The body of an advertisement."""
        c = self.clients[client]
        return [c.channel_public, c.mask_public, c.seed_commitment, self.seal(MAC_KEY, client, SERVER, c.mac_key)]

    def entries(self, frames):
        """Ids and digests of advertisements."""
        return b"".join(u64(i) + digest(b"advertisement", frame) for i, frame in frames.items())

    def advertised(self, entries, frames, transcript=None):
        """The server's answer in exchange 1."""
        transcript = digest(b"transcript", self.context, entries) if transcript is None else transcript
        head = self.frame("advertised", self.context, SERVER, transcript)
        return packed(["advertisements", head, entries, frames])

    def advertise(self):
        """Exchange 1."""
        frames = {i: self.frame("advertise", self.context, i, *self.advert_fields(i)) for i in COHORT}
        self.digests = self.entries(frames)
        self.t1 = digest(b"transcript", self.context, self.digests)
        self.up["advertise"] = frames
        self.down["advertise"] = {i: self.advertised(self.digests, [frames[j] for j in self.others(i)]) for i in COHORT}

    def deal(self):
        """Shares, commitments, pair seeds, stream keys."""
        self.shares, self.commitments, self.pair_seeds, self.pair_commitments = {}, {}, {}, {}
        points = [c.point for c in self.clients.values()]
        for i, c in self.clients.items():
            dealt = crypto.shares_of([c.root, c.self_seed], THRESHOLD, points, c.entropy[128:])
            for kind, of_secret in zip((b"root", b"self"), dealt, strict=True):
                for holder, limbs in zip(COHORT, of_secret, strict=True):
                    share = share_bytes(limbs)
                    self.shares[i, holder, kind] = share
                    self.commitments[i, holder, kind] = self.commit(i, holder, kind, share)
            for j in self.others(i):
                if self.chooses(i, j):
                    seed = derive(c.root, b"pair seed", i, j, salt=self.t1)
                    self.pair_seeds[i, j] = seed
                    self.pair_commitments[i, j] = digest(b"pair seed commitment", self.t1, i, j, seed)

    def commit(self, dealer, holder, kind, share):
        """A commitment to a share."""
        return digest(b"share commitment", self.t1, dealer, holder, kind, share)

    def seed_of_edge(self, i, j):
        """The pair seed, whoever chose it."""
        return self.pair_seeds[(i, j) if self.chooses(i, j) else (j, i)]

    def part_fields(self, dealer, holder):
        """The fields of a leaf in order: shares, root, self, pair, pair_commitment; those that it has."""
        fields = {"root": self.commitments[dealer, holder, b"root"], "self": self.commitments[dealer, holder, b"self"]}
        if holder == dealer:
            return fields
        plain = self.shares[dealer, holder, b"root"] + self.shares[dealer, holder, b"self"]
        fields = {"shares": self.seal(SHARES, dealer, holder, plain)} | fields
        if self.chooses(dealer, holder):
            fields["pair"] = self.seal(PAIR_SEED, dealer, holder, self.pair_seeds[dealer, holder])
            fields["pair_commitment"] = self.pair_commitments[dealer, holder]
        return fields

    def part(self, dealer, holder):
        """A leaf."""
        return b"".join(self.part_fields(dealer, holder).values())

    def share_head(self, dealer, leaves):
        """The signed root over leaves."""
        return self.frame("share", self.t1, dealer, merkle_root(leaves))

    def delivery(self, dealer, holder, leaves):
        """What the server hands on of a dealer's parts."""
        index = COHORT.index(holder)
        return [self.share_head(dealer, leaves), leaves[index], merkle_path(index, leaves)]

    def shared(self, deliveries, members=COHORT):
        """The server's answer in exchange 2."""
        return packed(["parts", self.frame("shared", self.t1, SERVER, list(members)), deliveries])

    def share(self):
        """Exchange 2."""
        self.leaves = {i: [self.part(i, j) for j in COHORT] for i in COHORT}
        self.up["share"] = {i: packed(["shares", self.share_head(i, self.leaves[i]), self.leaves[i]]) for i in COHORT}
        self.down["share"] = {
            i: self.shared([self.delivery(dealer, i, self.leaves[dealer]) for dealer in self.others(i)]) for i in COHORT
        }

    def streams(self, client):
        """(seed, label, sign) of every mask of a client."""
        c = self.clients[client]
        return [(c.self_seed, b"self stream", 1)] + [
            (self.seed_of_edge(client, j), b"pair stream", 1 if c.place < self.clients[j].place else -1)
            for j in self.others(client)
        ]

    def words(self, seed, label, index):
        """A mask: the words of block number `index` of one stream."""
        _, length, bits, _ = BLOCKS[index]
        size = next(width for width in (8, 16, 32, 64) if bits <= width) // 8
        data = crypto.keystream(derive(seed, label, index, salt=self.t1), length * size)
        return [int.from_bytes(data[at : at + size], "little") for at in range(0, len(data), size)]

    def masked_words(self, client, index):
        """One block of a client's masked vector, modulo 2^bits."""
        bits = BLOCKS[index][2]
        total = list(INPUTS[client][index])
        for seed, label, factor in self.streams(client):
            total = [x + factor * word for x, word in zip(total, self.words(seed, label, index), strict=True)]
        return [x % 2**bits for x in total]

    def mask_head(self, client, body, refused=(), tag=None, length=None):
        """The header of a masked vector."""
        tag = crypto.gmac(self.clients[client].mac_key, body) if tag is None else tag
        length = len(body) if length is None else length
        return self.frame("mask", self.t1, client, length, list(refused), tag)

    def body(self, client):
        """The packed blocks of a masked vector."""
        return b"".join(crypto.packed(self.masked[client, index], block[2]) for index, block in enumerate(BLOCKS))

    def mask(self):
        """Exchange 3."""
        self.masked = {(i, index): self.masked_words(i, index) for i in self.survivors for index in range(len(BLOCKS))}
        bodies = {i: self.body(i) for i in self.survivors}
        self.up["mask"] = {i: mask_frame(self.mask_head(i, body), body) for i, body in bodies.items()}
        answer = self.frame("survivors", self.t1, SERVER, list(self.survivors))
        self.down["mask"] = dict.fromkeys(self.survivors, answer)
        ids = [b"".join(u64(i) for i in members) for members in (COHORT, self.survivors)]
        self.statement = digest(b"statement", self.t1, *ids)

    def confirm(self):
        """Exchange 4."""
        signatures = {i: sign(self.seed_of(i), b"statement signature", self.statement) for i in self.survivors}
        self.up["confirm"] = {i: packed(["confirm", 1, self.t1, i, s]) for i, s in signatures.items()}
        self.signatures = [[i, s] for i, s in signatures.items()][:QUORUM]
        self.down["confirm"] = dict.fromkeys(self.survivors, self.frame("quorum", self.t1, SERVER, self.signatures))

    def answers(self, client):
        """What a client reveals: a share of b of each survivor, a share of R and the pair seed of each other."""
        return [
            ["self", i, self.shares[i, client, b"self"]]
            if i in self.survivors
            else ["root", i, self.shares[i, client, b"root"], self.seed_of_edge(client, i)]
            for i in COHORT
        ]

    def unmask(self):
        """Exchange 5, and the sum from what the server has then."""
        self.up["unmask"] = {i: self.frame("unmask", self.t1, i, self.answers(i)) for i in self.survivors}
        self.down["unmask"] = {}
        self.sums = {}
        for index, (name, _, bits, _) in enumerate(BLOCKS):
            total = [sum(words) for words in zip(*(self.masked[i, index] for i in self.survivors), strict=True)]
            for i in self.survivors:
                sign_of_edge = 1 if self.clients[i].place < self.clients[SILENT].place else -1
                for seed, label, factor in (
                    (self.clients[i].self_seed, b"self stream", 1),
                    (self.seed_of_edge(i, SILENT), b"pair stream", sign_of_edge),
                ):
                    total = [x - factor * w for x, w in zip(total, self.words(seed, label, index), strict=True)]
            self.sums[name] = [(x + 2 ** (bits - 1)) % 2**bits - 2 ** (bits - 1) for x in total]


def _client_section(rnd, client):
    c = rnd.clients[client]
    hybrid = {"mask_mlkem_seed": c.mask_mlkem, "channel_mlkem_seed": c.channel_mlkem} if rnd.suite == "hybrid" else {}
    values = hybrid | {
        "identity_seed": c.identity_seed,
        "identity_public": public_of(c.identity_seed),
        "entropy": c.entropy,
        "root": c.root,
        "channel_root": c.channel_root,
        "self_seed": c.self_seed,
        "mac_key": c.mac_key,
        "mask_x25519_seed": c.mask_x25519,
        "channel_x25519_seed": c.channel_x25519,
        "mask_public": c.mask_public,
        "channel_public": c.channel_public,
        "seed_commitment": c.seed_commitment,
        "advertisement_digest": digest(b"advertisement", rnd.up["advertise"][client]),
        "merkle_root": merkle_root(rnd.leaves[client]),
    }
    paths = [merkle_path(index, rnd.leaves[client]).hex() for index in range(len(COHORT))]
    inputs = {block[0]: list(values) for block, values in zip(BLOCKS, INPUTS[client], strict=True)}
    found = {"id": client, "point": c.point, "inputs": inputs, "merkle_paths": paths}
    found |= {name: value.hex() for name, value in values.items()}
    if client != SILENT:
        body = rnd.body(client)
        found["masked_words"] = {block[0]: rnd.masked[client, index] for index, block in enumerate(BLOCKS)}
        found |= {"body": body.hex(), "tag": crypto.gmac(c.mac_key, body).hex()}
    keys = [derive(c.self_seed, b"self stream", index, salt=rnd.t1).hex() for index in range(len(BLOCKS))]
    return found | {"self_stream_keys": keys}


def _edge_section(rnd, chooser, peer):
    seed = rnd.pair_seeds[chooser, peer]
    return {
        "chooser": chooser,
        "peer": peer,
        "adds": min(chooser, peer),
        "seed": seed.hex(),
        "commitment": rnd.pair_commitments[chooser, peer].hex(),
        "stream_keys": [derive(seed, b"pair stream", index, salt=rnd.t1).hex() for index in range(len(BLOCKS))],
    }


def section(rnd):
    """A round as it stands in its file."""
    mlkem = {"mlkem_seed": rnd.server_mlkem.hex()} if rnd.suite == "hybrid" else {}
    return {
        "provenance": "tests/vectors/generate_round.py",
        "suite": rnd.suite,
        "params": rnd.params.hex(),
        "context": rnd.context.hex(),
        "transcript": rnd.t1.hex(),
        "statement": rnd.statement.hex(),
        "silent_from_mask": SILENT,
        "survivors": list(rnd.survivors),
        "sums": rnd.sums,
        "server": mlkem
        | {
            "identity_seed": rnd.server_seed.hex(),
            "identity_public": public_of(rnd.server_seed).hex(),
            "x25519_seed": rnd.server_x25519.hex(),
            "sealing_public": rnd.server_public.hex(),
        },
        "clients": [_client_section(rnd, i) for i in COHORT],
        "edges": [_edge_section(rnd, i, j) for i, j in rnd.pair_seeds],
        "shares": [
            {
                "dealer": i,
                "holder": j,
                "kind": kind.decode(),
                "share": share.hex(),
                "commitment": rnd.commitments[i, j, kind].hex(),
            }
            for (i, j, kind), share in rnd.shares.items()
        ],
        "boxes": rnd.boxes.used,
        "up": [
            {"phase": phase, "client": i, "frame": frame.hex()}
            for phase, frames in rnd.up.items()
            for i, frame in frames.items()
        ],
        "down": [
            {"phase": phase, "client": i, "frame": frame.hex()}
            for phase, frames in rnd.down.items()
            for i, frame in frames.items()
        ],
    }


def graph_section():
    """The ring of twelve under one T1, two of them absent, and everybody's neighbours."""
    cohort, degree, absent = [10 * i + 1 for i in range(12)], 4, (31, 111)
    t1 = crypto.pseudorandom("graph", 32)
    data = crypto.keystream(derive(t1, b"graph", salt=t1), 8 * 64)
    words, order = [int.from_bytes(data[at : at + 8], "little") for at in range(0, len(data), 8)], list(range(12))
    for last in range(11, 0, -1):
        word = words.pop(0)
        while word >= 2**64 // (last + 1) * (last + 1):
            word = words.pop(0)
        other = word % (last + 1)
        order[last], order[other] = order[other], order[last]
    ring = [cohort[place] for place in order]
    near = []
    for client in cohort:
        if client in absent:
            continue
        slot = ring.index(client)
        peers = sorted(peer for peer in (ring[(slot + step) % 12] for step in (-2, -1, 1, 2)) if peer not in absent)
        chosen = []
        for peer in peers:
            p, q = cohort.index(client), cohort.index(peer)
            if (p < q) == ((p + q) % 2 == 1):
                chosen.append(peer)
        near.append({"client": client, "neighbours": peers, "chooses": chosen})
    return {
        "provenance": "tests/vectors/generate_round.py",
        "cohort": cohort,
        "degree": degree,
        "absent": list(absent),
        "transcript": t1.hex(),
        "ring": ring,
        "near": near,
    }


def round_of(suite):
    """The recorded round of a suite, made anew around its recorded boxes."""
    return Round(suite, Boxes(recorded_boxes(FOLDER / f"round_{suite}.json")))


def files():
    """The text of every file by name."""
    found = {f"round_{suite}.json": crypto.rendered(_listed(section(round_of(suite)))) for suite in SUITES}
    return found | {"graph.json": crypto.rendered(_listed(graph_section()))}


def _listed(sections):
    """Sections as `rendered` takes them: text, or lists."""
    return {name: value if isinstance(value, str | list) else [value] for name, value in sections.items()}


if __name__ == "__main__":
    for name, text in files().items():
        (FOLDER / name).write_text(text, "utf-8")
