import importlib
import io
import json
import re
from pathlib import Path

import numpy as np
import pytest
from cryptography.hazmat.primitives.asymmetric.ed25519 import Ed25519PrivateKey

from secagg import graph, messages, ring
from secagg.crypto import merkle, prg, shamir
from secagg.crypto.kdf import Label, derive, digest
from secagg.crypto.sealing import SERVER_ID, SUITES, Purpose, Suite, box_info
from secagg.errors import DecodeError, SecaggError, UnexpectedFrameError
from secagg.identity import Identity, Roster, ServerIdentity
from secagg.params import PHASES, RoundParams
from secagg.protocols.pairwise import ClientSession, ServerSession, parties, share
from secagg.spool import MemorySpool

FOLDER = Path(__file__).parents[1] / "vectors"
ROUNDS = {suite: json.loads((FOLDER / f"round_{suite}.json").read_text("utf-8")) for suite in ("classical", "hybrid")}
BAD = {path.stem: json.loads(path.read_text("utf-8")) for path in sorted(FOLDER.glob("bad_*.json"))}


class Recorded:
    """A recorded round, and the parties that the package makes of it."""

    def __init__(self, suite):
        found = ROUNDS[suite]
        self.found, self.suite = found, SUITES[suite]
        self.params = RoundParams.decode(bytes.fromhex(found["params"]))
        self.t1 = bytes.fromhex(found["transcript"])
        self.survivors = tuple(found["survivors"])
        self.clients = {c["id"]: c for c in found["clients"]}
        self.up = {(f["phase"], f["client"]): bytes.fromhex(f["frame"]) for f in found["up"]}
        self.down = {(f["phase"], f["client"]): bytes.fromhex(f["frame"]) for f in found["down"]}
        self.boxes = {bytes.fromhex(b["info"]): b for b in found["boxes"]}
        self.identities = {
            i: Identity(i, Ed25519PrivateKey.from_private_bytes(bytes.fromhex(c["identity_seed"])))
            for i, c in self.clients.items()
        }
        server = {name: bytes.fromhex(value) for name, value in found["server"][0].items()}
        self.server_secret = self.suite.key_pair(server.get("mlkem_seed"), server["x25519_seed"])
        self.server = ServerIdentity(Ed25519PrivateKey.from_private_bytes(server["identity_seed"]), self.server_secret)
        self.roster = Roster(
            {i: identity.public_key for i, identity in self.identities.items()},
            self.server.verify_key,
            self.server.sealing_key,
        )
        members = self.params.cohort
        self.graph = graph.build(members, members, self.params.degree, self.t1)

    def value(self, client, name):
        """One recorded value of a client."""
        return bytes.fromhex(self.clients[client][name])

    def secret_key(self, client, purpose):
        """The key that opens a client's boxes of a purpose."""
        name = "channel" if purpose is Purpose.SHARES else "mask"
        mlkem = self.value(client, f"{name}_mlkem_seed") if self.suite.hybrid else None
        return self.suite.key_pair(mlkem, self.value(client, f"{name}_x25519_seed"))

    def seal(self, public_key, plaintext, info):
        """The recorded box, which was sealed to this very key around this very plaintext."""
        box = self.boxes[info]
        assert (box["public"], box["plaintext"]) == (public_key.hex(), plaintext.hex())
        return bytes.fromhex(box["box"])

    def client_at(self, client, phase):
        """A session that has sent its recorded frame of a phase and waits for the answer."""
        entropy = io.BytesIO(self.value(client, "entropy")).read
        inputs = {name: np.array(values, np.int64) for name, values in self.clients[client]["inputs"].items()}
        session = ClientSession(self.params, self.identities[client], self.roster, inputs, entropy=entropy)
        befores = PHASES[: PHASES.index(phase)]
        return session, [session.start(), *(session.receive(self.down[before, client]) for before in befores)]

    def server_at(self, phase):
        """A server that awaits the frames of a phase; what it answered before."""
        session, answers = ServerSession(self.params, self.server, self.roster, spool=MemorySpool()), {}
        while session.phase != phase:
            now = session.phase
            for client in self.params.cohort:
                if (now, client) in self.up:
                    session.receive(client, self.up[now, client])
            answers[now] = dict(session.close_phase())
        return session, answers


@pytest.fixture(scope="module", params=["classical", "hybrid"])
def recorded(request):
    """Each recorded round."""
    return Recorded(request.param)


@pytest.fixture(scope="module")
def generators():
    """The modules that write the files, by name."""
    with pytest.MonkeyPatch.context() as patch:
        patch.syspath_prepend(str(FOLDER))
        return {name: importlib.import_module(name) for name in ("generate_round", "generate_bad")}


@pytest.fixture
def replayed(monkeypatch):
    """Makes clients seal the recorded boxes of a round."""

    def patch(rec):
        monkeypatch.setattr(Suite, "seal", lambda _, key, plaintext, *, info: rec.seal(key, plaintext, info))

    return patch


def test_files_are_what_their_generators_give(generators):
    """Every committed file is what the independent second implementation makes around the recorded boxes."""
    made = generators["generate_round"].files() | generators["generate_bad"].files()
    found = {path.name for path in FOLDER.glob("*.json")} - {"crypto.json", "dp_reference.json"}
    assert found == set(made)
    for name, text in made.items():
        assert (FOLDER / name).read_text("utf-8") == text, name


def test_server_answers_with_the_recorded_frames(recorded):
    """A fresh server that is fed the recorded client frames answers with exactly the recorded ones, and with the sum."""
    session, answers = recorded.server_at(None)
    flat = {(phase, client): frame for phase, frames in answers.items() for client, frame in frames.items()}
    assert flat == recorded.down
    result = session.result
    assert result.survivors == recorded.survivors
    assert result.dropped == {recorded.found["silent_from_mask"][0]: "mask"}
    assert not result.rejected
    plain = {
        block.name: np.sum([recorded.clients[i]["inputs"][block.name] for i in recorded.survivors], axis=0).tolist()
        for block in recorded.params.blocks
    }
    assert {name: total.tolist() for name, total in result.sums.items()} == recorded.found["sums"][0] == plain


def test_clients_send_the_recorded_frames(recorded, replayed):
    """Clients with the recorded entropy and boxes, fed the recorded server frames, send exactly the recorded frames."""
    replayed(recorded)
    for client in recorded.params.cohort:
        last = "unmask" if client in recorded.survivors else "share"
        _, frames = recorded.client_at(client, last)
        assert frames == [recorded.up[phase, client] for phase in PHASES[: len(frames)]]


def test_derived_values(recorded):
    """The package's own functions give every recorded secret, key, commitment and hash."""
    params, context, t1 = recorded.params, bytes.fromhex(recorded.found["context"]), recorded.t1
    assert (params.context, params.encode().hex()) == (context, recorded.found["params"])
    digests = b""
    for i in params.cohort:
        root, channel_root = recorded.value(i, "root"), recorded.value(i, "channel_root")
        advert = recorded.up["advertise", i]
        labels = Label.CHANNEL_KEY_MLKEM, Label.CHANNEL_KEY_X25519
        channel = parties.key_pair(recorded.suite, channel_root, context, *labels)
        assert parties.mask_key_pair(recorded.suite, root, context).public == recorded.value(i, "mask_public")
        assert channel.public == recorded.value(i, "channel_public")
        assert parties.seed_commitment(context, i, recorded.value(i, "self_seed")) == recorded.value(
            i, "seed_commitment"
        )
        assert parties.advertisement_digest(advert) == recorded.value(i, "advertisement_digest")
        digests += i.to_bytes(8, "big") + parties.advertisement_digest(advert)
        keys = [
            derive(recorded.value(i, "self_seed"), Label.SELF_STREAM, k, salt=t1).hex()
            for k in range(len(params.blocks))
        ]
        assert keys == recorded.clients[i]["self_stream_keys"]
        assert recorded.identities[i].public_key == recorded.value(i, "identity_public")
        assert recorded.graph.point(i) == recorded.clients[i]["point"]
    assert digest(Label.TRANSCRIPT, context, digests) == t1
    assert parties.statement(t1, params.cohort, recorded.survivors).hex() == recorded.found["statement"]


def test_edges(recorded):
    """Each edge has the recorded chooser, sign, pair seed, commitment and stream keys."""
    members = recorded.params.cohort
    edges = [(i, j) for i in members for j in members if i != j and recorded.graph.is_chooser(i, j)]
    assert edges == [(e["chooser"], e["peer"]) for e in recorded.found["edges"]]
    for edge in recorded.found["edges"]:
        i, j, t1 = edge["chooser"], edge["peer"], recorded.t1
        seed = parties.pair_seed(recorded.value(i, "root"), t1, i, j)
        assert seed.hex() == edge["seed"]
        assert parties.pair_commitment(t1, i, j, seed).hex() == edge["commitment"]
        assert recorded.graph.adds(edge["adds"], j if edge["adds"] == i else i)
        keys = [derive(seed, Label.PAIR_STREAM, k, salt=t1).hex() for k in range(len(recorded.params.blocks))]
        assert keys == edge["stream_keys"]


def test_shares_and_merkle_trees(recorded):
    """The recorded shares come from the recorded entropy, fit their commitments, and any three give the secret back."""
    kinds, held, members = {"root": "root", "self": "self_seed"}, {}, recorded.params.cohort
    for entry in recorded.found["shares"]:
        held[entry["dealer"], entry["holder"], entry["kind"]] = data = bytes.fromhex(entry["share"])
        commitment = parties.share_commitment(
            recorded.t1, entry["dealer"], entry["holder"], entry["kind"].encode(), data
        )
        assert commitment.hex() == entry["commitment"]
    assert len(held) == 2 * len(members) ** 2
    points = [recorded.graph.point(i) for i in members]
    for dealer in members:
        secrets = [recorded.value(dealer, name) for name in kinds.values()]
        rest = recorded.value(dealer, "entropy")[128:]
        dealt = shamir.share(secrets, recorded.params.threshold, points, lambda n, rest=rest: rest[:n])
        for index, kind in enumerate(kinds):
            of_kind = [held[dealer, holder, kind] for holder in members]
            assert [shamir.encode_share(limbs) for limbs in dealt[index]] == of_kind
            for left_out in range(len(members)):
                some = [place for place in range(len(members)) if place != left_out]
                limbs = shamir.decode_shares(b"".join(of_kind[place] for place in some))
                assert shamir.reconstruct([points[place] for place in some], limbs) == secrets[index]
        leaves = messages.decode(recorded.up["share", dealer], messages.ShareFrame).leaves
        tree = merkle.Tree(leaves)
        assert tree.root == recorded.value(dealer, "merkle_root")
        assert [path.hex() for path in tree.paths] == recorded.clients[dealer]["merkle_paths"]


def test_boxes_open(recorded):
    """Every recorded box opens under the recipient's recorded key, its purpose, its round and its two ends, and only there."""
    seen = []
    for info, box in recorded.boxes.items():
        purpose, binding = Purpose(info[8]), info[9:41]
        sender, recipient = int.from_bytes(info[41:49], "big"), int.from_bytes(info[49:], "big")
        assert info == box_info(purpose, binding, sender, recipient)
        assert binding == (recorded.params.context if purpose is Purpose.MAC_KEY else recorded.t1)
        own = recipient == SERVER_ID
        secret = recorded.server_secret if own else recorded.secret_key(recipient, purpose)
        assert secret.public.hex() == box["public"]
        assert recorded.suite.open(secret, bytes.fromhex(box["box"]), info=info).hex() == box["plaintext"]
        seen.append(purpose)
    assert [seen.count(purpose) for purpose in Purpose] == [4, 12, 6]


def test_masked_vectors(recorded):
    """The recorded bodies are the packed recorded words, carry the recorded tags, and hide the inputs."""
    for i in recorded.survivors:
        entry = recorded.clients[i]
        words = {
            b.name: np.array(entry["masked_words"][b.name], ring.word_dtype(b.bits)) for b in recorded.params.blocks
        }
        body = b"".join(bytes(ring.pack(words[b.name], b.bits)) for b in recorded.params.blocks)
        assert (body.hex(), prg.gmac(recorded.value(i, "mac_key"), body).hex()) == (entry["body"], entry["tag"])
        assert recorded.up["mask", i].endswith(body)
        for block in recorded.params.blocks:
            encoded = ring.encode(np.array(entry["inputs"][block.name], np.int64), block.bits)
            assert not np.array_equal(encoded, words[block.name])


def test_sparse_graph():
    """The ring, the neighbours and the choosers of a sparse graph with two clients absent are the recorded ones."""
    found = json.loads((FOLDER / "graph.json").read_text("utf-8"))
    members = tuple(i for i in found["cohort"] if i not in found["absent"])
    built = graph.build(tuple(found["cohort"]), members, found["degree"][0], bytes.fromhex(found["transcript"]))
    assert list(built.ring) == found["ring"]
    for entry in found["near"]:
        i = entry["client"]
        assert list(built.neighbours(i)) == entry["neighbours"]
        assert [j for j in built.neighbours(i) if built.is_chooser(i, j)] == entry["chooses"]
    assert [entry["client"] for entry in found["near"]] == list(members)


def server_refuses(rec, case):
    """The server's error; after it, unless the sender's turn is over, the right frame is still taken."""
    session, _ = rec.server_at(case["phase"])
    with pytest.raises(SecaggError) as caught:
        session.receive(case["client"], bytes.fromhex(case["frame"]))
    right = rec.up[case["phase"], case["client"]]
    if isinstance(caught.value, DecodeError):
        session.receive(case["client"], right)
    else:
        assert caught.value.party == case["client"]
        with pytest.raises(UnexpectedFrameError):
            session.receive(case["client"], right)
    return caught.value


def client_refuses(rec, case):
    """The client's error, after which it says nothing more; a dealer's wrong part is refused, and the client goes on."""
    session, _ = rec.client_at(case["client"], case["phase"])
    frame = bytes.fromhex(case["frame"])
    if "refused" not in case:
        with pytest.raises(SecaggError) as caught:
            session.receive(frame)
        assert not session.waiting
        return caught.value
    state = session._state
    (dealer,) = case["refused"]
    deliveries = messages.decode(frame, messages.SharedFrame).deliveries
    leaf = deliveries[state.view.graph.neighbours(case["client"]).index(dealer)].leaf
    sent = session.receive(frame)
    header = messages.decode(
        messages.decode(sent[4 : 4 + int.from_bytes(sent[:4], "big")], messages.Signed).payload, messages.MaskHeader
    )
    assert list(header.refused) == case["refused"]
    with pytest.raises(SecaggError) as caught:
        share._open(dealer, leaf, state)
    return caught.value


def nobody_takes(rec, case):
    """The error of a proposal, or of a box."""
    data = bytes.fromhex(case["frame"])
    if case["phase"] == "proposal":
        with pytest.raises(SecaggError) as caught:
            RoundParams.decode(data)
        return caught.value
    info = box_info(case["purpose"], bytes.fromhex(case["binding"]), case["sender"], case["recipient"])
    key = rec.secret_key(case["client"], Purpose.SHARES if case["key"] == "channel" else Purpose.PAIR_SEED)
    with pytest.raises(SecaggError) as caught:
        rec.suite.open(key, data, info=info)
    return caught.value


RECEIVERS = {"server": server_refuses, "client": client_refuses, "anybody": nobody_takes}


@pytest.mark.parametrize("name", sorted(BAD))
def test_bad_vectors(name, replayed):
    """Every case of a file is refused by its receiver with the stated error and words, and none is left out."""
    rec = Recorded("classical")
    replayed(rec)
    cases, wrong, done = BAD[name]["cases"], [], 0
    assert len({case["flaw"] for case in cases}) == len({str(case | {"flaw": ""}) for case in cases}) == len(cases)
    for case in cases:
        error = RECEIVERS[case["to"]](rec, case)
        done += 1
        if type(error).__name__ != case["error"] or case["words"] not in str(error):
            wrong.append((case["flaw"], case["error"], case["words"], repr(error)))
    assert not wrong
    assert [done] == BAD[name]["count"]


def test_bad_vectors_are_counted():
    """The page states how many cases each file has: one added, lost or skipped changes a number."""
    rows = re.findall(r"^\| `(bad_\w+)\.json` \| (\d+) \|", (FOLDER / "README.md").read_text("utf-8"), re.MULTILINE)
    assert {name: int(count) for name, count in rows} == {name: len(found["cases"]) for name, found in BAD.items()}
    assert sum(int(count) for _, count in rows) >= 60
