import hashlib
import os
from pathlib import Path

import pytest

from recommender.data import content
from recommender.data.content import content_digest
from recommender.errors import InputError


@pytest.fixture
def old_file(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A file that counts as old enough to be remembered."""
    monkeypatch.setattr(content, "FRESH_SECONDS", -1.0)
    file = tmp_path / "log.csv"
    file.write_text("one", encoding="utf-8")
    return file


def test_a_known_file_is_not_read_again(
    old_file: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    first = content_digest(old_file, tmp_path / "memo")
    monkeypatch.setattr(content, "sha256_file", lambda path: pytest.fail(f"read {path} again"))
    assert first == hashlib.sha256(b"one").hexdigest() == content_digest(old_file, tmp_path / "memo")


def test_a_file_replaced_with_the_same_size_and_time_is_read_again(old_file: Path, tmp_path: Path) -> None:
    stat = old_file.stat()
    content_digest(old_file, tmp_path / "memo")
    other = tmp_path / "other"
    other.write_text("two", encoding="utf-8")
    os.utime(other, ns=(stat.st_atime_ns, stat.st_mtime_ns))
    os.replace(other, old_file)
    assert content_digest(old_file, tmp_path / "memo") == hashlib.sha256(b"two").hexdigest()


def test_a_file_that_has_just_changed_is_not_remembered(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(content, "FRESH_SECONDS", 3600.0)
    file = tmp_path / "log.csv"
    file.write_text("one", encoding="utf-8")
    content_digest(file, tmp_path / "memo")
    assert not (tmp_path / "memo").exists()


def test_a_file_that_cannot_be_read_is_an_input_error(tmp_path: Path) -> None:
    for path in (tmp_path / "none.csv", tmp_path):  # missing; a folder
        with pytest.raises(InputError, match="cannot be read"):
            content_digest(path, tmp_path / "memo")
