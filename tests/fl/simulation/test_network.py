import math

import numpy as np
import pytest

from fl.errors import ConfigError
from fl.simulation.network import Consortium, Exchange, round_time
from secagg.params import PHASES


def links(**changed):
    """Two clients: 8 Mbit/s each way at 10 ms and full speed; 1.6 up, 4 down at 100 ms and half speed."""
    values = {
        "upload": [8e6, 1.6e6],
        "download": [8e6, 4e6],
        "latency_s": [0.01, 0.1],
        "speed": [1.0, 0.5],
    }
    return Consortium(**(values | changed))


def test_one_exchange_by_hand():
    """10^6 bytes down, 2·10^5 up and 0.3 s of work: the second client takes 0.2 + 2 + 0.6 + 1 s, and is waited for."""
    found = round_time(links(), {"mask": Exchange(down=10**6, up=2 * 10**5, client_s=0.3, server_s=0.05)}, 2)
    assert found.phases == {"mask": pytest.approx(3.85)}
    assert found.seconds == pytest.approx(3.85)
    assert found.slowest == {"mask": 1}
    assert found.late == {}


def test_bytes_and_seconds_of_each_client_count():
    """With all of the work at the first client it is the one waited for: 0.02 + 1 + 4 + 0.2 s."""
    exchange = Exchange(down=[10**6, 0], up=[2 * 10**5, 0], client_s=[4.0, 0.0])
    found = round_time(links(), {"mask": exchange}, 2)
    assert found.seconds == pytest.approx(5.22)
    assert found.slowest == {"mask": 0}


def test_a_round_of_five_exchanges_is_their_sum():
    """Five exchanges of nothing cost five times twice the largest latency, and the server's own seconds."""
    found = round_time(links(), {phase: Exchange(server_s=0.01) for phase in PHASES}, 2)
    assert list(found.phases) == list(PHASES)
    assert found.seconds == pytest.approx(5 * (0.2 + 0.01))


def test_who_is_late_is_gone_and_the_deadline_is_waited_for():
    """The slow client misses 3 s in the first phase; the second phase has the fast one alone."""
    exchange = Exchange(down=10**6, up=2 * 10**5, client_s=0.3)
    found = round_time(links(deadline_s=3.0), {"mask": exchange, "unmask": exchange}, 2)
    assert found.late == {1: "mask"}
    assert found.phases == {"mask": pytest.approx(3.0), "unmask": pytest.approx(0.02 + 1 + 0.3 + 0.2)}
    assert found.slowest == {"mask": None, "unmask": 0}


def test_with_nobody_left_only_the_server_takes_time():
    """Both are late in the first phase, and the second has nobody to wait for."""
    found = round_time(links(deadline_s=0.1), {"mask": Exchange(down=10**6), "unmask": Exchange(server_s=0.5)}, 2)
    assert found.late == {0: "mask", 1: "mask"}
    assert found.phases == {"mask": pytest.approx(0.1), "unmask": 0.5}
    assert found.slowest["unmask"] is None


def test_straggling_is_a_function_of_seed_and_round():
    """The same round straggles the same, whatever the deadline was; another round or seed does not."""
    work = {phase: Exchange(client_s=1.0) for phase in PHASES}
    first = round_time(links(straggling=0.5), work, 2, number=3)
    assert first == round_time(links(straggling=0.5), work, 2, number=3)
    assert first.seconds != round_time(links(straggling=0.5), work, 2, number=4).seconds
    assert first.seconds != round_time(links(straggling=0.5, seed=1), work, 2, number=3).seconds
    assert first.seconds != round_time(links(), work, 2, number=3).seconds


@pytest.mark.statistical
def test_straggling_is_log_normal_about_one():
    """Over 20 000 clients the computing time has median 1 and the ninth decile of sigma 0.5; sigma 0.55 is rejected."""
    one = Consortium([1e9], [1e9], [0.0], [1.0], straggling=0.5)
    times = [round_time(one, {"mask": Exchange(client_s=1.0)}, 1, number=number).seconds for number in range(20_000)]
    assert np.median(times) == pytest.approx(1.0, abs=0.02)
    decile = float(np.quantile(times, 0.9))
    assert decile == pytest.approx(math.exp(0.5 * 1.2816), rel=0.03)
    assert decile != pytest.approx(math.exp(0.55 * 1.2816), rel=0.03)


@pytest.mark.parametrize(
    ("changed", "match"),
    [
        ({"upload": [0.0, 1.0]}, "network.upload"),
        ({"latency_s": [-1.0, 0.0]}, "network.latency_s"),
        ({"speed": [math.nan, 1.0]}, "network.speed"),
        ({"download": [1.0, 1.0, 1.0]}, "2 and for 3 clients"),
        ({"straggling": -0.1}, "network.straggling"),
        ({"deadline_s": 0.0}, "network.deadline_s"),
    ],
)
def test_impossible_consortia_are_refused(changed, match):
    """A link without width, negative latency, NaN, lengths that differ: the key is named."""
    with pytest.raises(ConfigError, match=match):
        links(**changed)


def test_another_number_of_clients_is_refused():
    """Links of two do not describe three clients."""
    with pytest.raises(ConfigError, match="there are 3 clients"):
        round_time(links(), {"mask": Exchange()}, 3)
