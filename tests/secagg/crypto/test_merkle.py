import hashlib

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from secagg.crypto import merkle
from secagg.errors import DecodeError

# The tree of eight leaves that every transparency log's tests use, with its published roots for sizes 1, 3, 7 and 8.
LEAVES = [
    bytes.fromhex(x)
    for x in ("", "00", "10", "2021", "3031", "40414243", "5051525354555657", "606162636465666768696a6b6c6d6e6f")
]
ROOTS = {
    1: "6e340b9cffb37a989ca544e6bb780a2c78901d3fb33738768511a30617afa01d",
    3: "aeb6bcfe274b70a14fb067a5e5578264db0fa9b51af5e0ba159158f329e06e77",
    7: "ddb89be403809e325750d3d263cd78929c2942b7942a34b77e122c9594a74c8c",
    8: "5dc9da79a70659a9ad559cb701ded9a2ab9d823aad2f4960cfe370eff4604328",
}


def sha(data):
    """SHA-256."""
    return hashlib.sha256(data).digest()


def reference_root(leaves):
    """The tree head by another road than the recursion: a stack of perfect subtrees, merged as in a binary counter."""
    stack = []
    for count, leaf in enumerate(leaves, 1):
        stack.append(sha(b"\x00" + leaf))
        low = count
        while low % 2 == 0:
            right, left = stack.pop(), stack.pop()
            stack.append(sha(b"\x01" + left + right))
            low //= 2
    node = stack.pop()
    while stack:
        node = sha(b"\x01" + stack.pop() + node)
    return node


def reference_check(leaf, index, size, path):
    """The verification algorithm of RFC 9162, section 2.1.3.2, on counters fn and sn."""
    fn, sn, node = index, size - 1, sha(b"\x00" + leaf)
    for sibling in (path[i : i + 32] for i in range(0, len(path), 32)):
        if sn == 0:
            return None
        if fn % 2 == 1 or fn == sn:
            node = sha(b"\x01" + sibling + node)
            while fn % 2 == 0 and fn != 0:
                fn, sn = fn >> 1, sn >> 1
        else:
            node = sha(b"\x01" + node + sibling)
        fn, sn = fn >> 1, sn >> 1
    return node if sn == 0 else None


@pytest.mark.parametrize("size", sorted(ROOTS))
def test_published_roots(size):
    """The roots of the well-known eight leaves, and the independent computation agrees with them."""
    assert merkle.Tree(LEAVES[:size]).root.hex() == ROOTS[size]
    assert reference_root(LEAVES[:size]).hex() == ROOTS[size]


def test_a_path_by_hand():
    """The path of leaf 2 of 3 is the node over the first two alone."""
    left = sha(b"\x01" + sha(b"\x00a") + sha(b"\x00b"))
    tree = merkle.Tree([b"a", b"b", b"c"])
    assert tree.paths[0] == sha(b"\x00b") + sha(b"\x00c")
    assert tree.paths[1] == sha(b"\x00a") + sha(b"\x00c")
    assert tree.paths[2] == left


@pytest.mark.parametrize("size", range(1, 71))
def test_every_leaf_of_every_size_checks(size):
    """Root and paths agree with the two independent algorithms for all sizes from 1 to 70."""
    leaves = [bytes([i]) * (i % 5) for i in range(size)]
    tree = merkle.Tree(leaves)
    root = tree.root
    assert root == reference_root(leaves)
    for index in range(size):
        path = tree.paths[index]
        assert reference_check(leaves[index], index, size, path) == root
        merkle.check(leaves[index], index=index, size=size, path=path, expected_root=root)


@settings(max_examples=150, deadline=None)
@given(size=st.integers(1, 70), data=st.data())
def test_nothing_else_checks(size, data):
    """A changed leaf, index, size, root or path is refused, and the size counts even where the path would fit."""
    leaves = [i.to_bytes(2, "big") for i in range(size)]
    index = data.draw(st.integers(0, size - 1))
    good = {
        "leaf": leaves[index],
        "index": index,
        "size": size,
        "path": merkle.Tree(leaves).paths[index],
        "expected_root": merkle.Tree(leaves).root,
    }
    path = good["path"]
    kinds = ["leaf", "index", "root", "longer"] + (["shorter", "flipped"] if path else [])
    kind = data.draw(st.sampled_from(kinds))
    bad = dict(good)
    if kind == "leaf":
        bad["leaf"] = data.draw(st.binary(max_size=3).filter(lambda x: x != leaves[index]))
    elif kind == "index":
        bad["index"] = data.draw(st.integers(-1, size + 1).filter(lambda x: x != index))
    elif kind == "root":
        bad["expected_root"] = sha(good["expected_root"])
    elif kind == "longer":
        bad["path"] = path + data.draw(st.binary(min_size=1, max_size=64))
    elif kind == "shorter":
        bad["path"] = path[: data.draw(st.integers(0, len(path) - 1))]
    else:
        place = data.draw(st.integers(0, len(path) - 1))
        bad["path"] = path[:place] + bytes([path[place] ^ 1]) + path[place + 1 :]
    merkle.check(**good)
    leaf = bad.pop("leaf")
    with pytest.raises(DecodeError, match="Merkle"):
        merkle.check(leaf, **bad)


@pytest.mark.parametrize(("index", "size"), [(-1, 4), (4, 4), (0, 0), (1, 1)])
def test_an_index_outside_the_tree_is_refused(index, size):
    """No leaf stands there."""
    with pytest.raises(DecodeError, match=f"leaf {index} of {size} does not exist"):
        merkle.check(b"", index=index, size=size, path=b"", expected_root=merkle.Tree([b""]).root)


def test_a_node_is_no_leaf():
    """The two hashes have different prefixes: an inner node given as a leaf does not check."""
    leaves = [b"a", b"b", b"c", b"d"]
    inner = sha(b"\x00a") + sha(b"\x00b")
    right = sha(b"\x01" + sha(b"\x00c") + sha(b"\x00d"))
    with pytest.raises(DecodeError, match="does not lead"):
        merkle.check(inner, index=0, size=2, path=right, expected_root=merkle.Tree(leaves).root)


def test_a_wrong_size_is_refused():
    """The shape of the tree is part of the check: no leaf of 6 checks as one of 5 or 7 unless the path is the same shape."""
    leaves = [bytes([i]) for i in range(6)]
    tree = merkle.Tree(leaves)
    for size in (5, 12):
        with pytest.raises(DecodeError):
            merkle.check(leaves[4], index=4, size=size, path=tree.paths[4], expected_root=tree.root)


def test_forgotten_paths_are_computed_anew():
    """Letting go of the paths changes nothing but memory."""
    tree = merkle.Tree([bytes([i]) for i in range(9)])
    before = list(tree.paths)
    tree.forget_paths()
    assert "paths" not in vars(tree)
    tree.forget_paths()
    assert tree.paths == before
