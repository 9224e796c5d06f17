import pytest

from secagg.engines.base import Engine
from secagg.engines.inprocess import InProcessEngine
from secagg.errors import ServerFault, StateError


def failing(error):
    """A handler that raises."""

    def handle(_phase, _frame):
        raise error

    return handle


def echo(phase, frame):
    """A handler that answers with what it was asked."""
    return phase.encode() + b":" + frame


def test_it_is_an_engine():
    """It has everything that a round needs of what carries its frames."""
    engine: Engine = InProcessEngine({1: echo})
    assert all(hasattr(engine, name) for name in ("peers", "client_seconds", "exchange", "close"))


def test_each_addressed_peer_gets_its_own_frame():
    """Frames go to whom they are for, and nobody else is asked."""
    asked = []
    engine = InProcessEngine({i: lambda _phase, frame, i=i: asked.append(i) or frame for i in (3, 1, 2)})
    assert engine.peers == (1, 2, 3)
    assert dict(engine.exchange("mask", {3: b"c", 1: b"a"}, deadline_s=None)) == {1: b"a", 3: b"c"}
    assert asked == [1, 3]


def test_a_silent_or_failed_peer_is_absent():
    """None and a `SecaggError` are silence; the error is kept for whoever wants to know."""
    error = ServerFault("lied")
    engine = InProcessEngine({1: echo, 2: lambda *_: None, 3: failing(error)})
    assert dict(engine.exchange("share", dict.fromkeys((1, 2, 3), b"x"), deadline_s=None)) == {1: b"share:x"}
    assert engine.failures == {3: error}


def test_a_bug_of_a_handler_passes_through():
    """Only errors of the protocol are silence."""
    engine = InProcessEngine({1: failing(ZeroDivisionError())})
    with pytest.raises(ZeroDivisionError):
        list(engine.exchange("share", {1: b"x"}, deadline_s=None))


def test_an_unknown_peer_is_silent():
    """A frame for nobody has no answer."""
    assert dict(InProcessEngine({1: echo}).exchange("mask", {2: b"x"}, deadline_s=None)) == {}


def test_the_tap_sees_exactly_what_reaches_the_server():
    """Every delivered answer passes the tap with its phase and sender; silent peers do not show."""
    seen = []
    engine = InProcessEngine(
        {1: echo, 2: lambda *_: None, 3: failing(StateError("x"))}, tap=lambda *event: seen.append(event)
    )
    list(engine.exchange("confirm", dict.fromkeys((1, 2, 3), b"x"), deadline_s=None))
    assert seen == [("confirm", 1, b"confirm:x")]


def test_a_late_answer_is_absent(monkeypatch):
    """An answer that took longer than the deadline does not reach the server, nor the tap."""
    clock = iter([0.0, 1.0, 1.0, 4.0])
    monkeypatch.setattr("secagg.engines.inprocess.time.perf_counter", lambda: next(clock))
    seen = []
    engine = InProcessEngine({1: echo, 2: echo}, tap=lambda *event: seen.append(event))
    assert dict(engine.exchange("mask", {1: b"x", 2: b"x"}, deadline_s=2.0)) == {1: b"mask:x"}
    assert [sender for _, sender, _ in seen] == [1]
    assert engine.client_seconds == {"mask": {1: 1.0, 2: 3.0}}


def test_a_closed_engine_reaches_nobody():
    """After `close` there are no peers left."""
    engine = InProcessEngine({1: echo})
    engine.close()
    assert engine.peers == ()
    assert dict(engine.exchange("mask", {1: b"x"}, deadline_s=None)) == {}


def test_answers_come_one_by_one():
    """A peer is asked, and its frame made, only when the answer before it has been taken."""
    events = []

    class Frames(dict):
        def __getitem__(self, client):
            events.append(("made", client))
            return super().__getitem__(client)

    engine = InProcessEngine({i: lambda _phase, frame, i=i: events.append(("asked", i)) or frame for i in (1, 2)})
    for client, frame in engine.exchange("mask", Frames({1: b"a", 2: b"b"}), deadline_s=None):
        events.append(("taken", client, frame))
    steps = [[("made", i), ("asked", i), ("taken", i, frame)] for i, frame in ((1, b"a"), (2, b"b"))]
    assert events == [*steps[0], *steps[1]]
