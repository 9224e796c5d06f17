import base64
import json
import os
import stat

import pytest
from cryptography.hazmat.primitives.asymmetric import ec
from cryptography.hazmat.primitives.asymmetric.ed25519 import Ed25519PrivateKey
from cryptography.hazmat.primitives.serialization import (
    BestAvailableEncryption,
    Encoding,
    NoEncryption,
    PrivateFormat,
    load_pem_private_key,
)

from secagg.crypto.kdf import Label
from secagg.crypto.sealing import SERVER_ID, SUITES, Purpose, box_info
from secagg.errors import InputError, KeyFileError, ParameterError
from secagg.identity import Identity, ServerIdentity
from secagg.keyfile import (
    ClientKey,
    ConsortiumKey,
    ServerKey,
    create_client,
    create_consortium,
    create_server,
    is_encrypted,
    load_client,
    load_public,
    load_server,
    load_signer,
    public_path,
)

PASSPHRASE = "correct horse, schöne Batterie".encode()


def fixed(value):
    """Entropy of one repeated byte."""
    return lambda count: bytes([value]) * count


def blocks(path):
    """The PEM blocks of a file."""
    return [part for part in path.read_bytes().split(b"-----BEGIN ") if part]


def pkcs8(key, passphrase=None):
    """A key as the library itself writes it."""
    encryption = NoEncryption() if passphrase is None else BestAvailableEncryption(passphrase)
    return key.private_bytes(Encoding.PEM, PrivateFormat.PKCS8, encryption)


@pytest.fixture(scope="module")
def encrypted(tmp_path_factory):
    """A client's encrypted file."""
    path = tmp_path_factory.mktemp("keys") / "site.pem"
    create_client(path, 3, "St. Mary", passphrase=PASSPHRASE, entropy=fixed(0xAB))
    return path


@pytest.mark.parametrize("passphrase", [None, PASSPHRASE])
def test_a_clients_key_comes_back(tmp_path, passphrase):
    """What was created loads as the same identity, and the public half beside it fits."""
    path = tmp_path / "site.pem"
    public = create_client(path, 2**64 - 2, "Klinikum München", passphrase=passphrase)
    client = load_client(path, 2**64 - 2, passphrase=passphrase)
    assert (client.id, client.public_key.hex()) == (2**64 - 2, public.public_key)
    assert load_public(tmp_path / "site.pub.json") == public
    assert isinstance(public, ClientKey)
    assert is_encrypted(path) == (passphrase is not None)


@pytest.mark.parametrize("suite", sorted(SUITES))
@pytest.mark.parametrize("passphrase", [None, PASSPHRASE])
def test_a_servers_keys_come_back(tmp_path, suite, passphrase):
    """What was created loads as a server that opens what is sealed to the public half, in its suite."""
    path = tmp_path / "server.pem"
    public = create_server(path, suite, "Server", passphrase=passphrase)
    server = load_server(path, passphrase=passphrase)
    assert isinstance(public, ServerKey)
    assert (server.suite, server.verify_key.hex(), server.sealing_key.hex()) == (
        suite,
        public.verify_key,
        public.sealing_key,
    )
    assert load_public(tmp_path / "server.pub.json") == public
    info = box_info(Purpose.MAC_KEY, bytes(32), 1, SERVER_ID)
    box = SUITES[suite].seal(bytes.fromhex(public.sealing_key), b"key", info=info)
    assert server.open(box, info=info) == b"key"
    assert len(blocks(path)) == (3 if suite == "hybrid" else 2)


def test_the_consortiums_key_comes_back(tmp_path):
    """What was created signs under the public half."""
    public = create_consortium(tmp_path / "consortium.pem", "Consortium")
    signer = load_signer(tmp_path / "consortium.pem")
    assert isinstance(public, ConsortiumKey)
    assert signer.public_key.hex() == public.public_key
    assert load_public(tmp_path / "consortium.pub.json") == public


def test_keys_come_from_the_entropy_alone(tmp_path):
    """The same entropy gives the keys that identities in memory have; a source that runs short gives none, and no file."""
    create_client(tmp_path / "site.pem", 3, "site", entropy=fixed(1))
    assert load_client(tmp_path / "site.pem", 3).public_key == Identity.generate(3, fixed(1)).public_key
    create_server(tmp_path / "server.pem", "hybrid", "server", entropy=fixed(1))
    assert load_server(tmp_path / "server.pem").sealing_key == ServerIdentity.generate("hybrid", fixed(1)).sealing_key
    for make in (
        lambda path, entropy: create_client(path, 3, "site", entropy=entropy),
        lambda path, entropy: create_consortium(path, "consortium", entropy=entropy),
        lambda path, entropy: create_server(path, "hybrid", "server", entropy=entropy),
    ):
        with pytest.raises(InputError, match="entropy source"):
            make(tmp_path / "none.pem", lambda count: bytes(count - 1))
    assert not (tmp_path / "none.pem").exists()


def test_a_private_file_is_private_and_its_public_half_is_not(tmp_path):
    """The private file has mode 0600 whatever the umask; the public half follows the umask and has nothing secret."""
    before = os.umask(0o022)
    try:
        create_client(tmp_path / "site.pem", 3, "site", entropy=fixed(0xAB))
    finally:
        os.umask(before)
    modes = {entry.name: stat.S_IMODE(entry.stat().st_mode) for entry in tmp_path.iterdir()}
    assert modes == {"site.pem": 0o600, "site.pub.json": 0o644}
    assert "abab" not in (tmp_path / "site.pub.json").read_text()


def test_a_key_is_not_overwritten_unless_told(tmp_path):
    """Either file refuses a new key, which then leaves both as they were; `overwrite` replaces both."""
    path = tmp_path / "site.pem"
    public = create_client(path, 3, "site")
    with pytest.raises(KeyFileError, match=r"site\.pub\.json: exists already"):
        create_client(path, 4, "site")
    public_path(path).rename(tmp_path / "aside")
    with pytest.raises(KeyFileError, match=r"site\.pem: exists already"):
        create_client(path, 4, "site")
    assert load_client(path, 3).public_key.hex() == public.public_key
    assert sorted(entry.name for entry in tmp_path.iterdir()) == ["aside", "site.pem"]
    new = create_client(path, 4, "site", overwrite=True)
    assert load_client(path, 4).public_key.hex() == new.public_key != public.public_key


@pytest.mark.parametrize("mode", [0o640, 0o604, 0o644, 0o700])
def test_a_file_that_others_can_use_is_not_loaded(tmp_path, mode):
    """Each way to load a private file refuses one with a wider mode, and names file and mode."""
    path = tmp_path / "site.pem"
    create_client(path, 3, "site")
    path.chmod(mode)
    for load in (load_signer, load_server, is_encrypted, lambda file: load_client(file, 3)):
        with pytest.raises(KeyFileError, match=rf"site\.pem: mode {mode:04o} is wider"):
            load(path)


def test_a_link_and_another_users_file_are_not_loaded(tmp_path, monkeypatch):
    """A private file is a file of this process's user, not a link to one."""
    create_client(tmp_path / "site.pem", 3, "site")
    (tmp_path / "link.pem").symlink_to(tmp_path / "site.pem")
    with pytest.raises(KeyFileError, match=r"link\.pem: a link"):
        load_client(tmp_path / "link.pem", 3)
    monkeypatch.setattr(os, "geteuid", lambda: 12345)
    with pytest.raises(KeyFileError, match=r"site\.pem: belongs to user"):
        load_client(tmp_path / "site.pem", 3)


def test_passphrases_that_do_not_fit(tmp_path, encrypted):
    """A wrong one, a missing one, one too many and an empty one each have their error, which names the file and shows neither."""
    plain = tmp_path / "plain.pem"
    create_client(plain, 3, "site")
    for path, passphrase, words in (
        (encrypted, b"battery staple", r"site\.pem: a private key does not open: wrong passphrase, or damaged"),
        (encrypted, None, r"site\.pem: is encrypted, and no passphrase was given"),
        (encrypted, b"", r"site\.pem: a private key does not open"),
        (plain, b"battery staple", r"plain\.pem: is not encrypted, but a passphrase was given"),
    ):
        with pytest.raises(KeyFileError, match=words) as caught:
            load_client(path, 3, passphrase=passphrase)
        assert "staple" not in str(caught.value)
        assert caught.value.__cause__ is None
        assert caught.value.__suppress_context__ or caught.value.__context__ is None
    with pytest.raises(KeyFileError, match=r"new\.pem: an empty passphrase"):
        create_client(tmp_path / "new.pem", 3, "site", passphrase=b"")
    assert not (tmp_path / "new.pem").exists()


def test_an_encrypted_file_is_scrypt_and_standard(encrypted):
    """The block loads with the library alone, costs scrypt with N = 2**14, r = 8, p = 5, and has no plain key in it."""
    key = load_pem_private_key(encrypted.read_bytes(), PASSPHRASE)
    assert key.private_bytes_raw() == bytes([0xAB]) * 32
    body = b"".join(encrypted.read_bytes().splitlines()[1:-1])
    der = base64.b64decode(body)
    scrypt = bytes.fromhex("06092b06010401da47040b")
    assert scrypt in der
    assert bytes.fromhex("02024000 020108 020105") in der
    assert bytes([0xAB]) * 8 not in der


def test_two_files_of_one_key_and_passphrase_differ(tmp_path, encrypted):
    """Salt and initial vector are fresh each time."""
    create_client(tmp_path / "site.pem", 3, "site", passphrase=PASSPHRASE, entropy=fixed(0xAB))
    assert (tmp_path / "site.pem").read_bytes() != encrypted.read_bytes()


def test_a_key_of_another_tool_loads(tmp_path):
    """PKCS#8 as others write it, plain or encrypted, is a key file too."""
    key = Ed25519PrivateKey.generate()
    for passphrase in (None, PASSPHRASE):
        path = tmp_path / "theirs.pem"
        path.write_bytes(b"\n" + pkcs8(key, passphrase) + b"\n\n")
        path.chmod(0o600)
        assert load_signer(path, passphrase=passphrase).public_key == key.public_key().public_bytes_raw()


MATERIAL = "c2VjcmV0c2VjcmV0c2VjcmV0c2VjcmV0"


@pytest.mark.parametrize(
    "content",
    [
        b"",
        b"\n",
        MATERIAL.encode(),
        f"-----BEGIN PRIVATE KEY-----\n{MATERIAL}\n".encode(),
        f"-----BEGIN OPENSSH PRIVATE KEY-----\n{MATERIAL}\n-----END OPENSSH PRIVATE KEY-----\n".encode(),
        f"-----BEGIN PRIVATE KEY-----\n{MATERIAL}\n-----END ENCRYPTED PRIVATE KEY-----\n".encode(),
        b"name: x\n" + pkcs8(Ed25519PrivateKey.generate()),
        pkcs8(Ed25519PrivateKey.generate()) * 4,
        bytes(2**16 + 1),
    ],
)
def test_what_is_no_key_file_is_refused(tmp_path, content):
    """Nothing, noise, half a block, another format, text around a key, too many keys or bytes: named, and never shown."""
    path = tmp_path / "site.pem"
    path.write_bytes(content)
    path.chmod(0o600)
    with pytest.raises(KeyFileError, match=r"site\.pem: (not a file of one to three|has more than)") as caught:
        load_client(path, 3)
    assert MATERIAL not in str(caught.value)


def test_a_damaged_block_is_refused(tmp_path, encrypted):
    """A block that is PEM but no key, and an encrypted one with a byte changed, do not open and do not show."""
    path = tmp_path / "site.pem"
    path.write_text(f"-----BEGIN PRIVATE KEY-----\n{MATERIAL}\n-----END PRIVATE KEY-----\n")
    path.chmod(0o600)
    with pytest.raises(KeyFileError, match="does not open: damaged, or not a key") as caught:
        load_client(path, 3)
    assert MATERIAL not in str(caught.value)
    lines = encrypted.read_bytes().splitlines()
    lines[3] = lines[3].swapcase()
    path.write_bytes(b"\n".join(lines))
    with pytest.raises(KeyFileError, match="does not open: wrong passphrase, or damaged"):
        load_client(path, 3, passphrase=PASSPHRASE)


def test_a_key_of_the_wrong_kind_is_refused(tmp_path):
    """A server's file is no client's, a client's is no server's, and another algorithm is neither's; the kinds are named."""
    create_client(tmp_path / "site.pem", 3, "site")
    create_server(tmp_path / "server.pem", "hybrid", "server")
    curve = tmp_path / "curve.pem"
    curve.write_bytes(pkcs8(ec.generate_private_key(ec.SECP256R1())))
    curve.chmod(0o600)
    swapped = tmp_path / "swapped.pem"
    parts = (tmp_path / "server.pem").read_bytes().split(b"-----BEGIN ")
    swapped.write_bytes(b"-----BEGIN ".join([b"", *reversed(parts[1:])]))
    swapped.chmod(0o600)
    for load, name, words in (
        (load_signer, "server", "has Ed25519PrivateKey, X25519PrivateKey, MLKEM768PrivateKey; a client's"),
        (load_server, "site", "has Ed25519PrivateKey; a server's"),
        (load_signer, "curve", "has EC"),
        (load_server, "curve", "has EC"),
        (load_server, "swapped", "has MLKEM768PrivateKey, X25519PrivateKey, Ed25519PrivateKey; a server's"),
    ):
        with pytest.raises(KeyFileError, match=rf"{name}\.pem: {words}"):
            load(tmp_path / f"{name}.pem")


def test_a_server_file_encrypted_in_part_is_refused(tmp_path):
    """All blocks are encrypted, or none: with and without a passphrase."""
    create_server(tmp_path / "plain.pem", "classical", "server")
    first, second = ((b"-----BEGIN " + part) for part in blocks(tmp_path / "plain.pem"))
    path = tmp_path / "mixed.pem"
    path.write_bytes(first + pkcs8(load_pem_private_key(second, None), PASSPHRASE))
    path.chmod(0o600)
    with pytest.raises(KeyFileError, match="is encrypted, and no passphrase"):
        load_server(path)
    with pytest.raises(KeyFileError, match="is not encrypted, but a passphrase"):
        load_server(path, passphrase=PASSPHRASE)


@pytest.mark.parametrize("name", ["", " x", "x\n", "a\x1b[2Jb", "a\u202eb", "x" * 101, "\ud800"])
def test_names_that_do_not_print_are_refused(tmp_path, name):
    """A name can be shown on a terminal as it is, and nothing is written for one that cannot."""
    for make in (
        lambda: create_client(tmp_path / "k.pem", 3, name),
        lambda: create_server(tmp_path / "k.pem", "classical", name),
        lambda: create_consortium(tmp_path / "k.pem", name),
    ):
        with pytest.raises(ParameterError, match="a name has 1 to 100"):
            make()
    assert list(tmp_path.iterdir()) == []


@pytest.mark.parametrize("client", [-1, SERVER_ID, 2**64])
def test_client_ids_are_u64_below_the_servers(tmp_path, client):
    """No key is made or loaded under an id that is no client's; nor is there a third suite."""
    with pytest.raises(ParameterError, match=f"not {client}"):
        create_client(tmp_path / "k.pem", client, "site")
    create_client(tmp_path / "k.pem", 1, "site")
    with pytest.raises(ParameterError, match=f"not {client}"):
        load_client(tmp_path / "k.pem", client)
    with pytest.raises(ParameterError, match="'quantum'"):
        create_server(tmp_path / "s.pem", "quantum", "server")


@pytest.mark.parametrize(
    ("change", "words"),
    [
        ({"id": 3}, r"Expected `str`, got `int` - at `\$\.id`"),
        ({"id": "03"}, r"\$\.id"),
        ({"id": "3\n"}, r"\$\.id"),
        ({"id": str(SERVER_ID)}, "a client id is in"),
        ({"public_key": "AB" * 32}, r"\$\.public_key"),
        ({"public_key": "ab" * 31}, r"\$\.public_key"),
        ({"public_key": "ab" * 32 + "\n"}, r"\$\.public_key"),
        ({"name": True}, r"\$\.name"),
        ({"name": "a\x1bb"}, "a name has"),
        ({"kind": "server"}, "missing required field|unknown field"),
        ({"kind": "king"}, "king"),
        ({"format": "secagg-key/2"}, "secagg-key/2"),
        ({"extra": 1}, "unknown field `extra`"),
    ],
)
def test_a_public_half_is_read_strictly(tmp_path, change, words):
    """Another type, spelling, field or format is refused, and the message has the file and the field."""
    path = tmp_path / "site.pub.json"
    create_client(tmp_path / "site.pem", 3, "site")
    path.write_text(json.dumps(json.loads(path.read_text()) | change))
    with pytest.raises(KeyFileError, match=rf"site\.pub\.json: .*({words})") as caught:
        load_public(path)
    assert str(caught.value).isprintable()


def test_a_public_half_without_a_field_or_with_one_twice_is_refused(tmp_path):
    """Every field is there, once."""
    create_client(tmp_path / "site.pem", 3, "site")
    path = tmp_path / "site.pub.json"
    whole = json.loads(path.read_text())
    for field in whole:
        path.write_text(json.dumps({name: value for name, value in whole.items() if name != field}))
        with pytest.raises(KeyFileError, match=field):
            load_public(path)
    path.write_text(json.dumps(whole)[:-1] + ', "name": "other"}')
    with pytest.raises(KeyFileError, match="'name' comes twice"):
        load_public(path)
    path.write_text("[1]")
    with pytest.raises(KeyFileError, match="Expected `object`"):
        load_public(path)


def test_the_public_half_stands_beside_the_private_file():
    """`.pem` is replaced, and any other name is kept whole."""
    assert public_path("keys/site.pem").name == "site.pub.json"
    assert public_path("keys/site.key").name == "site.key.pub.json"
    assert str(public_path("keys/site.pem").parent) == "keys"


def test_a_loaded_identity_signs_what_the_roster_verifies(tmp_path):
    """Signatures of a loaded identity are those of the key that was made."""
    create_client(tmp_path / "site.pem", 3, "site", entropy=fixed(1))
    signature = load_client(tmp_path / "site.pem", 3).sign(Label.SIGNATURE_FRAME, b"message")
    assert signature == Identity.generate(3, fixed(1)).sign(Label.SIGNATURE_FRAME, b"message")
