import dataclasses
import hashlib
import pickle

import msgspec
import pytest

from secagg import messages
from secagg.crypto.kdf import Label
from secagg.crypto.sealing import SUITES
from secagg.protocols.pairwise import parties
from secagg.testing import parties as keys

T1 = b"\x11" * 32
SECRET = b"\x5e" * 32


def framed(label, *items):
    """The hash input by hand: label framed by its length, integers as 00 || u64be, bytes as 01 || u32be length || bytes."""
    out = len(label).to_bytes(1, "big") + label
    for item in items:
        out += (
            b"\x00" + item.to_bytes(8, "big")
            if isinstance(item, int)
            else b"\x01" + len(item).to_bytes(4, "big") + item
        )
    return out


def sha(label, *items):
    """SHA-256 over the framed label and items."""
    return hashlib.sha256(framed(b"secagg/1 " + label, *items)).digest()


def test_commitments_are_the_documented_hashes():
    """Known answers by hand: pair, share and self-seed commitments, and the digest of an advertisement."""
    assert parties.pair_commitment(T1, 3, 2**63, SECRET) == sha(b"pair seed commitment", T1, 3, 2**63, SECRET)
    assert parties.share_commitment(T1, 3, 4, b"root", b"s" * 36) == sha(
        b"share commitment", T1, 3, 4, b"root", b"s" * 36
    )
    assert parties.seed_commitment(T1, 3, SECRET) == sha(b"self seed commitment", T1, 3, SECRET)
    assert parties.advertisement_digest(b"frame") == sha(b"advertisement", b"frame")


def transcript_of(params, digests):
    """T1 over some digests, by id."""
    _, server, roster = keys(params.cohort, params.suite)
    host = parties.Host(params, roster, server)
    blob = b"".join(i.to_bytes(8, "big") + digest for i, digest in digests.items())
    return parties.view(host, blob, tuple(digests), {}).transcript


def test_the_transcript_covers_the_context_and_every_digest(params_of):
    """T1 is the hash of the context and the digests side by side, 40 bytes a member; the graph is over U1."""
    p = params_of(cohort=(2, 5, 9, 11))
    expected = sha(b"transcript", p.context, (2).to_bytes(8, "big") + b"b" * 32 + (9).to_bytes(8, "big") + b"i" * 32)
    assert transcript_of(p, {2: b"b" * 32, 9: b"i" * 32}) == expected
    _, server, roster = keys(p.cohort, p.suite)
    seen = parties.view(parties.Host(p, roster, server), bytes(80), (2, 9), {})
    assert seen.advertisers == (2, 9)
    assert seen.graph.holders(2) == (2, 9)


@pytest.mark.parametrize("digests", [{}, {2: b"b" * 32}, {2: b"i" * 32, 9: b"b" * 32}, {2: b"b" * 32, 8: b"i" * 32}])
def test_another_set_of_advertisements_is_another_transcript(params_of, digests):
    """One more, one fewer, two swapped, another id: T1 differs; and so it does in another round."""
    p = params_of(cohort=(2, 8, 9, 11))
    good = {2: b"b" * 32, 9: b"i" * 32}
    assert transcript_of(p, digests) != transcript_of(p, good)
    assert transcript_of(params_of(cohort=(2, 8, 9, 11), round=1), good) != transcript_of(p, good)


@pytest.mark.parametrize("change", [(b"\x12" * 32, 3, 4), (T1, 5, 4), (T1, 3, 5), (T1, 4, 3)])
def test_a_pair_seed_is_bound_to_transcript_and_direction(change):
    """Another T1, chooser or peer gives another seed and another commitment."""
    transcript, chooser, peer = change
    assert parties.pair_seed(SECRET, transcript, chooser, peer) != parties.pair_seed(SECRET, T1, 3, 4)
    assert parties.pair_commitment(transcript, chooser, peer, SECRET) != parties.pair_commitment(T1, 3, 4, SECRET)


def test_the_two_shares_of_one_holder_have_different_commitments():
    """A root share can't be shown for a self share."""
    args = (T1, 3, 4)
    assert parties.share_commitment(*args, b"root", b"s" * 36) != parties.share_commitment(*args, b"self", b"s" * 36)


@pytest.mark.parametrize("suite", ["classical", "hybrid"])
def test_the_mask_key_is_a_function_of_root_and_context(suite):
    """Equal roots give equal keys; another root, context or label gives another key."""
    suite = SUITES[suite]
    key = parties.mask_key_pair(suite, SECRET, T1).public
    assert len(key) == suite.public_key_length
    assert parties.mask_key_pair(suite, SECRET, T1).public == key
    assert parties.mask_key_pair(suite, SECRET, b"\x12" * 32).public != key
    assert parties.mask_key_pair(suite, SECRET[:-1] + b"x", T1).public != key
    channel = parties.key_pair(suite, SECRET, T1, Label.CHANNEL_KEY_MLKEM, Label.CHANNEL_KEY_X25519).public
    assert channel[-32:] != key[-32:]
    assert channel[:32] != key[:32]


def test_a_statement_is_the_digest_of_the_three_agreed_things():
    """S covers the transcript, U2 and U3 as ids side by side, and differs if any does."""
    ids = lambda *clients: b"".join(i.to_bytes(8, "big") for i in clients)  # noqa: E731 - short
    encoded = parties.statement(T1, (1, 2, 3), (1, 2))
    assert encoded == sha(b"statement", T1, ids(1, 2, 3), ids(1, 2))
    assert parties.encode_ids((1, 2**64 - 2)) == ids(1, 2**64 - 2)
    others = {
        parties.statement(b"\x12" * 32, (1, 2, 3), (1, 2)),
        parties.statement(T1, (1, 2), (1, 2)),
        parties.statement(T1, (1, 2, 3), (1, 3)),
        parties.statement(T1, (1, 2), (1, 2, 3)),
    }
    assert encoded not in others
    assert len(others) == 4


def walk(value, seen):
    """Every object of the package that hangs on a value."""
    if id(value) in seen:
        return
    seen[id(value)] = value
    if type(value).__module__.startswith("secagg"):
        yield value
    if dataclasses.is_dataclass(value):
        children = [getattr(value, f.name) for f in dataclasses.fields(value)]
    elif isinstance(value, dict):
        children = list(value.values())
    elif isinstance(value, list | tuple):
        children = list(value)
    elif isinstance(value, msgspec.Struct):
        children = [getattr(value, f) for f in value.__struct_fields__]
    else:
        children = list(getattr(value, "__dict__", {}).values())
    for child in children:
        yield from walk(child, seen)


def test_no_state_prints_a_secret(new_round):
    """In every phase, whatever hangs on a client's or the server's session shows no secret in `repr` or `str`."""
    rd = new_round()
    rd.silence(3, "mask")
    objects = 0
    while rd.session.phase is not None:
        rd.step()
        rd.collect_secrets()
        secrets = rd.secrets
        for session in (*rd.clients.values(), rd.session):
            for thing in walk(session, {}):
                objects += 1
                for text in (repr(thing), str(thing), f"{thing}"):
                    assert not [s for s in secrets if s.hex() in text or repr(s)[2:-1] in text], type(thing)
    assert len(rd.secrets) > 40
    assert objects > 200


def test_redacted_things_show_their_type_alone():
    """The representation of whatever holds a secret is its type's name."""

    @dataclasses.dataclass(frozen=True, repr=False)
    class Holder(parties.Redacted):
        secret: bytes

    assert repr(Holder(SECRET)) == str(Holder(SECRET)) == "<Holder>"


def test_redacted_things_are_not_pickled():
    """A secret leaves a process in frames only."""
    from secagg.protocols.pairwise.share import HeldShares

    with pytest.raises(TypeError):
        pickle.dumps(HeldShares(b"r" * 36, b"s" * 36))


@pytest.mark.parametrize(
    "answer", [messages.SelfShare(1, b"\x5e" * 36), messages.RootShare(1, b"\x5e" * 36, b"\x5e" * 32)]
)
def test_answers_of_exchange_5_do_not_print_their_shares(answer):
    """A share on its way is as secret as at its holder."""
    unmask = messages.Unmask(binding=T1, sender=1, answers=(answer,))
    for text in (repr(answer), repr(unmask)):
        assert "^" * 8 not in text


def test_answers_are_made_when_they_are_asked_for():
    """An outbox knows its recipients without making anything, and makes each answer when it is looked up."""
    made = []
    box = parties.Outbox((3, 5), lambda i: made.append(i) or bytes([i]))
    assert (list(box), len(box), 3 in box, 4 in box, made) == ([3, 5], 2, True, False, [])
    assert box[5] == b"\5"
    assert made == [5]
    with pytest.raises(KeyError):
        box[4]
