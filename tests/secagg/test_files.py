import os
import stat
import threading

import pytest

from secagg.errors import KeyFileError, RosterError
from secagg.files import check_folder, one_line, os_errors, parse_json, read_file, write_file


def mode_of(path):
    """Permission bits."""
    return stat.S_IMODE(path.stat().st_mode)


def write(path, data=b"new", *, mode=0o600, overwrite=False):
    """`write_file` as a key file is written."""
    write_file(path, data, kind=KeyFileError, mode=mode, overwrite=overwrite)


def read(path, limit=100, **options):
    """`read_file` with a small limit."""
    return read_file(path, limit, kind=RosterError, **options)


@pytest.mark.parametrize("umask", [0o000, 0o022, 0o077])
def test_a_private_file_is_never_wider_than_its_mode(tmp_path, monkeypatch, umask):
    """Whatever the umask, the file has mode 0600 when it is made, when it is synced, and at the end."""
    seen, sync, before = [], os.fsync, os.umask(umask)

    def watched(file):
        seen.append(os.fstat(file))
        sync(file)

    monkeypatch.setattr(os, "fsync", watched)
    try:
        write(tmp_path / "key")
    finally:
        os.umask(before)
    assert [stat.S_IMODE(found.st_mode) for found in seen if stat.S_ISREG(found.st_mode)] == [0o600]
    assert [stat.S_ISDIR(found.st_mode) for found in seen] == [False, True], "the file, then its folder"
    assert mode_of(tmp_path / "key") == 0o600


def test_a_file_is_replaced_only_when_told(tmp_path):
    """Without `overwrite` the old content stays; with it the new is there whole; nothing else is left in the folder."""
    path = tmp_path / "key"
    write(path, b"old")
    with pytest.raises(KeyFileError, match="key: exists already"):
        write(path)
    assert path.read_bytes() == b"old"
    write(path, overwrite=True)
    assert path.read_bytes() == b"new"
    assert list(tmp_path.iterdir()) == [path]


def test_a_link_is_not_written_through(tmp_path):
    """A link of the file's name is a file that exists, and replacing it leaves what it names as it was."""
    (tmp_path / "other").write_bytes(b"other")
    link = tmp_path / "key"
    link.symlink_to(tmp_path / "other")
    with pytest.raises(KeyFileError, match="exists already"):
        write(link)
    write(link, overwrite=True)
    assert (tmp_path / "other").read_bytes() == b"other"
    assert not link.is_symlink()


@pytest.mark.parametrize("overwrite", [False, True])
def test_a_write_that_fails_leaves_nothing(tmp_path, monkeypatch, overwrite):
    """When the disk fails, the old file is as it was, or there is none, and no part lies about."""
    path = tmp_path / "key"
    if overwrite:
        write(path, b"old")

    def full(_):
        raise OSError(28, "No space left on device")

    monkeypatch.setattr(os, "fsync", full)
    with pytest.raises(KeyFileError, match="key: No space left"):
        write(path, overwrite=overwrite)
    assert [entry.read_bytes() for entry in tmp_path.iterdir()] == ([b"old"] if overwrite else [])


def test_a_missing_folder_is_named(tmp_path):
    """Writing and reading where there is nothing names the path."""
    with pytest.raises(KeyFileError, match="nowhere/key: No such file"):
        write(tmp_path / "nowhere" / "key")
    with pytest.raises(RosterError, match="nowhere: No such file"):
        read(tmp_path / "nowhere")


@pytest.mark.parametrize("mode", [0o640, 0o604, 0o660, 0o644, 0o700, 0o601, 0o4600, 0o620])
def test_a_private_file_with_a_wider_mode_is_refused(tmp_path, mode):
    """Any bit beyond read and write of the owner refuses it, and the mode is named; 0600 and 0400 pass."""
    path = tmp_path / "key"
    path.write_bytes(b"secret")
    path.chmod(mode)
    with pytest.raises(RosterError, match=f"key: mode {mode:04o} is wider than 0600"):
        read(path, private=True)
    assert read(path) == b"secret"
    for narrow in (0o600, 0o400):
        path.chmod(narrow)
        assert read(path, private=True) == b"secret"


@pytest.mark.parametrize(
    ("mode", "safe"), [(0o777, False), (0o702, False), (0o703, False), (0o1777, True), (0o775, True), (0o700, True)]
)
def test_a_folder_in_which_everybody_can_replace_files_is_refused(tmp_path, mode, safe):
    """Unless it has the sticky bit, as the system's folder for temporary files has; the file is named, and its folder's mode."""
    folder = tmp_path / "folder"
    folder.mkdir()
    folder.chmod(mode)
    if safe:
        check_folder(folder / "file", KeyFileError)
    else:
        with pytest.raises(KeyFileError, match=f"folder/file: mode {mode:04o} of its folder"):
            check_folder(folder / "file", KeyFileError)
    with pytest.raises(RosterError, match="nowhere/file: No such file"):
        check_folder(folder / "nowhere" / "file", RosterError)


def test_what_the_system_reports_becomes_an_error_of_ours(tmp_path):
    """Any failure has the file and the reason, without the system's error behind it; other errors go through as they are."""
    with (
        pytest.raises(KeyFileError, match="key: Input/output error") as caught,
        os_errors(tmp_path / "key", KeyFileError),
    ):
        raise OSError(5, "Input/output error")
    assert caught.value.__suppress_context__
    with pytest.raises(ZeroDivisionError), os_errors(tmp_path / "key", KeyFileError):
        raise ZeroDivisionError


def test_a_private_file_of_another_user_is_refused(tmp_path, monkeypatch):
    """Who could have written it is not whom we trust."""
    path = tmp_path / "key"
    write(path)
    monkeypatch.setattr(os, "geteuid", lambda: path.stat().st_uid + 1)
    with pytest.raises(RosterError, match="key: belongs to user"):
        read(path, private=True)
    assert read(path) == b"new"


def test_a_private_file_is_no_link(tmp_path):
    """A link to a good file is refused where the file is private, and followed where it is not."""
    write(tmp_path / "key")
    link = tmp_path / "link"
    link.symlink_to(tmp_path / "key")
    with pytest.raises(RosterError, match="link: a link, not a file"):
        read(link, private=True)
    assert read(link) == b"new"


def test_what_is_no_file_is_refused_without_waiting(tmp_path):
    """A folder, and a pipe that nobody writes to, are refused at once."""
    os.mkfifo(tmp_path / "pipe")
    caught = []

    def attempt():
        for name in ("pipe", ""):
            try:
                read(tmp_path / name)
            except RosterError as error:
                caught.append(str(error))

    thread = threading.Thread(target=attempt, daemon=True)
    thread.start()
    thread.join(30)
    assert len(caught) == 2
    assert all("not a regular file" in text for text in caught)


def test_a_file_has_a_largest_size(tmp_path):
    """One byte more than the limit is refused."""
    (tmp_path / "file").write_bytes(bytes(101))
    with pytest.raises(RosterError, match="file: has more than 100 bytes"):
        read(tmp_path / "file")
    assert len(read(tmp_path / "file", 101)) == 101


@pytest.mark.parametrize(
    ("text", "words"),
    [
        (b'{"a": 1, "a": 1}', "'a' comes twice"),
        (b'[{"b": {"a": 1, "c": 2, "a": 3}}]', "'a' comes twice"),
        (b'{"a": 1, "\\u0061": 1}', "'a' comes twice"),
        (b"[1.0]", "1.0 is not an integer"),
        (b"[1e3]", "1e3 is not an integer"),
        (b"[NaN]", "NaN is not an integer"),
        (b"[-Infinity]", "-Infinity is not an integer"),
        (b"[" * 100_000, "nested too deeply"),
        (b"[1] [2]", "Extra data"),
        (b"", "Expecting value"),
        (b'["\xff"]', "decode"),
        (b'\xef\xbb\xbf{"a": 1}', "BOM"),
        ("[1]".encode("utf-16"), "decode"),
        (b"[" + b"9" * 5000 + b"]", "digits"),
    ],
)
def test_json_with_two_meanings_is_refused(text, words):
    """Repeated keys, fractions, other encodings, and whatever follows the value."""
    with pytest.raises(ValueError, match=words):
        parse_json(text)


def test_json_with_one_meaning_is_read():
    """Objects, lists, text, integers, booleans and null come through."""
    assert parse_json(b' {"a": [1, -2, "\xc3\xa9", true, null]} ') == {"a": [1, -2, "é", True, None]}


def test_an_error_about_somebody_elses_file_fits_one_line():
    """Characters that would move a cursor or start a line are replaced, and the text is bounded."""
    text = one_line(ValueError("field \x1b[2J\n\u202eevil" + "x" * 1000))
    assert text.startswith("field ?[2J??evil")
    assert text.isprintable()
    assert len(text) == 300
