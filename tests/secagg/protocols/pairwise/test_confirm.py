import pytest

from secagg import messages
from secagg.crypto.kdf import Label
from secagg.errors import BelowThresholdError, DecodeError, ServerFault, SignatureError
from secagg.protocols.pairwise.parties import statement


def signature(rd, client, members=None, transcript=None, sharers=None):
    """A client's signature over some statement."""
    everybody = (0, 1, 2, 3)
    signed = statement(transcript or rd.view.transcript, sharers or everybody, members or everybody)
    return rd.identities[client].sign(Label.SIGNATURE_STATEMENT, signed)


@pytest.mark.parametrize(
    ("change", "message"),
    [
        (lambda m: m[:2], "quorum has 2 signatures, 3 are needed"),
        (lambda _: (), "quorum has 0 signatures"),
        (lambda m: (m[0], m[1], m[1]), "names a client twice"),
        (lambda m: (*m, m[2]), "names a client twice"),
        (lambda m: m[::-1], "names a client twice"),
        (lambda m: (m[0], m[1], (3, m[2][1])), "client 3 did not sign the statement"),
        (lambda m: (m[0], m[1], (9, m[2][1])), "not in U3"),
        (lambda m: (m[0], m[1], (2, bytes(64))), "client 2 did not sign the statement"),
        (lambda m: (*m, (3, bytes(64))), "client 3 did not sign the statement"),
    ],
)
def test_a_quorum_that_is_none_is_the_servers_fault(new_round, change, message):
    """Short, duplicate, unsorted, foreign and forged signatures: no share is revealed."""
    rd = new_round()
    rd.lie_to(0, "confirm", messages.Quorum, lambda m: {"signatures": change(m.signatures)})
    rd.run()
    with pytest.raises(ServerFault, match=message):
        raise rd.errors[0]
    assert 0 not in rd.sent["unmask"]
    rd.check((0, 1, 2, 3))


@pytest.mark.parametrize(
    "lie",
    [
        lambda rd: signature(rd, 2, members=(0, 1, 2)),
        lambda rd: signature(rd, 2, sharers=(0, 1, 2)),
        lambda rd: signature(rd, 2, transcript=b"\1" * 32),
        lambda rd: rd.identities[2].sign(
            Label.SIGNATURE_FRAME, statement(rd.view.transcript, (0, 1, 2, 3), (0, 1, 2, 3))
        ),
    ],
)
def test_signatures_over_something_else_do_not_count(new_round, lie):
    """Another U3, another U2, another round (a replayed confirm), another purpose: by a corrupt client or an old frame."""
    rd = new_round()
    rd.run("unmask")
    rd.lie_to(0, "confirm", messages.Quorum, lambda m: {"signatures": (*m.signatures[:2], (2, lie(rd)))})
    rd.run()
    with pytest.raises(ServerFault, match="client 2 did not sign the statement that client 0 signed"):
        raise rd.errors[0]


def test_a_signer_outside_u3_does_not_count(new_round):
    """Only members of U3 make a quorum, even with a valid signature of a client that was dropped."""
    rd = new_round(5, colluders=0)
    rd.silence(4, "mask")
    u2, u3 = (0, 1, 2, 3, 4), (0, 1, 2, 3)
    rd.lie_to(
        0,
        "confirm",
        messages.Quorum,
        lambda m: {"signatures": (*m.signatures[:2], (4, signature(rd, 4, members=u3, sharers=u2)))},
    )
    rd.run()
    with pytest.raises(ServerFault, match="not in U3"):
        raise rd.errors[0]


def test_more_than_a_quorum_is_fine(new_round):
    """Every member of U3 may have signed."""
    rd = new_round()
    everybody = lambda: tuple((i, signature(rd, i)) for i in range(4))  # noqa: E731 - the transcript exists later
    for i in range(4):
        rd.lie_to(i, "confirm", messages.Quorum, lambda _: {"signatures": everybody()})
    rd.run()
    rd.check((0, 1, 2, 3))
    assert rd.errors == {}


def test_the_quorum_is_counted_over_u1(new_round):
    """Of seven advertisers with c = 1 five must sign, also where only five vectors are in the sum."""
    rd = new_round(7, colluders=1)
    rd.silence(5, "share")
    rd.silence(6, "mask")
    rd.run("unmask")
    assert len(rd.payload(rd.answers[0], messages.Quorum).signatures) == 5
    rd.run()
    rd.check((0, 1, 2, 3, 4))


def test_without_a_quorum_the_round_ends(new_round):
    """Two of four sign, three are needed: a named error, and nobody reveals anything."""
    rd = new_round()
    rd.silence(1, "confirm")
    rd.silence(2, "confirm")
    with pytest.raises(BelowThresholdError, match=r"confirm: 2 of at least 3 clients are left \(quorum\)"):
        rd.run()
    assert rd.sent["unmask"] == {}


@pytest.mark.parametrize(
    ("change", "error", "message"),
    [
        (lambda _, f: f[:-1], DecodeError, "Confirm"),
        (lambda _, f: f + b"\0", DecodeError, "Confirm"),
        (lambda rd, _: rd.sent["confirm"][0], DecodeError, "sender 0 instead of 1"),
        (
            lambda rd, _: confirm(rd, 1, signature(rd, 1, members=(0, 1, 2))),
            SignatureError,
            "client 1: wrong signature",
        ),
        (lambda rd, _: confirm(rd, 1, signature(rd, 0)), SignatureError, "client 1: wrong signature"),
        (lambda rd, _: confirm(rd, 1, signature(rd, 1), binding=bytes(32)), DecodeError, "another round"),
    ],
)
def test_a_bad_confirmation_is_silence(new_round, change, error, message):
    """The sender stays in the sum, is listed from `confirm` on, and the reason is kept."""
    rd = new_round()
    rd.up["confirm", 1] = lambda f: change(rd, f)
    rd.run()
    rd.check((0, 1, 2, 3))
    assert rd.session.result.dropped == {1: "confirm"}
    assert 1 not in rd.session.result.signatures
    assert type(rd.session.result.rejected[1]) is error
    with pytest.raises(error, match=message):
        raise rd.session.result.rejected[1]


def confirm(rd, client, signed, binding=None):
    """A confirmation frame."""
    return messages.encode(messages.Confirm(binding=binding or rd.view.transcript, sender=client, signature=signed))


def test_s27_a_replayed_confirmation_of_another_round_is_rejected(new_round):
    """The statement has T1: yesterday's signature does not count today."""
    old = new_round()
    old.run()
    rd = new_round()
    rd.up["confirm", 1] = lambda _: confirm(rd, 1, messages.decode(old.sent["confirm"][1], messages.Confirm).signature)
    rd.run()
    rd.check((0, 1, 2, 3))
    assert rd.session.result.dropped == {1: "confirm"}
