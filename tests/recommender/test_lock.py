"""Who holds a folder holds it alone, even where the one before has just removed it."""

import fcntl
import shutil
from pathlib import Path
from typing import Any

import pytest

from recommender.errors import InputError, StageError
from recommender.lock import locked


def test_a_folder_that_vanishes_before_it_is_locked_is_made_again(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    folder, real, removed = tmp_path / "job", Path.mkdir, []

    def made_and_removed(self: Path, *arguments: Any, **more: Any) -> None:
        real(self, *arguments, **more)
        if not removed:
            removed.append(self)
            shutil.rmtree(self)  # the last step of whoever held it

    monkeypatch.setattr(Path, "mkdir", made_and_removed)
    with locked(folder):
        assert removed == [folder] and (folder / ".lock").is_file()


def test_a_lock_on_a_removed_file_does_not_count(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    folder, real, locks = tmp_path / "job", fcntl.lockf, []

    def slow(file: Any, *arguments: Any) -> None:
        if not locks:
            shutil.rmtree(folder)
        locks.append(file.fileno())
        real(file, *arguments)

    monkeypatch.setattr(fcntl, "lockf", slow)
    with locked(folder):
        assert len(locks) == 2 and (folder / ".lock").is_file()


def test_a_folder_that_is_removed_again_and_again_is_given_up(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(Path, "mkdir", lambda *_, **__: None)
    with pytest.raises(StageError, match="another recpress"), locked(tmp_path / "job"):
        pass


@pytest.mark.parametrize("where", ["mkdir", "open"])
def test_a_folder_of_another_owner_is_an_input_error(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, where: str
) -> None:
    def refused(*_: Any, **__: Any) -> None:
        raise PermissionError(13, "Permission denied")

    monkeypatch.setattr(Path, where, refused)
    with (
        pytest.raises(InputError, match="job: cannot be worked in: Permission denied"),
        locked(tmp_path / "job"),
    ):
        pass


def test_a_folder_in_a_folder_that_is_not_there_is_told(tmp_path: Path) -> None:
    with pytest.raises(InputError, match="none: no such folder"), locked(tmp_path / "none" / "job"):
        pass


def test_two_at_a_time_are_refused(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def taken(*_: Any) -> None:
        raise BlockingIOError(11, "Resource temporarily unavailable")

    monkeypatch.setattr(fcntl, "lockf", taken)
    with pytest.raises(StageError, match="another recpress"), locked(tmp_path):
        pass
