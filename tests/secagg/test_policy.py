import os

import msgspec
import pytest

from secagg import Block, ClientPolicy, ClientSession, RoundParams, messages
from secagg.errors import (
    BelowThresholdError,
    DeclinedError,
    DecodeError,
    InputError,
    ParameterError,
    PolicyError,
    SignatureError,
    StateError,
)
from secagg.guard import FileGuard, MemoryGuard
from secagg.protocols.pairwise import decline
from secagg.testing import parties

BLOCKS = (Block("update", 5, 20, 1000),)
ROSTER = dict.fromkeys(range(20), bytes(32))


def params(n=6, **fields):
    """A round that the policies below allow."""
    return RoundParams(cohort=tuple(range(n)), blocks=BLOCKS, **({"colluders": 1, "dropouts": 1} | fields))


def policy(**fields):
    """A policy that allows the round above."""
    return ClientPolicy(**fields)


def check(found, proposed, **fields):
    """The policy's verdict about client 0."""
    found.check(proposed, fields.pop("client", 0), fields.pop("roster", ROSTER), fields.pop("guard", None))


@pytest.mark.parametrize(
    ("rule", "inside", "outside", "proposed"),
    [
        ("min_cohort", {"min_cohort": 6}, {"min_cohort": 7}, {}),
        ("min_known_peers", {"min_known_peers": 5}, {"min_known_peers": 6}, {}),
        (
            "min_known_peers",
            {"known_peers": {1, 2, 3}, "min_known_peers": 3},
            {"known_peers": {1, 2, 9}, "min_known_peers": 3},
            {},
        ),
        ("min_known_peers", {"known_peers": {1, 2}}, {"known_peers": {1, 0}}, {}),
        ("min_threshold", {"min_threshold": 4}, {"min_threshold": 5}, {}),
        ("min_survivors", {"min_survivors": 5}, {"min_survivors": 6}, {}),
        ("min_colluders", {"min_colluders": 1}, {"min_colluders": 2}, {}),
        ("suites", {}, {"suites": {"classical"}}, {}),
        ("suites", {"suites": {"classical", "hybrid"}}, {}, {"suite": "classical"}),
        ("adversaries", {}, {"adversaries": {"curious"}}, {}),
        ("adversaries", {"adversaries": {"curious"}}, {}, {"adversary": "curious"}),
        ("blocks", {"blocks": BLOCKS}, {"blocks": (*BLOCKS, Block("count", 1, 64, 10))}, {}),
        ("blocks", {"blocks": BLOCKS}, {"blocks": (Block("update", 5, 21, 1000),)}, {}),
        ("blocks", {"blocks": BLOCKS}, {"blocks": (Block("update", 6, 20, 1000),)}, {}),
        ("blocks", {"blocks": BLOCKS}, {"blocks": (Block("update", 5, 20, 999),)}, {}),
    ],
)
def test_a_round_just_outside_a_limit_is_refused_by_its_name(rule, inside, outside, proposed):
    """Each limit lets the last allowed round through and refuses the next; the error has the limit's name."""
    check(policy(**inside), params(**proposed))
    with pytest.raises(PolicyError, match=f"policy {rule}: ") as caught:
        check(policy(**outside), params(**proposed))
    assert caught.value.rule == rule


def test_the_order_of_blocks_counts():
    """Streams are keyed by a block's place."""
    two = (Block("a", 1, 20, 10), Block("b", 1, 20, 10))
    swapped = RoundParams(cohort=range(4), blocks=two[::-1])
    with pytest.raises(PolicyError, match="the order"):
        check(policy(blocks=two), swapped)


def test_s10_a_cohort_of_strangers_is_refused():
    """A server that fills the cohort with its own clients: they are not on the roster, or not known."""
    with pytest.raises(PolicyError, match=r"clients \[3, 4, 5\] are not on the roster"):
        check(policy(), params(), roster=dict.fromkeys(range(3), bytes(32)))
    with pytest.raises(PolicyError, match="1 known peers are in the cohort, at least 2"):
        check(policy(known_peers={1}), params())
    with pytest.raises(PolicyError, match="client 9 is not in it"):
        check(policy(), params(), client=9)


def test_a_sparse_graph_is_refused_unless_allowed():
    """It is experimental against a lying server."""
    sparse, roster = params(250, colluders=5), dict.fromkeys(range(250), bytes(32))
    with pytest.raises(PolicyError, match="policy allow_sparse: a sparse graph of degree"):
        check(policy(), sparse, roster=roster)
    check(policy(allow_sparse=True), sparse, roster=roster)


def test_rounds_and_their_rate_are_counted_by_the_guard():
    """So many in a life, so many in any stretch of time; without a guard such a policy is an error of ours."""
    now = [1000.0]
    guard = MemoryGuard(clock=lambda: now[0])
    for number in range(2):
        guard.record(bytes(16), number, "advertise", bytes(32), b"")
    check(policy(max_rounds=3, max_rate=(3, 60.0)), params(), guard=guard)
    with pytest.raises(PolicyError, match="policy max_rounds: 2 rounds were begun, 2 are allowed"):
        check(policy(max_rounds=2), params(), guard=guard)
    with pytest.raises(PolicyError, match=r"policy max_rate: 2 rounds were begun within 60\.0 s, 2 are allowed"):
        check(policy(max_rate=(2, 60.0)), params(), guard=guard)
    now[0] += 61
    check(policy(max_rate=(2, 60.0)), params(), guard=guard)
    for limited in (policy(max_rounds=9), policy(max_rate=(9, 1.0))):
        with pytest.raises(ParameterError, match="needs a guard"):
            check(limited, params())


def proposal(good, **changes):
    """The encoding of a round with some fields replaced, past the checks of the constructor."""
    names = [
        "version", "suite", "session", "round", "cohort", "threshold", "degree", "colluders", "dropouts", "blocks",
        "app_context", "min_survivors", "adversary",
    ]  # fmt: skip
    items = dict(zip(names, msgspec.msgpack.decode(good.encode()), strict=True)) | changes
    return msgspec.msgpack.encode(list(items.values()))


@pytest.mark.parametrize(
    "changes",
    [
        {"threshold": 1},
        {"cohort": [0, 1], "threshold": 2, "degree": 1},
        {"blocks": [["update", 5, 2, 1]]},
        {"blocks": []},
        {"version": 2},
        {"min_survivors": 2},
        {"session": b"short"},
    ],
)
def test_s10_what_is_unsound_or_unreadable_is_refused(changes):
    """Threshold 1, a two-bit modulus, a cohort of two: `join` refuses what it cannot read or what no policy could allow."""
    p = params(suite="classical")
    identities, _, roster = parties(p.cohort, p.suite)
    for data in (proposal(p, **changes), b"", b"rubbish"):
        with pytest.raises(PolicyError, match="policy parameters: ") as caught:
            ClientSession.join(data, policy(suites={"classical"}), identities[0], roster, {})
        assert caught.value.rule == "parameters"


def test_the_server_learns_the_reason_and_the_others_go_on(new_round):
    """A client whose policy refuses says so in a signed frame; the sum is that of the others, and the outcome has the rule."""
    rd = new_round()
    opening = rd.session.open()[2]
    with pytest.raises(PolicyError) as caught:
        ClientSession.join(opening, policy(min_cohort=9), rd.identities[2], rd.roster, rd.inputs[2])
    frame = decline(opening, rd.identities[2], caught.value)
    other = decline(opening[:-1], rd.identities[2], caught.value)
    for client, wrong in ((2, other), (1, frame), (2, frame[:-1])):
        with pytest.raises(DecodeError):
            rd.session.receive(client, wrong)
    rd.session.receive(2, frame)
    rd.up["advertise", 2] = lambda _: None
    rd.run()
    rd.check((0, 1, 3))
    declined = rd.session.result.rejected[2]
    assert isinstance(declined, DeclinedError)
    assert declined.rule == "min_cohort"
    assert "4 clients are proposed, at least 9 are needed" in str(declined)


def test_a_client_joins_what_its_policy_allows(new_round):
    """`join` gives a session that takes part; inputs may be a function of the parameters."""
    rd = new_round()
    allowed = policy(suites={"classical"}, blocks=rd.params.blocks, min_threshold=3)
    asked = []
    rd.clients[1] = ClientSession.join(
        rd.session.open()[1],
        allowed,
        rd.identities[1],
        rd.roster,
        lambda agreed: asked.append(agreed) or rd.inputs[1],
    )
    rd.run()
    rd.check((0, 1, 2, 3))
    assert asked == [rd.params]


def join(proposed, allowed, *, client=0, guard=None, roster=None):
    """A session of one client in the round that is proposed, with inputs of zero length left to exchange 3."""
    identities, _, everybody = parties(proposed.cohort, proposed.suite)
    return ClientSession.join(
        proposed.encode(), allowed, identities[client], roster or everybody, lambda _: {}, guard=guard
    )


@pytest.mark.parametrize(
    ("rule", "refusing", "allowing", "proposed"),
    [
        (
            "blocks",
            {"suites": {"classical"}, "blocks": (Block("update", 4, 20, 1000),)},
            {"suites": {"classical"}, "blocks": BLOCKS},
            {},
        ),
        ("suites", {}, {"suites": {"classical"}}, {}),
        (
            "allow_sparse",
            {"suites": {"classical"}},
            {"suites": {"classical"}, "allow_sparse": True},
            {"n": 210, "colluders": 2, "dropouts": 5},
        ),
    ],
)
def test_join_keeps_to_the_policy(rule, refusing, allowing, proposed):
    """Other blocks, the classical suite by default and a sparse graph by default end in `join`, before any frame exists."""
    p = params(**({"suite": "classical"} | proposed))
    assert join(p, policy(**allowing)).start()
    with pytest.raises(PolicyError) as caught:
        join(p, policy(**refusing))
    assert caught.value.rule == rule


def test_join_refuses_a_cohort_of_strangers():
    """Clients that this one has no keys of, and clients that it has keys of but does not know."""
    p = params(suite="classical")
    _, _, few = parties((0, 1, 2), "classical")
    classical = {"suites": {"classical"}}
    with pytest.raises(PolicyError, match=r"policy cohort: clients \[3, 4, 5\]") as caught:
        join(p, policy(**classical), roster=few)
    assert caught.value.rule == "cohort"
    with pytest.raises(PolicyError) as caught:
        join(p, policy(known_peers={0, 1}, **classical))
    assert caught.value.rule == "min_known_peers"
    assert join(p, policy(known_peers={1, 2}, **classical)).start()


def test_join_counts_the_rounds_that_left_before(tmp_path):
    """A round counts once its first frame was asked for; the count and the rate outlive a restart."""
    now, path = [1000.0], tmp_path / "guard.jsonl"
    limited = policy(suites={"classical"}, max_rounds=3, max_rate=(2, 60.0))

    def attempt(number):
        with FileGuard(path, clock=lambda: now[0]) as guard:
            join(params(suite="classical", round=number), limited, guard=guard).start()

    attempt(0)
    now[0] += 30
    attempt(1)
    now[0] += 30
    with pytest.raises(PolicyError) as caught:  # the first one is exactly 60 s ago
        attempt(2)
    assert caught.value.rule == "max_rate"
    now[0] += 0.5
    attempt(2)
    now[0] += 10_000
    with pytest.raises(PolicyError) as caught:
        attempt(3)
    assert caught.value.rule == "max_rounds"


@pytest.mark.parametrize(("rule", "limit"), [("max_rounds", 1), ("max_rate", (1, 60.0))])
@pytest.mark.parametrize("kind", ["memory", "file"])
def test_of_two_sessions_that_joined_one_begins_the_last_round(new_round, tmp_path, kind, rule, limit):
    """Both were within the limit when they joined; the second is refused at its start, counts nowhere, and can tell its server why."""
    guard = MemoryGuard() if kind == "memory" else FileGuard(tmp_path / "guard.jsonl")
    first, second = new_round(), new_round()
    for rd in (first, second):
        opening, limited = rd.session.open()[2], policy(suites={"classical"}, **{rule: limit})
        rd.clients[2] = ClientSession.join(opening, limited, rd.identities[2], rd.roster, rd.inputs[2], guard=guard)
    first.run()
    first.check((0, 1, 2, 3))
    with pytest.raises(PolicyError, match="1 rounds were begun") as caught:
        second.clients[2].start()
    assert caught.value.rule == rule
    with pytest.raises(StateError):
        second.clients[2].start()
    second.session.receive(2, second.clients[2].decline(caught.value))
    second.up["advertise", 2] = lambda _: None
    second.run()
    second.check((0, 1, 3))
    assert second.session.result.rejected[2].rule == rule
    assert guard.rounds(0) == 1
    if kind == "file":
        guard.close()


def test_a_forged_decline_changes_nothing(new_round):
    """One that another client signed, or for another phase, is refused, and the client's own frame is still taken."""
    rd = new_round()
    told = messages.Decline(binding=rd.params.context, sender=2, phase="advertise", rule="min_cohort", reason="none")
    forged = messages.seal(told, rd.identities[1].sign)
    with pytest.raises(SignatureError):
        messages.unseal(forged, messages.Decline, binding=rd.params.context, sender=2, roster=rd.roster)
    early = messages.seal(
        messages.Decline(binding=rd.params.context, sender=2, phase="share", rule="min_cohort", reason="none"),
        rd.identities[2].sign,
    )
    for frame in (forged, early):
        with pytest.raises(DecodeError):
            rd.session.receive(2, frame)
    rd.run()
    rd.check((0, 1, 2, 3))
    assert not rd.session.result.rejected


def test_a_session_that_stops_later_says_so_without_its_reason(new_round):
    """An error of its own is named by kind only, the session is spent, and the sum is that of the others."""
    rd = new_round()
    rd.run("mask")
    error = InputError("block 'update': a patient's 4711")
    frame = rd.clients[1].decline(error)
    assert b"4711" not in frame
    rd.session.receive(1, frame)
    with pytest.raises(StateError):
        rd.clients[1].receive(rd.answers[1])
    rd.up["mask", 1] = lambda _: None
    rd.run()
    rd.check((0, 2, 3))
    declined = rd.session.result.rejected[1]
    assert isinstance(declined, DeclinedError)
    assert (declined.party, declined.phase, declined.rule) == (1, "mask", "InputError")
    assert "patient" not in str(declined)


def test_too_many_that_decline_end_the_round_with_their_reasons(new_round):
    """With two of four gone nothing can be summed; the error has each one's rule."""
    rd = new_round()
    opening = rd.session.open()
    for client in (1, 2):
        with pytest.raises(PolicyError) as caught:
            ClientSession.join(opening[client], policy(), rd.identities[client], rd.roster, rd.inputs[client])
        rd.session.receive(client, decline(opening[client], rd.identities[client], caught.value))
        rd.up["advertise", client] = lambda _: None
    with pytest.raises(BelowThresholdError) as ended:
        rd.run()
    assert {client: error.rule for client, error in ended.value.rejected.items()} == {1: "suites", 2: "suites"}


def test_a_limit_on_rounds_without_a_guard_is_an_error(new_round):
    """A session does not count rounds with a memory of its own, which would always be empty."""
    rd = new_round()
    limited = policy(suites={"classical"}, max_rounds=1)
    with pytest.raises(ParameterError, match="needs a guard"):
        ClientSession.join(rd.session.open()[1], limited, rd.identities[1], rd.roster, rd.inputs[1])


@pytest.mark.parametrize(
    ("rule", "inside", "outside", "proposed"),
    [
        ("min_cohort", {"min_cohort": 6}, {"min_cohort": 7}, {}),
        ("min_known_peers", {"min_known_peers": 5}, {"min_known_peers": 6}, {}),
        ("min_threshold", {"min_threshold": 4}, {"min_threshold": 5}, {}),
        ("min_survivors", {"min_survivors": 5}, {"min_survivors": 6}, {}),
        ("min_colluders", {"min_colluders": 1}, {"min_colluders": 2}, {}),
        ("adversaries", {"adversaries": {"lying", "curious"}}, {}, {"adversary": "curious"}),
    ],
)
def test_join_and_the_server_hear_of_the_rule(new_round, rule, inside, outside, proposed):
    """`join` lets the last allowed round through and refuses the next, and the server's list has the rule that forbade it."""
    rd = new_round(6, colluders=1, dropouts=1, **proposed)
    opening = rd.session.open()[2]
    arguments = (rd.identities[2], rd.roster, rd.inputs[2])
    assert ClientSession.join(opening, policy(suites={"classical"}, **inside), *arguments).start()
    with pytest.raises(PolicyError) as caught:
        ClientSession.join(opening, policy(suites={"classical"}, **outside), *arguments)
    rd.session.receive(2, decline(opening, rd.identities[2], caught.value))
    rd.up["advertise", 2] = lambda _: None
    rd.run()
    rd.check((0, 1, 3, 4, 5))
    assert rd.session.result.rejected[2].rule == caught.value.rule == rule


def test_limits_are_the_policys_own_from_then_on():
    """Lists and sets that are given are copied into what cannot change: later changes do not widen the policy."""
    suites, known, blocks = {"hybrid"}, [1, 2, 3], list(BLOCKS)
    made = policy(suites=suites, adversaries=["lying"], known_peers=known, min_known_peers=3, blocks=blocks)
    check(made, params())
    suites.add("classical")
    known.remove(3)
    blocks.clear()
    check(made, params())
    with pytest.raises(PolicyError, match="policy suites"):
        check(made, params(suite="classical"))
    assert hash(made) == hash(
        policy(suites=["hybrid"], adversaries=("lying",), known_peers={1, 2, 3}, min_known_peers=3, blocks=BLOCKS)
    )


def test_a_session_that_joined_calls_its_applications_hooks(new_round):
    """`join` hands on the guard, both hooks and the source of secrets."""
    rd = new_round()
    calls, drawn, guard = [], [], MemoryGuard()
    rd.clients[1] = ClientSession.join(
        rd.session.open()[1],
        policy(suites={"classical"}),
        rd.identities[1],
        rd.roster,
        rd.inputs[1],
        guard=guard,
        entropy=lambda n: drawn.append(n) or os.urandom(n),
        on_release=lambda: calls.append("release"),
        on_survivors=calls.append,
    )
    rd.run()
    rd.check((0, 1, 2, 3))
    assert calls == ["release", (0, 1, 2, 3)]
    assert drawn
    assert guard.rounds(0) == 1


def test_the_constructor_keeps_to_a_policy_too(new_round):
    """A session that is not made by `join` checks the policy that it is given; one that counts rounds insists on a guard."""
    rd = new_round()
    with pytest.raises(PolicyError, match="policy suites"):
        rd.client(1, policy=policy())
    limited = policy(suites={"classical"}, max_rounds=1)
    with pytest.raises(ParameterError, match="needs a guard"):
        rd.client(1, policy=limited)
    assert rd.client(1, policy=limited, guard=MemoryGuard()).start()
