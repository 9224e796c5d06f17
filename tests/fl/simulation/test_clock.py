import msgspec
import pytest

from fl import run
from fl.errors import ConfigError
from fl.experiment import prepare
from fl.simulation.clock import simulated_clock
from secagg.sizes import frame_sizes

NETWORK = ("network.upload_mbit=8", "network.download_mbit=80", "network.latency_ms=50")


@pytest.mark.parametrize("mode", ["secure", "ideal", "plain"])
def test_the_clock_follows_from_bytes_and_latency(toy, tmp_path, mode):
    """Five exchanges of two latencies each; then the bytes, the protocol's own whether it was run or only predicted."""
    result = run(toy(*NETWORK, mode=mode), out=tmp_path / "run", ledgers=tmp_path)
    clock = result.summary["network"]
    assert len(clock["rounds"]) == 2
    assert clock["seconds"] == pytest.approx(sum(clock["rounds"]))
    computing = [sum(sum(side.values()) for side in record.seconds.values()) for record in result.history]
    moving = [seconds - own - 0.5 for seconds, own in zip(clock["rounds"], computing, strict=True)]
    if mode == "secure":
        up = max(sum(record.bytes["up"].values()) for record in result.history) / 4
        down = max(sum(record.bytes["down"].values()) for record in result.history) / 4 + 4 * 3
        assert moving == pytest.approx([8 * up / 8e6 + 8 * down / 80e6] * 2, rel=0.01)
    elif mode == "plain":
        assert moving == pytest.approx([8 * 12 / 8e6 + 8 * 12 / 80e6] * 2)
    else:
        experiment = prepare(toy(mode="secure"), "r")
        sizes = frame_sizes(experiment.agreement.round_params(0, "0" * 64))
        up, down = (sum(sum(way[phase].values()) for phase in way) / 4 for way in (sizes.up, sizes.down))
        assert moving == pytest.approx([8 * up / 8e6 + 8 * (down + 12) / 80e6] * 2, rel=0.01)


def test_no_network_no_clock(toy, tmp_path):
    """Without a description nothing is simulated."""
    result = run(toy(mode="plain"), out=tmp_path / "run", ledgers=tmp_path)
    assert result.summary["network"] is None


def test_a_slow_link_takes_longer(toy, tmp_path):
    """The same rounds over a link of a tenth: what moves takes ten times as long."""
    result = run(toy(*NETWORK, mode="plain"), out=tmp_path / "run", ledgers=tmp_path)
    slow = prepare(
        toy("network.upload_mbit=0.8", "network.download_mbit=8", "network.latency_ms=50", mode="plain"), "r"
    )
    moving = (simulated_clock(slow, result.history)["seconds"] - 1) / (result.summary["network"]["seconds"] - 1)
    assert moving == pytest.approx(10, rel=0.01)


def test_a_link_beyond_numbers_is_refused_before_anything_is_written(toy, tmp_path):
    """The description is read before the first round: the key is named, and there is no folder."""
    config = toy(*NETWORK, mode="plain")
    wide = msgspec.structs.replace(config, network=msgspec.structs.replace(config.network, download_mbit=1e308))
    with pytest.raises(ConfigError, match=r"^network\.download: positive and finite"):
        run(wide, out=tmp_path / "run", ledgers=tmp_path)
    assert not (tmp_path / "run").exists()
