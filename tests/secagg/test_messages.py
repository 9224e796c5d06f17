import contextlib

import msgspec
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from secagg import messages
from secagg.crypto.kdf import Label
from secagg.crypto.sealing import SERVER_ID
from secagg.errors import DecodeError, SecaggError, ServerFault, SignatureError
from secagg.identity import Claim
from secagg.testing import parties

B32, B36, B64, B16 = b"\x20" * 32, b"\x24" * 36, b"\x40" * 64, b"\x10" * 16
FIELDS = {"binding": B32, "sender": 2}
IDENTITIES, SERVER, ROSTER = parties((1, 2, 2**64 - 2), "classical")

MESSAGES = [
    messages.Advertise(**FIELDS, channel_key=b"c" * 32, mask_key=b"m" * 32, seed_commitment=B32, mac_box=b"box"),
    messages.Advertised(**FIELDS, transcript=B32),
    messages.ShareHeader(**FIELDS, root=B32),
    messages.Shared(**FIELDS, members=(1, 2)),
    messages.MaskHeader(**FIELDS, body_length=7, refused=(1,), tag=B16),
    messages.Survivors(**FIELDS, members=(1, 2)),
    messages.Confirm(**FIELDS, signature=B64),
    messages.Quorum(**FIELDS, signatures=((1, B64),)),
    messages.Unmask(**FIELDS, answers=(messages.SelfShare(1, B36), messages.RootShare(2, B36, B32))),
    messages.Decline(**FIELDS, phase="mask", rule="min_cohort", reason="too few"),
]
PARTS = [
    messages.Signed(b"payload", B64),
    messages.AdvertisedFrame(b"header", b"d" * 40, (b"frame", b"frame")),
    messages.ShareFrame(b"header", (b"leaf", b"leaf")),
    messages.SharedFrame(b"header", (messages.Delivery(b"header", b"leaf", B32),)),
]
ALL = MESSAGES + PARTS
KINDS = [type(x) for x in ALL]
IDS = [f"{type(x).__name__}-{i}" for i, x in enumerate(ALL)]


def raw(message):
    """The encoding as plain lists, integers and bytes."""
    return msgspec.msgpack.decode(messages.encode(message))


def packed(items):
    """The encoding of plain lists, integers and bytes."""
    return msgspec.msgpack.encode(items)


def seal(message, sender=2):
    """A client's signed frame."""
    return messages.seal(message, IDENTITIES[sender].sign)


@pytest.mark.parametrize("message", ALL, ids=IDS)
def test_encoding_and_decoding_are_inverse(message):
    """Every message comes back as it was."""
    assert messages.decode(messages.encode(message), type(message)) == message


def test_the_wire_form_is_as_documented():
    """A known answer: [kind, version, binding, sender, fields ...] in MessagePack, shortest forms."""
    assert (
        messages.encode(MESSAGES[5]).hex() == "95a9737572766976 6f727301c420".replace(" ", "") + B32.hex() + "02920102"
    )


@pytest.mark.parametrize("message", ALL, ids=IDS)
def test_truncated_and_trailing_bytes_are_refused(message):
    """No proper prefix and no extension of an encoding decodes."""
    data = messages.encode(message)
    for cut in range(len(data)):
        with pytest.raises(DecodeError):
            messages.decode(data[:cut], type(message))
    for tail in (b"\x00", b"\xc0", data):
        with pytest.raises(DecodeError):
            messages.decode(data + tail, type(message))


@pytest.mark.parametrize("message", ALL, ids=IDS)
def test_one_field_more_or_fewer_is_refused(message):
    """Every message has an exact number of fields."""
    for items in ([*raw(message), 0], [*raw(message), None], raw(message)[:-1], []):
        with pytest.raises(DecodeError):
            messages.decode(packed(items), type(message))


@pytest.mark.parametrize("message", MESSAGES, ids=IDS[: len(MESSAGES)])
def test_another_kind_is_refused(message):
    """A message never decodes as one of another kind, not even where the fields would fit."""
    for kind in KINDS:
        if kind is not type(message):
            with pytest.raises(DecodeError):
                messages.decode(messages.encode(message), kind)


def test_self_and_root_shares_are_told_apart_by_their_kind():
    """An answer holds one kind of share: a self share with a pair seed, or a root share without, does not decode."""
    items = raw(MESSAGES[8])
    for answer in (["self", 1, B36, B32], ["root", 1, B36], ["both", 1, B36, B32], [1, B36]):
        with pytest.raises(DecodeError):
            messages.decode(packed([*items[:-1], [answer]]), messages.Unmask)


def test_s9_no_answer_has_room_for_both_shares():
    """The type of an answer has one field for a share, in either kind."""
    for kind in (messages.SelfShare, messages.RootShare):
        assert [f.name for f in msgspec.structs.fields(kind)].count("share") == 1


@pytest.mark.parametrize("version", [0, 2, True, 1.0, "1", None])
def test_another_version_is_refused(version):
    """Version 1 is the integer 1."""
    items = raw(MESSAGES[5])
    items[1] = version
    with pytest.raises(DecodeError):
        messages.decode(packed(items), messages.Survivors)


@pytest.mark.parametrize("value", [True, False, 1.0, "2", b"2", None, [2]])
def test_only_an_integer_is_an_id(value):
    """A boolean or a float that equals an id is none."""
    items = raw(MESSAGES[5])
    items[3] = value
    with pytest.raises(DecodeError):
        messages.decode(packed(items), messages.Survivors)


def test_s14_ids_use_all_of_u64_and_no_more():
    """2^64 - 2 goes through; 2^64 has no encoding, and as eight bytes of another type it does not decode."""
    message = messages.Survivors(binding=B32, sender=SERVER_ID, members=(2**63, 2**64 - 2))
    assert messages.decode(messages.encode(message), messages.Survivors) == message
    with pytest.raises(OverflowError):
        packed([2**64])
    big = packed(raw(message)).replace(b"\xcf" + b"\xff" * 8, b"\xc7\x09\x00\x01" + b"\x00" * 8)
    with pytest.raises(DecodeError):
        messages.decode(big, messages.Survivors)


@pytest.mark.parametrize(
    ("message", "index", "value"),
    [
        (MESSAGES[5], 3, -1),
        (MESSAGES[5], 4, [-1, 2]),
        (MESSAGES[4], 5, [-(2**63)]),
        (MESSAGES[8], 4, [["self", -1, B36]]),
        (MESSAGES[7], 4, [[-2, B64]]),
    ],
)
def test_a_negative_id_is_refused(message, index, value):
    """Ids are u64 wherever they stand."""
    items = raw(message)
    items[index] = value
    with pytest.raises(DecodeError):
        messages.decode(packed(items), type(message))


@pytest.mark.parametrize(
    ("short", "long"),
    [
        (b"\x02\x92\x01\x02", b"\xcc\x02\x92\x01\x02"),
        (b"\x02\x92\x01\x02", b"\xcd\x00\x02\x92\x01\x02"),
        (b"\x92\x01\x02", b"\xdc\x00\x02\x01\x02"),
        (b"\xc4\x20", b"\xc5\x00\x20"),
        (b"\xa9survivors", b"\xd9\x09survivors"),
        (b"\x95\xa9", b"\xdc\x00\x05\xa9"),
        (b"\x02\x92\x01\x02", b"\xd0\x02\x92\x01\x02"),
    ],
)
def test_a_longer_form_of_the_same_value_is_refused(short, long):
    """There is one encoding of a message: a wider integer, array, string or byte header is not canonical."""
    data = messages.encode(MESSAGES[5])
    assert data.count(short) == 1
    with pytest.raises(DecodeError):
        messages.decode(data.replace(short, long), messages.Survivors)


@pytest.mark.parametrize(
    ("message", "index", "value"),
    [
        (MESSAGES[0], 2, B32[:-1]),
        (MESSAGES[0], 6, B32 + b"\0"),
        (MESSAGES[2], 4, b""),
        (MESSAGES[4], 6, B16[:-1]),
        (MESSAGES[6], 4, B64[:-1]),
        (MESSAGES[7], 4, [[1, B64 + b"\0"]]),
        (MESSAGES[8], 4, [["self", 1, B36[:-1]]]),
        (MESSAGES[8], 4, [["root", 1, B36, B32[:-1]]]),
        (MESSAGES[1], 4, B32[:-1]),
        (MESSAGES[9], 4, "m" * 17),
        (MESSAGES[9], 5, "r" * 65),
        (MESSAGES[9], 6, "x" * 513),
        (PARTS[0], 1, B64[:-1]),
    ],
)
def test_lengths_are_exact(message, index, value):
    """Hashes, shares, tags and signatures have one length each."""
    items = raw(message)
    items[index] = value
    with pytest.raises(DecodeError):
        messages.decode(packed(items), type(message))


@pytest.mark.parametrize("data", [b"", b"\x91" * (messages.MAX_FRAME_LENGTH + 1), None, "text", bytearray(b"\x90"), 5])
def test_the_size_is_checked_before_anything_else(data):
    """Empty, oversize and non-bytes frames are refused by size or type."""
    with pytest.raises(DecodeError, match=r"expected 1\.\.4194304 bytes"):
        messages.decode(data, messages.Signed)


@pytest.mark.parametrize(
    "data", [b"\x91" * 100_000, b"\xdd\xff\xff\xff\xff", b"\xc6\xff\xff\xff\xff", b"\xc1", b"\x81\x01\x02"]
)
def test_hostile_headers_cost_nothing(data):
    """Deep nesting, and lengths that are not there, are refused and never allocated."""
    for kind in set(KINDS):
        with pytest.raises(DecodeError):
            messages.decode(data, kind)


@pytest.mark.parametrize("kind", [messages.Confirm, messages.ShareFrame, messages.SharedFrame])
def test_a_kind_that_is_no_text_is_refused(kind):
    """Bytes that are no UTF-8 where the kind stands are a `DecodeError`, not a crash."""
    message = next(x for x in ALL if type(x) is kind)
    data = bytearray(messages.encode(message))
    data[2] = 0xFF
    with pytest.raises(DecodeError):
        messages.decode(bytes(data), kind)


@settings(max_examples=300, deadline=None)
@given(index=st.integers(0, len(ALL) - 1), data=st.data())
def test_a_changed_encoding_is_refused_or_another_message(index, data):
    """Any change of bytes is a `DecodeError`, or a message that encodes to exactly those bytes."""
    message = ALL[index]
    encoding = bytearray(messages.encode(message))
    for _ in range(data.draw(st.integers(1, 3))):
        encoding[data.draw(st.integers(0, len(encoding) - 1))] = data.draw(st.integers(0, 255))
    try:
        decoded = messages.decode(bytes(encoding), type(message))
    except DecodeError:
        return
    assert messages.encode(decoded) == encoding


@settings(max_examples=300, deadline=None)
@given(data=st.binary(max_size=200), kind=st.sampled_from(sorted(set(KINDS), key=lambda k: k.__name__)))
def test_garbage_is_a_decode_error(data, kind):
    """Random bytes raise `DecodeError` and nothing else, or decode to what encodes to them."""
    with contextlib.suppress(DecodeError):
        assert messages.encode(messages.decode(data, kind)) == data


def test_a_signed_frame_comes_back():
    """What is sealed and unsealed in the same round, by its sender, is the message."""
    frame = seal(MESSAGES[4])
    assert messages.unseal(frame, messages.MaskHeader, binding=B32, sender=2, roster=ROSTER) == MESSAGES[4]


@pytest.mark.parametrize(
    ("frame", "error", "message"),
    [
        (seal(MESSAGES[4], 1), SignatureError, "client 2: wrong signature"),
        (messages.seal(MESSAGES[4], SERVER.sign), SignatureError, "client 2: wrong signature"),
        (seal(msgspec.structs.replace(MESSAGES[4], sender=1), 1), DecodeError, "sender 1 instead of 2"),
        (seal(msgspec.structs.replace(MESSAGES[4], binding=B32[::-1][:31] + b"x")), DecodeError, "another round"),
        (seal(MESSAGES[5]), DecodeError, "MaskHeader"),
        (messages.encode(messages.Signed(messages.encode(MESSAGES[4]), B64)), SignatureError, "wrong signature"),
        (seal(MESSAGES[4])[:-1], DecodeError, "Signed"),
        (messages.encode(MESSAGES[4]), DecodeError, "Signed"),
    ],
)
def test_a_frame_of_another_signer_round_or_kind_is_refused(frame, error, message):
    """Each check of the header has its error; none of them blames anybody, since anybody could have sent the frame."""
    with pytest.raises(error, match=message):
        messages.unseal(frame, messages.MaskHeader, binding=B32, sender=2, roster=ROSTER)


def test_a_statement_signature_is_no_frame_signature():
    """Signatures are bound to their purpose: a signed statement can't be passed off as a frame."""
    payload = messages.encode(MESSAGES[4])
    frame = messages.encode(messages.Signed(payload, IDENTITIES[2].sign(Label.SIGNATURE_STATEMENT, payload)))
    with pytest.raises(SignatureError, match="wrong signature"):
        messages.unseal(frame, messages.MaskHeader, binding=B32, sender=2, roster=ROSTER)


def test_whatever_is_wrong_with_the_servers_frame_is_its_fault():
    """Bad bytes, another round and a wrong signature are all `ServerFault`."""
    good = messages.Survivors(binding=B32, sender=SERVER_ID, members=(1, 2))
    frame = messages.seal(good, SERVER.sign)
    assert messages.unseal_server(frame, messages.Survivors, binding=B32, roster=ROSTER) == good
    other = messages.seal(msgspec.structs.replace(good, binding=b"\1" * 32), SERVER.sign)
    for bad in (frame[:-1], b"", other, messages.seal(good, IDENTITIES[1].sign), seal(MESSAGES[5]), None):
        with pytest.raises(ServerFault):
            messages.unseal_server(bad, messages.Survivors, binding=B32, roster=ROSTER)


@pytest.mark.parametrize(
    ("members", "message"),
    [
        ((2, 1, 3), "not sorted"),
        ((1, 2, 2, 3), "names a client twice"),
        ((1, 2, 9), r"contains \[9\]"),
        ((1, 2, -1), "not sorted"),
        ((-1, 1, 2), r"contains \[-1\]"),
        ((1, 3, 4), "leaves out client 2"),
        ((1, 2), "2 members, fewer than the agreed minimum 3"),
        ((), "leaves out client 2"),
    ],
)
def test_a_published_set_is_checked(members, message):
    """Order, membership, the reader itself and the size, each with its `ServerFault` that names the set."""
    within = (1, 2, 3, 4)
    messages.check_members((1, 2, 3), within=within, at_least=3, name="U2", client=2)
    with pytest.raises(ServerFault, match=f"U2 .*{message}|U2 {message}"):
        messages.check_members(members, within=within, at_least=3, name="U2", client=2)


def test_every_message_is_immutable():
    """Frames are values."""
    for message in ALL:
        name = msgspec.structs.fields(message)[0].name
        with pytest.raises(AttributeError):
            setattr(message, name, 1)


def test_every_error_of_this_module_is_ours():
    """`DecodeError`, `SignatureError` and `ServerFault` are all `SecaggError`."""
    assert all(issubclass(error, SecaggError) for error in (DecodeError, SignatureError, ServerFault))


@pytest.mark.parametrize("overhead", [48, 1136])
@pytest.mark.parametrize("pair", [False, True])
def test_a_part_has_one_layout(overhead, pair):
    """Fields side by side in a fixed order, the exact length and no other, back to the same fields."""
    box, pair_box = bytes([1]) * (72 + overhead), bytes([4]) * (32 + overhead)
    part = messages.Part(box, b"\2" * 32, b"\3" * 32, pair_box if pair else None, b"\5" * 32 if pair else None)
    leaf = part.encode()
    assert leaf == box + b"\2" * 32 + b"\3" * 32 + (pair_box + b"\5" * 32 if pair else b"")
    assert len(leaf) == messages.Part.length(overhead, pair=pair)
    assert messages.Part.decode(leaf, overhead, pair=pair) == part
    for other in (leaf[:-1], leaf + b"\0", b""):
        with pytest.raises(DecodeError, match=f"Part: {len(other)} bytes instead of {len(leaf)}"):
            messages.Part.decode(other, overhead, pair=pair)
    with pytest.raises(DecodeError):
        messages.Part.decode(leaf, overhead, pair=not pair)


def test_many_signatures_are_checked_as_each_would_be(monkeypatch):
    """In their order, on one core or more: rubbish, another's, another label's, a stranger's and the server's own."""
    identities, server, roster = parties((0, 1, 2, 3, 4, 5), "classical")
    label = Label.SIGNATURE_FRAME
    claims = [Claim(i, label, b"m%d" % i, identities[i].sign(label, b"m%d" % i)) for i in range(6)]
    claims[1] = claims[1]._replace(signature=bytes(64))
    claims[2] = claims[2]._replace(party_id=3)
    claims[3] = claims[3]._replace(label=Label.SIGNATURE_STATEMENT)
    claims += [Claim(9, label, b"m", bytes(64)), Claim(SERVER_ID, label, b"m", bytes(64))]
    claims += [Claim(SERVER_ID, label, b"m", server.sign(label, b"m"))]
    kinds = [None, SignatureError, SignatureError, SignatureError, None, None, DecodeError, ServerFault, None]
    claimed = [messages.Unverified(lambda: None, claim) for claim in claims]
    for cores in (1, 2, 8):
        monkeypatch.setattr("secagg.cores.CORES", cores)
        for count in range(len(claims) + 1):
            errors = messages.verify_each(claimed[:count], roster)
            assert [error and type(error) for error in errors] == kinds[:count]
    assert str(errors[2]) == "client 3: wrong signature (SIGNATURE_FRAME)"


def test_nothing_is_made_of_what_is_not_verified():
    """What comes `then` runs only behind a right signature; what it raises stands in its place, and what is no error of ours is raised."""
    identities, _, roster = parties((0, 1, 2), "classical")
    label = Label.SIGNATURE_FRAME
    signed = [Claim(i, label, b"m", identities[i].sign(label, b"m")) for i in range(3)]
    seen = []

    def work(content):
        seen.append(content)
        if content == 1:
            raise DecodeError("wrong inside")
        return -content

    claims = [signed[0], signed[1], signed[2]._replace(signature=bytes(64))]
    claimed = [messages.Unverified(lambda i=i: i, claim).then(work) for i, claim in enumerate(claims)]
    first, second, third = messages.verify_each(claimed, roster)
    assert first == 0
    assert str(second) == "wrong inside"
    assert isinstance(third, SignatureError)
    assert sorted(seen) == [0, 1]
    with pytest.raises(ZeroDivisionError):
        messages.verify_each([messages.Unverified(lambda: 1 // 0, signed[0])], roster)
