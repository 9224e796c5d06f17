import copy
import json
from pathlib import Path

import pytest
from cryptography.hazmat.primitives.asymmetric.ed25519 import Ed25519PrivateKey

from secagg import errors
from secagg.crypto.kdf import Label, framed
from secagg.crypto.sealing import SERVER_ID, SUITES, Purpose, box_info
from secagg.errors import (
    DecodeError,
    InputError,
    LocalError,
    ParameterError,
    PeerFault,
    SealError,
    ServerFault,
    SignatureError,
    SignerError,
)
from secagg.identity import CheckedSigner, Identity, Roster, ServerIdentity, SigningKey, checked

VECTORS = json.loads((Path(__file__).parents[1] / "vectors" / "crypto.json").read_text("utf-8"))
MESSAGE = b"what is signed"


def fixed(value):
    """Entropy of one repeated byte."""
    return lambda count: bytes([value]) * count


def roster_of(*ids):
    """A roster of fixed keys, its server, and its clients by id."""
    server = ServerIdentity.generate("classical", fixed(200))
    clients = {party: Identity.generate(party, fixed(place + 1)) for place, party in enumerate(ids)}
    keys = {party: client.public_key for party, client in clients.items()}
    return Roster(keys, server.verify_key, server.sealing_key), server, clients


def vector_roster():
    """The roster of the recorded signatures."""
    client, server = VECTORS["signature"]
    return Roster({client["party"]: bytes.fromhex(client["public"])}, bytes.fromhex(server["public"]), b"\x01" * 32)


def verify_vector(vector):
    """Verify a recorded signature."""
    message, signature = bytes.fromhex(vector["message"]), bytes.fromhex(vector["signature"])
    vector_roster().verify(vector["party"], Label[vector["label"]], message, signature)


def test_signature_vectors():
    """A client and the server sign as recorded, and the roster accepts it."""
    checked = 0
    for vector in VECTORS["signature"]:
        key = Ed25519PrivateKey.from_private_bytes(bytes.fromhex(vector["seed"]))
        secret = SUITES["classical"].key_pair(None, bytes(32))
        signer = ServerIdentity(key, secret) if vector["party"] == SERVER_ID else Identity(vector["party"], key)
        signature = signer.sign(Label[vector["label"]], bytes.fromhex(vector["message"]))
        assert signature.hex() == vector["signature"]
        verify_vector(vector)
        checked += 1
    assert checked == 2


def test_bad_signature_vectors():
    """Each recorded flaw raises its error."""
    checked = 0
    for vector in VECTORS["bad_signature"]:
        with pytest.raises(getattr(errors, vector["error"])):
            verify_vector(vector)
        checked += 1
    assert checked == 12


def test_s14_a_wrong_signature_names_the_client_and_blames_nobody():
    """The error carries the client's id, also above 2**63, and the label; anybody could have sent it, so it is no fault."""
    roster, _, clients = roster_of(0, 2**63 + 9)
    signature = clients[0].sign(Label.SIGNATURE_STATEMENT, MESSAGE)
    with pytest.raises(SignatureError, match=f"client {2**63 + 9}.*STATEMENT") as caught:
        roster.verify(2**63 + 9, Label.SIGNATURE_STATEMENT, MESSAGE, signature)
    assert isinstance(caught.value, DecodeError)
    assert not isinstance(caught.value, PeerFault)


def test_s28_another_clients_signature_does_not_pass():
    """Each client's signature passes for that client alone."""
    roster, server, clients = roster_of(1, 2, 3)
    for signer in (*clients.values(), server):
        signature = signer.sign(Label.SIGNATURE_FRAME, MESSAGE)
        roster.verify(signer.id, Label.SIGNATURE_FRAME, MESSAGE, signature)
        for other in {1, 2, 3, SERVER_ID} - {signer.id}:
            with pytest.raises(ServerFault if other == SERVER_ID else SignatureError):
                roster.verify(other, Label.SIGNATURE_FRAME, MESSAGE, signature)


def test_a_signature_holds_under_one_label_only():
    """Whatever the labels and however the message begins, a signature is none under another label."""
    roster, _, clients = roster_of(1)
    for label in Label:
        signature = clients[1].sign(label, MESSAGE)
        roster.verify(1, label, MESSAGE, signature)
        for other in set(Label) - {label}:
            with pytest.raises(SignatureError):
                roster.verify(1, other, MESSAGE, signature)
    shifted = clients[1].sign(Label.SIGNATURE_STATEMENT, framed(Label.ROSTER))
    with pytest.raises(SignatureError):
        roster.verify(1, Label.ROSTER, framed(Label.SIGNATURE_STATEMENT), shifted)


def test_unknown_party_is_named():
    """An id that is not on the roster is an error of its own: there is nobody to blame."""
    roster, _, clients = roster_of(1)
    with pytest.raises(DecodeError, match="party 2 is not on the roster"):
        roster.verify(2, Label.SIGNATURE_STATEMENT, MESSAGE, clients[1].sign(Label.SIGNATURE_STATEMENT, MESSAGE))


@pytest.mark.parametrize("party", [-1, SERVER_ID, 2**64])
def test_client_ids_are_u64_below_the_servers(party):
    """No client can have the server's id, or none."""
    with pytest.raises(ParameterError, match=f"not {party}"):
        Identity.generate(party)
    roster, server, _ = roster_of()
    with pytest.raises(ParameterError, match=f"not {party}"):
        Roster({**roster.clients, party: bytes(32)}, server.verify_key, server.sealing_key)


def test_roster_refuses_malformed_and_repeated_keys():
    """A key of another length or one that two parties share is refused, by name."""
    _, server, clients = roster_of(1, 2)
    key, sealing = clients[1].public_key, server.sealing_key
    for arguments, named in (
        (({1: key[:-1]}, server.verify_key, sealing), "client 1 has 31 bytes"),
        (({1: key}, server.verify_key + b"\x00", sealing), "the server has 33 bytes"),
        (({1: key, 7: key}, server.verify_key, sealing), "client 1 and client 7 have the same key"),
        (({1: key}, key, sealing), "client 1 and the server have the same key"),
        (({1: key}, server.verify_key, sealing[:-1]), "sealing key of 31 bytes"),
    ):
        with pytest.raises(ParameterError, match=named):
            Roster(*arguments)


def test_roster_is_a_sorted_copy_that_nobody_changes():
    """Later changes of the caller's mapping do not reach the roster, and the roster takes none."""
    _, server, clients = roster_of(9, 3)
    keys = {party: client.public_key for party, client in clients.items()}
    roster = Roster(keys, server.verify_key, server.sealing_key)
    keys.clear()
    assert list(roster.clients) == [3, 9]
    with pytest.raises(TypeError):
        roster.clients[3] = bytes(32)
    with pytest.raises(AttributeError):
        roster.server_verify_key = bytes(32)


def test_fingerprint_covers_every_key_and_no_order():
    """The same keys in another order give the same fingerprint; any other key or id gives another one."""
    roster, server, clients = roster_of(1, 2)
    one, two = clients[1].public_key, clients[2].public_key
    verify, sealing = server.verify_key, server.sealing_key
    same = Roster({2: two, 1: one}, verify, sealing)
    assert same == roster
    assert same.fingerprint() == roster.fingerprint()
    others = [
        Roster({1: two, 2: one}, verify, sealing),
        Roster({1: one, 3: two}, verify, sealing),
        Roster({1: one}, verify, sealing),
        Roster({1: one, 2: two}, sealing, sealing),
        Roster({1: one, 2: two}, verify, verify),
    ]
    prints = {other.fingerprint() for other in others} | {roster.fingerprint()}
    assert len(prints) == 6
    assert all(len(bytes.fromhex(text)) == 32 for text in prints)


@pytest.mark.parametrize("suite", sorted(SUITES))
def test_server_opens_what_is_sealed_to_it(suite):
    """A box to the sealing key opens, under its own info only."""
    server = ServerIdentity.generate(suite, fixed(3))
    assert server.suite == suite
    assert len(server.sealing_key) == SUITES[suite].public_key_length
    info = box_info(Purpose.MAC_KEY, bytes(32), 1, SERVER_ID)
    box = SUITES[suite].seal(server.sealing_key, b"one-time key", info=info)
    assert server.open(box, info=info) == b"one-time key"
    with pytest.raises(SealError):
        server.open(box, info=box_info(Purpose.MAC_KEY, bytes(32), 2, SERVER_ID))


def test_keys_come_from_the_entropy_alone():
    """The same entropy gives the same keys, other entropy others, and the default gives fresh ones."""
    assert Identity.generate(1, fixed(1)).public_key == Identity.generate(2, fixed(1)).public_key
    assert Identity.generate(1, fixed(1)).public_key != Identity.generate(1, fixed(2)).public_key
    assert Identity.generate(1).public_key != Identity.generate(1).public_key
    assert ServerIdentity.generate().sealing_key != ServerIdentity.generate().sealing_key
    assert (
        ServerIdentity.generate("hybrid", fixed(1)).sealing_key
        == ServerIdentity.generate("hybrid", fixed(1)).sealing_key
    )


def test_short_entropy_and_unknown_suites_are_refused():
    """A short read never becomes a key, and a suite is one of two."""
    with pytest.raises(InputError, match="32 bytes"):
        Identity.generate(1, lambda count: bytes(count - 1))
    with pytest.raises(InputError, match="64 bytes"):
        ServerIdentity.generate("hybrid", lambda count: bytes(min(count, 32)))
    with pytest.raises(ParameterError, match="'quantum'"):
        ServerIdentity.generate("quantum")


class Token:
    """A key that is not in this process, as far as the package can tell."""

    def __init__(self, seed=7, answer=None):
        self._key = Ed25519PrivateKey.from_private_bytes(bytes([seed]) * 32)
        self.public_key = self._key.public_key().public_bytes_raw()
        self.answer = answer
        self.asked = []

    def sign(self, message):
        """The signature, or what the test wants instead."""
        self.asked.append(message)
        signature = self._key.sign(message)
        return signature if self.answer is None else self.answer(signature)


def fail(_):
    """A token that was pulled out."""
    raise OSError("PIN 1234")


def test_a_token_signs_for_a_client_and_for_the_server():
    """An identity of a foreign signer has its key and signs what one in memory would; the token sees label and message only."""
    token = Token()
    client = Identity.from_signer(4, token)
    assert client.sign(Label.SIGNATURE_FRAME, MESSAGE) == Identity.generate(4, fixed(7)).sign(
        Label.SIGNATURE_FRAME, MESSAGE
    )
    assert token.asked == [framed(Label.SIGNATURE_FRAME) + MESSAGE]
    secret = SUITES["classical"].key_pair(None, bytes([8]) * 32)
    server = ServerIdentity.from_signer(Token(9), secret)
    assert (client.id, server.id, server.suite) == (4, SERVER_ID, "classical")
    roster = Roster({4: client.public_key}, server.verify_key, server.sealing_key)
    for party in (client, server):
        roster.verify(party.id, Label.SIGNATURE_FRAME, MESSAGE, party.sign(Label.SIGNATURE_FRAME, MESSAGE))
    info = box_info(Purpose.MAC_KEY, bytes(32), 4, SERVER_ID)
    assert server.open(SUITES["classical"].seal(server.sealing_key, b"key", info=info), info=info) == b"key"


@pytest.mark.parametrize(
    ("answer", "words"),
    [
        (lambda signature: signature[:-1], "not 64 bytes"),
        (bytearray, "not 64 bytes"),
        (lambda _: None, "not 64 bytes"),
        (lambda signature: bytes([signature[0] ^ 1]) + signature[1:], "does not verify"),
        (lambda _: Token(8).sign(framed(Label.SIGNATURE_FRAME) + MESSAGE), "does not verify"),
        (fail, "failed: OSError"),
    ],
)
def test_what_a_faulty_token_gives_never_leaves(answer, words):
    """Another length, another key's signature or an exception is an error of our own side that does not repeat the driver's text."""
    secret = SUITES["classical"].key_pair(None, bytes([8]) * 32)
    for party in (
        Identity.from_signer(4, Token(answer=answer)),
        ServerIdentity.from_signer(Token(answer=answer), secret),
    ):
        with pytest.raises(SignerError, match=words) as caught:
            party.sign(Label.SIGNATURE_FRAME, MESSAGE)
        assert isinstance(caught.value, LocalError)
        assert "1234" not in str(caught.value)


def test_a_token_whose_key_changes_is_found_out():
    """The public key is read once: a token that answers with another key later does not verify."""
    token = Token()
    client = Identity.from_signer(4, token)
    token._key, token.public_key = Token(8)._key, Token(8).public_key
    with pytest.raises(SignerError, match="does not verify"):
        client.sign(Label.SIGNATURE_FRAME, MESSAGE)


@pytest.mark.parametrize("public_key", [b"", bytes(31), bytearray(32), None, "00" * 32])
def test_a_token_without_a_public_key_is_refused(public_key):
    """A signer's public key is 32 bytes."""
    token = Token()
    token.public_key = public_key
    with pytest.raises(SignerError, match="public key is not 32 bytes"):
        Identity.from_signer(4, token)
    with pytest.raises(SignerError, match="no public key: AttributeError"):
        Identity.from_signer(4, object())


def test_only_a_foreign_signer_is_checked():
    """Our own keys sign as they are, and nothing is wrapped twice."""
    own = SigningKey(Ed25519PrivateKey.from_private_bytes(bytes(32)))
    other = checked(Token())
    assert checked(own) is own
    assert isinstance(other, CheckedSigner)
    assert checked(other) is other


@pytest.mark.parametrize(
    "make",
    [
        lambda: Identity.generate(5, fixed(0xAB)),
        lambda: ServerIdentity.generate("hybrid", fixed(0xAB)),
        lambda: SigningKey(Ed25519PrivateKey.from_private_bytes(bytes([0xAB]) * 32)),
    ],
)
def test_identities_never_print_or_copy(make):
    """Neither repr nor str shows the private key, and no copy or pickle is made."""
    party = make()
    for text in (repr(party), str(party), repr([party])):
        assert "abababab" not in text
        assert r"\xab" not in text
        assert "redacted" in text
    for take in (copy.copy, copy.deepcopy, lambda one: one.__reduce_ex__(4), lambda one: one.__getstate__()):
        with pytest.raises(TypeError, match="never pickled"):
            take(party)
    assert not hasattr(party, "__dict__")
