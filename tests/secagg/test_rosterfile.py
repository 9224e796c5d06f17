import copy
import hashlib
import json
import os
import stat

import msgspec
import pytest
from cryptography.hazmat.primitives.asymmetric.ed25519 import Ed25519PrivateKey, Ed25519PublicKey

from secagg import rosterfile
from secagg.crypto.kdf import Label, framed
from secagg.crypto.sealing import SERVER_ID
from secagg.errors import RosterError, SignerError
from secagg.identity import Identity, Roster, ServerIdentity, SigningKey
from secagg.keyfile import ClientKey, ServerKey
from secagg.rosterfile import RosterFile, load


def fixed(value):
    """Entropy of one repeated byte."""
    return lambda count: bytes([value]) * count


def signer_of(value):
    """A consortium key."""
    return SigningKey(Ed25519PrivateKey.from_private_bytes(bytes([value]) * 32))


def client_key(client, value=None, name="site"):
    """A client's public half, the key from one repeated byte."""
    public = Identity.generate(client, fixed(client + 1 if value is None else value)).public_key.hex()
    return ClientKey(format="secagg-key/1", id=str(client), name=name, public_key=public)


def server_key(suite="hybrid", value=200):
    """A server's public half, the keys from one repeated byte."""
    server = ServerIdentity.generate(suite, fixed(value))
    return ServerKey(
        format="secagg-key/1",
        name="server",
        suite=suite,
        verify_key=server.verify_key.hex(),
        sealing_key=server.sealing_key.hex(),
    )


CONSORTIUM = signer_of(100)
PINNED = CONSORTIUM.public_key


@pytest.fixture
def path(tmp_path):
    """Where a roster is saved."""
    return tmp_path / "roster.json"


@pytest.fixture(scope="module")
def full():
    """A signed roster with every kind of entry: active, revoked, left, replaced, two servers."""
    roster = RosterFile.empty().add(
        *(client_key(i) for i in (1, 2, 3, 4, 5)), server_key(), server_key("classical", 201)
    )
    return roster.revoke(3).revoke(4, left=True).add(client_key(2, 50), replace=True).sign(CONSORTIUM)


def saved(path, content):
    """Content that somebody else wrote, at a path."""
    path.write_text(json.dumps(content))
    return path


def test_a_roster_comes_back_from_its_file(path, full):
    """What was saved loads as it was, under the pinned key and without one; the file is readable by all, and nothing else lies about."""
    before = os.umask(0o022)
    try:
        full.save(path)
    finally:
        os.umask(before)
    assert load(path, pinned=PINNED) == load(path, pinned=None) == full
    assert stat.S_IMODE(path.stat().st_mode) == 0o644
    assert list(path.parent.iterdir()) == [path]


@pytest.mark.parametrize("suite", ["hybrid", "classical"])
def test_only_active_members_are_on_the_roster_of_a_round(full, suite):
    """Revoked members and those that left are not on it, replaced keys are the new ones, and the server is that of the suite."""
    server = ServerIdentity.generate(suite, fixed(200 if suite == "hybrid" else 201))
    keys = {1: Identity.generate(1, fixed(2)), 2: Identity.generate(2, fixed(50)), 5: Identity.generate(5, fixed(6))}
    expected = Roster({i: key.public_key for i, key in keys.items()}, server.verify_key, server.sealing_key)
    assert full.roster(suite) == expected


def test_a_roster_without_a_server_for_the_suite_gives_none():
    """The missing suite is named."""
    with pytest.raises(RosterError, match="no server for the hybrid suite"):
        RosterFile.empty().add(client_key(1), server_key("classical")).roster("hybrid")


def test_ids_are_exact_beyond_what_a_json_number_is(path):
    """An id above 2^53 comes back exactly, and the order is that of numbers."""
    ids = (2**64 - 2, 2**53 + 1, 9, 10)
    keys = (
        ClientKey(format="secagg-key/1", id=str(i), name="s", public_key=f"{n:02x}" * 32) for n, i in enumerate(ids, 3)
    )
    RosterFile.empty().add(*keys, server_key()).save(path)
    assert tuple(load(path, pinned=None).roster().clients) == tuple(sorted(ids))
    assert [member["id"] for member in json.loads(path.read_text())["members"]] == [str(i) for i in sorted(ids)]


def test_every_change_counts_chains_and_drops_the_signature(full):
    """Each change raises the sequence number by one, adds the digest of the state before, and leaves the result unsigned."""
    states = [RosterFile.empty()]
    for change in (
        lambda r: r.add(client_key(1), client_key(2)),
        lambda r: r.sign(CONSORTIUM),
        lambda r: r.add(client_key(3)),
        lambda r: r.revoke(1),
        lambda r: r.add(client_key(2, 60), replace=True),
    ):
        states.append(change(states[-1]))
    assert [state.sequence for state in states] == [0, 1, 2, 3, 4, 5]
    assert states[-1].previous == tuple(state.digest().hex() for state in states[:-1])
    assert [state.signature is not None for state in states] == [False, False, True, False, False, False]
    again = states[-1].sign(CONSORTIUM)
    assert (again.sequence, again.digest()) == (5, states[-1].digest()), "a signature alone is no change"
    assert full.signature is not None
    assert full.revoke(1).signature is None


def leaves(value, where=()):
    """Every place of a JSON value that holds no container."""
    items = value.items() if isinstance(value, dict) else enumerate(value) if isinstance(value, list) else None
    if items is None:
        yield where
        return
    for key, inner in items:
        yield from leaves(inner, (*where, key))


def altered(value):
    """Another value of the same kind."""
    if isinstance(value, int):
        return value + 1
    if value in ("active", "revoked", "left"):
        return "left" if value == "revoked" else "revoked"
    return value[:-1] + ("1" if value[-1] != "1" else "2")


def test_any_changed_value_of_a_signed_roster_is_refused(path, full):
    """Whatever value somebody changes, the file is refused under the pinned key and without one; and so is any removed entry."""
    content = msgspec.to_builtins(full)
    content = json.loads(json.dumps(content))
    checked = 0
    for where in leaves(content):
        changed = copy.deepcopy(content)
        inner = changed
        for key in where[:-1]:
            inner = inner[key]
        inner[where[-1]] = altered(inner[where[-1]])
        for pinned in (PINNED, None):
            with pytest.raises(RosterError, match=r"roster\.json"):
                load(saved(path, changed), pinned=pinned)
        checked += 1
    for name in ("members", "servers", "retired", "previous"):
        for place in range(len(content[name])):
            changed = copy.deepcopy(content)
            del changed[name][place]
            with pytest.raises(RosterError):
                load(saved(path, changed), pinned=None)
            checked += 1
    assert checked > 50
    assert load(saved(path, content), pinned=PINNED) == full


def test_spacing_and_order_are_free(path, full):
    """What is signed is the content: the same in another layout loads."""
    content = json.loads(json.dumps(msgspec.to_builtins(full)))
    path.write_text(json.dumps(dict(reversed(content.items())), indent=7))
    assert load(path, pinned=PINNED) == full


def test_a_pinned_key_refuses_what_it_did_not_sign(path, full):
    """Unsigned, signed by another key, or without a consortium: each is refused when a key is pinned, with its reason."""
    other = signer_of(101)
    unsigned = RosterFile.empty().add(client_key(1))
    for roster, words in (
        (unsigned, "the consortium key is none, and"),
        (msgspec.structs.replace(full, signature=None), "not signed, and the consortium key is pinned"),
        (unsigned.sign(other), f"the consortium key is {other.public_key.hex()}, and {PINNED.hex()} is pinned"),
    ):
        roster.save(path)
        with pytest.raises(RosterError, match=rf"roster\.json: {words}"):
            load(path, pinned=PINNED)
        assert load(path, pinned=None) == roster
    forged = msgspec.structs.replace(full, signature=other.sign(framed(Label.SIGNATURE_ROSTER) + full.digest()).hex())
    forged.save(path)
    for pinned in (PINNED, None):
        with pytest.raises(RosterError, match="the signature does not fit the content"):
            load(path, pinned=pinned)


def test_a_signature_for_another_purpose_is_none(path, full):
    """The consortium's signature over the same digest under another label does not make a roster."""
    for label in set(Label) - {Label.SIGNATURE_ROSTER}:
        signature = CONSORTIUM.sign(framed(label) + full.digest())
        msgspec.structs.replace(full, signature=signature.hex()).save(path)
        with pytest.raises(RosterError, match="does not fit"):
            load(path, pinned=PINNED)


def test_an_older_roster_is_refused(path):
    """With the sequence number last seen, an earlier signed state is a rollback; the same and later ones load."""
    old = RosterFile.empty().add(client_key(1), client_key(2)).sign(CONSORTIUM)
    new = old.revoke(1).sign(CONSORTIUM)
    old.save(path)
    with pytest.raises(RosterError, match=r"roster\.json: sequence 2 is older than 3, which was seen before"):
        load(path, pinned=PINNED, at_least=new.sequence)
    for roster in (old, new):
        roster.save(path)
        assert load(path, pinned=PINNED, at_least=old.sequence) == roster


def test_a_fork_is_refused(path):
    """With the digest last seen, a signed roster that does not come after that state is refused, however long; a successor loads."""
    base = RosterFile.empty().add(client_key(1), client_key(2)).sign(CONSORTIUM)
    seen = base.revoke(1).sign(CONSORTIUM)
    fork = base.revoke(2).sign(CONSORTIUM)
    longer = fork.add(client_key(3)).add(client_key(4)).sign(CONSORTIUM)
    for roster in (base, fork, longer):
        roster.save(path)
        with pytest.raises(RosterError, match=r"roster\.json: does not come after the state"):
            load(path, pinned=PINNED, seen=seen.digest())
    for roster in (seen, seen.add(client_key(3)).add(client_key(4)).sign(CONSORTIUM)):
        roster.save(path)
        assert load(path, pinned=PINNED, at_least=seen.sequence, seen=seen.digest()) == roster


def test_a_replaced_key_is_listed_as_retired():
    """Old keys of a client and of a server stay in the file, with owner and sequence number."""
    roster = RosterFile.empty().add(client_key(1), server_key())
    roster = roster.add(client_key(1, 50), server_key("hybrid", 51), replace=True)
    old = server_key()
    assert [(r.owner, r.key, r.since) for r in roster.retired] == [
        ("client 1", client_key(1).public_key, 2),
        ("server hybrid", old.verify_key, 2),
        ("server hybrid", old.sealing_key, 2),
    ]
    assert roster.members[0].since == 2
    assert roster.roster().clients[1] == bytes.fromhex(client_key(1, 50).public_key)


@pytest.mark.parametrize("owner", [1, 7])
def test_a_retired_or_revoked_key_comes_back_for_nobody(owner):
    """Neither its old owner nor somebody new gets a key that was replaced, revoked, or left with its site."""
    roster = RosterFile.empty().add(client_key(1), client_key(2), client_key(3), client_key(4))
    roster = roster.add(client_key(1, 50), replace=True).revoke(2).revoke(3, left=True)
    for value, whose in ((2, r"client 1 \(retired\)"), (3, r"client 2 \(revoked\)"), (4, r"client 3 \(left\)")):
        with pytest.raises(RosterError, match=whose):
            roster.add(client_key(owner, value), replace=owner == 1)
    server = msgspec.structs.replace(server_key(), verify_key=client_key(1).public_key)
    with pytest.raises(RosterError, match=r"server hybrid and client 1 \(retired\) have the same key"):
        roster.add(server)
    for value in (2, 3, 4, 50):
        with pytest.raises(RosterError, match="consortium have the same key"):
            roster.sign(signer_of(value))


def test_a_site_comes_back_with_a_new_key():
    """A member that was revoked or left is active again under a key that nobody had."""
    roster = RosterFile.empty().add(client_key(1), client_key(2), server_key()).revoke(1).revoke(2, left=True)
    roster = roster.add(client_key(1, 50), client_key(2, 51), replace=True)
    assert [member.status for member in roster.members] == ["active", "active"]
    assert sorted(roster.roster().clients) == [1, 2]


def test_changes_that_make_no_sense_are_refused():
    """Adding twice, replacing or revoking nobody, revoking twice: each names the party."""
    roster = RosterFile.empty().add(client_key(1), client_key(2), server_key()).revoke(2)
    for change, words in (
        (lambda: roster.add(client_key(1, 50)), "client 1 is on the roster already"),
        (lambda: roster.add(client_key(2, 50)), "client 2 is on the roster already"),
        (lambda: roster.add(server_key("hybrid", 50)), "server hybrid is on the roster already"),
        (lambda: roster.add(client_key(3), replace=True), "client 3 is not on the roster"),
        (lambda: roster.add(client_key(3), client_key(3, 50)), "client 3 is on the roster already"),
        (lambda: roster.revoke(3), "client 3 is not on the roster"),
        (lambda: roster.revoke(2), "client 2 is not active: revoked since sequence 2"),
    ):
        with pytest.raises(RosterError, match=words):
            change()


def test_another_consortium_key_signs_only_when_told(path, full):
    """A new consortium key needs `replace`, is a change, and retires the old one, which then signs nothing more."""
    new = signer_of(110)
    with pytest.raises(RosterError, match=f"the consortium key is {PINNED.hex()}, and this is {new.public_key.hex()}"):
        full.sign(new)
    changed = full.sign(new, replace=True)
    assert changed.sequence == full.sequence + 1
    assert changed.retired[-1].key == PINNED.hex()
    changed.save(path)
    assert load(path, pinned=new.public_key) == changed
    with pytest.raises(RosterError, match="is pinned"):
        load(path, pinned=PINNED)
    with pytest.raises(RosterError, match=r"consortium \(retired\) and consortium have the same key"):
        changed.sign(CONSORTIUM, replace=True)


def test_a_token_that_fails_signs_no_roster(full):
    """The consortium's key may be in a token, and what a faulty one gives is refused."""

    class Token:
        public_key = PINNED

        def __init__(self, damage):
            self.damage = damage

        def sign(self, message):
            signature = bytearray(CONSORTIUM.sign(message))
            signature[0] ^= self.damage
            return bytes(signature)

    assert full.sign(Token(0)) == full
    with pytest.raises(SignerError, match="does not verify"):
        full.sign(Token(1))


def change_of(*where, **fields):
    """A change of the JSON: some fields of the object at a place."""

    def change(content):
        for key in where:
            content = content[key]
        content.update(fields)

    return change


def drop(*where):
    """A change of the JSON: the field at a place is gone."""

    def change(content):
        for key in where[:-1]:
            content = content[key]
        del content[where[-1]]

    return change


MALFORMED = [
    (change_of(extra=1), r"unknown field `extra`"),
    (change_of("members", 0, extra=1), r"unknown field `extra` - at `\$\.members\[0\]`"),
    (change_of(format="secagg-roster/2"), r"secagg-roster/2"),
    (change_of(sequence=True), r"got `bool` - at `\$\.sequence`"),
    (change_of(sequence=-1), r"\$\.sequence"),
    (change_of(sequence=2**53), r"\$\.sequence"),
    (change_of(sequence="5"), r"\$\.sequence"),
    (change_of(sequence=9), r"sequence 9 with 5 earlier states"),
    (change_of("members", 1, since=False), r"got `bool` - at `\$\.members\[1\]\.since`"),
    (change_of("members", 1, since=99), r"sequence 99 in a roster of sequence 5"),
    (change_of("members", 1, since=0), r"sequence 0 in a roster"),
    (change_of("members", 2, id=3), r"Expected `str`, got `int` - at `\$\.members\[2\]\.id`"),
    (change_of("members", 2, id="03"), r"\$\.members\[2\]\.id"),
    (change_of("members", 2, id="-3"), r"\$\.members\[2\]\.id"),
    (change_of("members", 4, id=str(SERVER_ID)), r"a client id is in"),
    (change_of("members", 0, id="2"), r"client 2 is there twice"),
    (change_of("members", 0, id="3"), r"client 2 comes after client 3"),
    (change_of("members", 2, status="gone"), r"\$\.members\[2\]\.status"),
    (change_of("members", 2, name="a\nb"), r"a name has"),
    (change_of("members", 2, public_key="AB" * 32), r"\$\.members\[2\]\.public_key"),
    (change_of("members", 2, public_key="ab" * 33), r"\$\.members\[2\]\.public_key"),
    (change_of("members", 2, public_key="zz" * 32), r"\$\.members\[2\]\.public_key"),
    (change_of("members", 2, public_key=client_key(1).public_key), r"client 1 and client 3 \(revoked\) have the same"),
    (
        change_of("members", 2, public_key=client_key(2).public_key),
        r"client 3 \(revoked\) and client 2 \(retired\) have",
    ),
    (change_of("members", 0, public_key=PINNED.hex()), r"client 1 and consortium have the same key"),
    (change_of("members", 0, public_key="01" + "00" * 31), r"client 1 has a key of small order"),
    (change_of("servers", 0, sealing_key="00" * 32), r"no classical box can be made"),
    (change_of("servers", 0, sealing_key="ab" * 33), r"a classical public key has 32 bytes"),
    (change_of("servers", 0, sealing_key="abc" * 33), r"\$\.servers\[0\]\.sealing_key"),
    (change_of("servers", 0, suite="quantum"), r"quantum"),
    (change_of("servers", 1, **msgspec.to_builtins(server_key("classical", 77))), r"unknown field `(kind|format)`"),
    (change_of("retired", 0, owner="somebody"), r"\$\.retired\[0\]\.owner"),
    (change_of(signature="ab" * 63), r"\$\.signature"),
    (change_of(consortium=None), r"a signature, and no consortium key"),
    (change_of(members={}), r"\$\.members"),
    (change_of(previous=[1]), r"\$\.previous\[0\]"),
    *((drop(name), rf"missing required field `{name}`") for name in RosterFile.__struct_fields__),
    (drop("members", 0, "status"), r"missing required field `status` - at `\$\.members\[0\]`"),
    (drop("servers", 1, "since"), r"missing required field `since` - at `\$\.servers\[1\]`"),
]


@pytest.mark.parametrize(("change", "words"), MALFORMED)
def test_a_malformed_roster_is_refused(path, full, change, words):
    """Unknown and missing fields, other types and spellings, contradictions: file and entry are named, and the text is one line."""
    content = json.loads(json.dumps(msgspec.to_builtins(full)))
    change(content)
    with pytest.raises(RosterError, match=rf"roster\.json: .*{words}") as caught:
        load(saved(path, content), pinned=None)
    assert str(caught.value).isprintable()


def test_two_servers_of_one_suite_are_refused(path, full):
    """There is one server entry a suite."""
    content = json.loads(json.dumps(msgspec.to_builtins(full)))
    keys = server_key("classical", 77)
    content["servers"][1] |= {"suite": "classical", "verify_key": keys.verify_key, "sealing_key": keys.sealing_key}
    with pytest.raises(RosterError, match="server classical is there twice"):
        load(saved(path, content), pinned=None)


@pytest.mark.parametrize(
    ("text", "words"),
    [
        ("", "Expecting value"),
        ("[]", "Expected `object`"),
        ("null", "Expected `object`"),
        ('{"format": "secagg-roster/1", "format": "secagg-roster/1"}', "'format' comes twice"),
        ('{"sequence": 1.0}', "1.0 is not an integer"),
        ("[" * 100_000, "nested too deeply"),
        ("\ud800", None),
    ],
)
def test_what_is_no_roster_is_refused(path, text, words):
    """Text that is no JSON, another value, repeated keys, fractions: refused with the file's name."""
    path.write_bytes(text.encode("utf-8", "surrogatepass"))
    with pytest.raises(RosterError, match=rf"roster\.json: .*{words or 'decode'}"):
        load(path, pinned=None)


def test_a_roster_has_a_largest_size(path, full, monkeypatch):
    """More than 8 MiB is not read, and not written."""
    path.write_bytes(b" " * (8 * 2**20 + 1))
    with pytest.raises(RosterError, match=r"roster\.json: has more than 8388608 bytes"):
        load(path, pinned=None)
    path.unlink()
    monkeypatch.setattr(rosterfile, "MAX_FILE", 1000)
    with pytest.raises(RosterError, match=r"roster\.json: would have more than 1000 bytes"):
        full.save(path)
    assert not path.exists()


def test_a_missing_roster_is_named(tmp_path):
    """There is no roster until somebody makes one."""
    with pytest.raises(RosterError, match=r"none\.json: No such file"):
        load(tmp_path / "none.json", pinned=None)


def test_a_write_that_fails_leaves_the_old_roster(path, full, monkeypatch):
    """Nothing half-written: the file is the old state when the disk fails."""
    full.save(path)

    def broken(_):
        raise OSError(5, "Input/output error")

    monkeypatch.setattr(os, "fsync", broken)
    with pytest.raises(RosterError, match=r"roster\.json: Input/output error"):
        full.revoke(1).save(path)
    assert load(path, pinned=PINNED) == full
    assert list(path.parent.iterdir()) == [path]


def test_a_link_to_a_roster_stays_one(tmp_path, full):
    """Saving through a link replaces the file that it names."""
    (tmp_path / "shared").mkdir()
    link = tmp_path / "roster.json"
    link.symlink_to(tmp_path / "shared" / "roster.json")
    full.save(link)
    assert link.is_symlink()
    assert load(tmp_path / "shared" / "roster.json", pinned=PINNED) == full


P = 2**255 - 19
D = -121665 * pow(121666, -1, P) % P


def root(value):
    """A square root modulo 2^255 - 19, or None."""
    guess = pow(value, (P + 3) // 8, P)
    return next((r for r in (guess, guess * pow(2, (P - 1) // 4, P) % P) if r * r % P == value % P), None)


def small_order_ys():
    """The y-coordinates of order 1, 2, 4 and 8: a point of order 8 has y^2 = -x^2, so that its double has y = 0."""
    squares = [(sign * root(1 + D) - 1) * pow(D, -1, P) % P for sign in (1, -1)]
    eighth = [r for square in squares if (r := root(square)) is not None]
    return {1, P - 1, 0, *eighth, *(P - y for y in eighth)}


def test_keys_of_small_order_are_refused_in_every_spelling():
    """All points whose order divides 8, with either sign bit and unreduced where that fits: anybody can sign for such a key."""
    ys = small_order_ys()
    assert len(ys) == 5
    spellings = {
        (y + shift + sign).to_bytes(32, "little")
        for y in ys
        for shift in (0, P)
        for sign in (0, 2**255)
        if y + shift < 2**255
    }
    assert len(spellings) == 14
    for key in spellings:
        public = msgspec.structs.replace(client_key(1), public_key=key.hex())
        with pytest.raises(RosterError, match="client 1 has a key of small order"):
            RosterFile.empty().add(public)


def test_why_keys_of_small_order_are_refused():
    """Without any secret, one signature verifies for any message under the neutral element."""
    neutral = (1).to_bytes(32, "little")
    for message in (b"one", b"another"):
        Ed25519PublicKey.from_public_bytes(neutral).verify(neutral + bytes(32), message)


def test_the_digest_covers_everything_but_the_signature(full):
    """Signing anew changes no digest; another name does."""
    assert msgspec.structs.replace(full, signature=None).digest() == full.digest()
    renamed = msgspec.structs.replace(full.members[0], name="other")
    assert msgspec.structs.replace(full, members=(renamed, *full.members[1:])).digest() != full.digest()


def test_the_digest_is_sha256_of_label_and_canonical_json(full):
    """By another road: u8 length and label, 01 and u32 length, and the content with sorted keys and no spaces."""
    content = json.loads(json.dumps(msgspec.to_builtins(full)))
    del content["signature"]
    text = json.dumps(content, sort_keys=True, separators=(",", ":")).encode()
    label = b"secagg/1 roster file"
    framing = bytes([len(label)]) + label + b"\x01" + len(text).to_bytes(4, "big")
    assert full.digest() == hashlib.sha256(framing + text).digest()
