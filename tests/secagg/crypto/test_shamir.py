import itertools
import json
import os
from pathlib import Path

import numpy as np
import pytest

from secagg import errors
from secagg.crypto import shamir
from secagg.errors import InputError, ShareError

VECTORS = json.loads((Path(__file__).parents[2] / "vectors" / "crypto.json").read_text("utf-8"))
EXTREMES = [bytes(32), b"\xff" * 32, bytes(range(32)), bytes(31) + b"\x80", b"\x01" + bytes(31)]


def replay(data):
    """Entropy that hands out `data` in order, and the rest of it."""
    rest = [data]

    def entropy(count):
        taken, rest[0] = rest[0][:count], rest[0][count:]
        return taken

    return entropy, rest


def test_share_vectors():
    """Shares of fixed entropy equal Horner's rule in Python integers, rejected coefficients included; no entropy is left."""
    checked = 0
    for vector in VECTORS["share"]:
        entropy, rest = replay(bytes.fromhex(vector["entropy"]))
        secrets = [bytes.fromhex(secret) for secret in vector["secrets"]]
        shares = shamir.share(secrets, vector["threshold"], vector["points"], entropy)
        assert shares.dtype == np.uint32
        assert shares.tolist() == vector["shares"]
        assert rest == [b""]
        for chosen in itertools.combinations(range(len(vector["points"])), vector["threshold"]):
            points = [vector["points"][i] for i in chosen]
            assert [shamir.reconstruct(points, shares[s, list(chosen)]) for s in range(2)] == secrets
        checked += 1
    assert checked == 2


def test_bad_share_vectors():
    """An encoded share that is none raises its error."""
    checked = 0
    for vector in VECTORS["bad_share"]:
        with pytest.raises(getattr(errors, vector["error"])):
            shamir.decode_share(bytes.fromhex(vector["share"]))
        checked += 1
    assert checked == 3


def test_bad_shares_vectors():
    """Shares and points that determine no secret raise their error."""
    checked = 0
    for vector in VECTORS["bad_shares"]:
        with pytest.raises(getattr(errors, vector["error"])):
            shamir.reconstruct(vector["points"], np.array(vector["shares"], np.uint32))
        checked += 1
    assert checked == 7


@pytest.mark.parametrize("holders", [2, 3, 5])
def test_every_threshold_and_every_choice_of_holders(holders):
    """Any t holders, in any order, give every secret back, the extreme ones included."""
    for threshold in range(2, holders + 1):
        points = list(range(1, holders + 1))
        shares = shamir.share(EXTREMES, threshold, points, os.urandom)
        assert shares.shape == (5, holders, 9)
        for chosen in itertools.permutations(points, threshold):
            rows = [point - 1 for point in chosen]
            assert [shamir.reconstruct(chosen, one[rows]) for one in shares] == EXTREMES


@pytest.mark.parametrize("threshold", [2, 3, 4, 5, 8, 9, 16, 17, 32, 33, 64, 65, 67, 128, 129, 257])
def test_matrix_product_is_exact_at_the_widths_limits(threshold):
    """With every coefficient and point at its largest the float64 product equals Python's integers, on both sides of each width."""
    points = [shamir.PRIME - 1 - place for place in range(threshold)]
    largest = (shamir.PRIME - 1).to_bytes(4, "little")
    shares = shamir.share([b"\xff" * 32], threshold, points, lambda count: largest * (count // 4))
    limbs = [2**29 - 1] * 8 + [2**24 - 1]
    for place in (0, 1, threshold - 1):
        expected = []
        for limb in limbs:
            value = 0
            for coefficient in [shamir.PRIME - 1] * (threshold - 1) + [limb]:
                value = (value * points[place] + coefficient) % shamir.PRIME
            expected.append(value)
        assert shares[0, place].tolist() == expected
    assert shamir.reconstruct(points, shares[0]) == b"\xff" * 32


def test_one_share_fewer_is_independent_of_the_secret():
    """For any t - 1 shares and any other secret there are coefficients that give the same shares."""
    points, target = [1, 2], EXTREMES[2]
    coefficients = np.frombuffer(os.urandom(72), "<u4") % shamir.PRIME
    held = shamir.share([target], 3, [*points, 3], lambda _: coefficients.astype("<u4").tobytes())[0, :2].astype(object)
    limbs = np.array([int.from_bytes(target, "little") >> 29 * i & 2**29 - 1 for i in range(9)], object)
    for other in EXTREMES:
        wanted = np.array([int.from_bytes(other, "little") >> 29 * i & 2**29 - 1 for i in range(9)], object)
        # A polynomial that is wanted - limbs at 0 and zero at both points: (wanted - limbs)(x - 1)(x - 2) / 2.
        shift = (wanted - limbs) * pow(2, -1, shamir.PRIME)
        moved = np.concatenate((coefficients[:9] - 3 * shift, coefficients[9:] + shift)) % shamir.PRIME
        data = b"".join(int(word).to_bytes(4, "little") for word in moved)
        again = shamir.share([other], 3, [*points, 3], lambda _, data=data: data)
        assert np.array_equal(again[0, :2].astype(object), held)


def test_secrets_do_not_share_coefficients():
    """The same secret twice gives two unrelated sharings, and so do the limbs of zero."""
    shares = shamir.share([bytes(32), bytes(32)], 2, [1, 2], os.urandom)
    assert len(set(shares[:, 0].ravel().tolist())) == 18


@pytest.mark.statistical
def test_coefficients_are_uniform():
    """The mean of 72 000 coefficients is that of [0, p) and not of a range one bit narrower (5 sigma each)."""
    coefficients = shamir._uniform(72_000, np.random.default_rng(7).bytes) / shamir.PRIME
    spread = 5 * (1 / 12 / 72_000) ** 0.5
    assert abs(coefficients.mean() - 0.5) < spread
    assert abs((coefficients / 2).mean() - 0.5) > spread


def test_zero_coefficients_are_allowed():
    """Refusing zero would bias the shares: an all-zero polynomial deals the secret itself."""
    shares = shamir.share([EXTREMES[2]], 2, [1, 2], bytes)
    assert shares[0, 0].tolist() == shares[0, 1].tolist()


def test_a_wrong_share_changes_the_result():
    """One limb off by one gives another secret, or an error: never the right one."""
    shares = shamir.share([EXTREMES[2]], 3, [1, 2, 3], os.urandom)[0]
    shares[1, 4] = (int(shares[1, 4]) + 1) % shamir.PRIME
    try:
        assert shamir.reconstruct([1, 2, 3], shares) != EXTREMES[2]
    except ShareError as error:
        assert "limb is out of range" in str(error)  # noqa: PT017 - either outcome is right


def test_errors_name_the_point():
    """A limb outside the field names the holder's point."""
    shares = np.zeros((3, 9), np.uint32)
    shares[2, 8] = 2**32 - 1
    with pytest.raises(ShareError, match="point 30 "):
        shamir.reconstruct([10, 20, 30], shares)


@pytest.mark.parametrize(
    ("points", "shares"),
    [
        ([1, 2], np.zeros((2, 9), np.int64)),
        ([1, 2], np.zeros((2, 8), np.uint32)),
        ([1, 2], np.zeros(18, np.uint32)),
        ([1, 2, 3], np.zeros((2, 9), np.uint32)),
        ([], np.zeros((0, 9), np.uint32)),
    ],
)
def test_s3_malformed_share_arrays_are_refused(points, shares):
    """Another dtype, shape or number of shares is a named error, not an IndexError."""
    with pytest.raises(ShareError, match="points"):
        shamir.reconstruct(points, shares)


@pytest.mark.parametrize(
    ("secrets", "threshold", "points", "named"),
    [
        ([bytes(31)], 2, [1, 2], "32 bytes"),
        ([bytes(32), bytes(33)], 2, [1, 2], "32 bytes"),
        ([bytes(32)], 1, [1, 2], "threshold of 1 is not in"),
        ([bytes(32)], 3, [1, 2], "threshold of 3 is not in"),
        ([bytes(32)], 2, [1, 1], "distinct"),
        ([bytes(32)], 2, [0, 1], "distinct"),
        ([bytes(32)], 2, [1, shamir.PRIME], "distinct"),
        ([bytes(32)], 2, [1, shamir.PRIME + 1], "distinct"),
        ([bytes(32)], 2, [-1, 1], "distinct"),
    ],
)
def test_s10_malformed_dealings_are_refused(secrets, threshold, points, named):
    """A threshold of one would hand the secret to each holder, a point zero is the secret: refused, with the number."""
    with pytest.raises(InputError, match=named):
        shamir.share(secrets, threshold, points, os.urandom)


def test_entropy_that_runs_short_is_refused():
    """A short read never becomes a coefficient."""
    with pytest.raises(InputError, match="entropy source"):
        shamir.share([bytes(32)], 2, [1, 2], lambda count: bytes(count - 4))


def test_encoding_round_trip():
    """A share is 36 little-endian bytes and comes back the same."""
    limbs = np.array([0, 1, 256, 2**31 - 2, 5, 6, 7, 8, 9], np.uint32)
    data = shamir.encode_share(limbs)
    assert data == b"".join(limb.to_bytes(4, "little") for limb in limbs.tolist())
    assert np.array_equal(shamir.decode_share(data), limbs)
    assert shamir.decode_share(data).dtype == np.uint32


@pytest.mark.parametrize(
    "limbs",
    [np.zeros(8, np.uint32), np.zeros((1, 9), np.uint32), np.zeros(9, np.int64), np.full(9, 2**31 - 1, np.uint32)],
)
def test_encoding_refuses_what_is_no_share(limbs):
    """Only nine uint32 limbs below p are encoded."""
    with pytest.raises(InputError, match="nine uint32 limbs"):
        shamir.encode_share(limbs)


def test_cached_tables_cannot_be_written():
    """What is kept between calls can't be changed by one."""
    with pytest.raises(ValueError, match="read-only"):
        shamir._vandermonde((1, 2, 3), 2)[0] = 0


def test_many_owners_at_once_equal_one_by_one():
    """Each owner has its own holder set, some sets come twice, and an owner without a secret spoils nobody else's."""
    rng = np.random.default_rng(5)
    sets = [tuple(rng.choice(np.arange(1, 60), 7, replace=False).tolist()) for _ in range(6)] * 2
    secrets = [rng.bytes(32) for _ in sets]
    shares = np.stack([shamir.share([x], 7, points, rng.bytes)[0] for x, points in zip(secrets, sets, strict=True)])
    assert shamir.reconstruct_many(sets, shares) == secrets
    shares[3, 0, 8] ^= 1
    found = shamir.reconstruct_many(sets, shares)
    assert found[:3] + found[4:] == secrets[:3] + secrets[4:]
    assert found[3] != secrets[3]
    assert shamir.reconstruct_many([], np.empty((0, 7, 9), np.uint32)) == []


def test_a_limb_out_of_range_is_no_secret():
    """Shares of a ninth limb of 2^24 are consistent, and still of no 32-byte secret."""
    shares = np.full((1, 3, 9), 2**24, np.uint32)
    assert shamir.reconstruct_many([(1, 2, 3)], shares) == [None]
    with pytest.raises(ShareError, match="no 32-byte secret"):
        shamir.reconstruct((1, 2, 3), shares[0])
