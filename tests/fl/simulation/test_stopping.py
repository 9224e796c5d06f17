import os
import signal
import threading

import pytest

from fl.errors import RunStopped
from fl.simulation.stopping import stopping


@pytest.mark.parametrize("number", [signal.SIGINT, signal.SIGTERM])
def test_the_first_signal_waits_and_the_second_does_not(number, caplog):
    """One signal is noticed between two rounds, and says so; another one ends what is in hand."""
    with stopping() as stop:
        stop.check()
        os.kill(os.getpid(), number)
        assert stop.wanted
        assert "once more drops it" in caplog.text
        with pytest.raises(RunStopped, match="after the round in hand"):
            stop.check()
        with pytest.raises(RunStopped, match="dropped"):
            os.kill(os.getpid(), number)


def test_the_handlers_from_before_come_back():
    """After the rounds, signals do what they did, also when the rounds end in an error."""
    before = [signal.getsignal(number) for number in (signal.SIGINT, signal.SIGTERM)]

    def fail():
        with stopping():
            assert signal.getsignal(signal.SIGINT) is not before[0]
            raise ZeroDivisionError

    with pytest.raises(ZeroDivisionError):
        fail()
    assert [signal.getsignal(number) for number in (signal.SIGINT, signal.SIGTERM)] == before


def test_in_another_thread_nothing_is_taken_over():
    """A run in a thread has no signals, and trains all the same."""
    seen = []

    def work():
        with stopping() as stop:
            seen.append((stop.wanted, signal.getsignal(signal.SIGINT)))

    before = signal.getsignal(signal.SIGINT)
    thread = threading.Thread(target=work)
    thread.start()
    thread.join()
    assert seen == [(False, before)]
