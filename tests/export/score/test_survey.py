"""Users who come twice are found in flat memory, and only those."""

import tempfile
from collections.abc import Iterator
from pathlib import Path

import numpy as np
import polars as pl
import pytest
from hypothesis import given
from hypothesis import strategies as st

from export.score import survey as survey_module
from export.score.known import Catalogue
from export.score.read import Histories
from export.score.survey import near, repeated, survey
from recommender.errors import InputError
from recommender.stage import silent


@given(
    values=st.lists(st.integers(0, 12) | st.integers(2**63, 2**64 - 1), max_size=60), room=st.integers(8, 64)
)
def test_repeated_values_are_those_that_stand_twice_whatever_the_room(values: list[int], room: int) -> None:
    with tempfile.TemporaryFile() as file, pytest.MonkeyPatch.context() as patch:
        patch.setattr(survey_module, "HASHES", room // 8 * 8)
        file.write(np.array(values, np.uint64).tobytes())
        found = repeated(file, len(values)).tolist()
    assert found == sorted({value for value in values if values.count(value) > 1})


def found_of(users: list[str]) -> Iterator[Histories]:
    for user in users:
        yield Histories(pl.Series([user]), pl.Series(["a", "zz"]), np.array([2]))


def test_everything_is_counted(tmp_path: Path) -> None:
    found = survey(lambda: found_of(["u", "v"]), Catalogue(["a"]), tmp_path / "f", tmp_path, silent)
    counts = (found.users, found.interactions, found.unknown_items, found.unknown_users, found.empty_users)
    assert counts == (2, 2, 2, 2, 0)
    assert found.unknown_ids == (("zz", 2),)
    assert survey_module.Survey.from_json(found.as_json()) == found
    assert not list(tmp_path.iterdir())


def test_users_who_come_twice_are_named(tmp_path: Path) -> None:
    with pytest.raises(InputError, match=r"more than once: 'v' \(3 times\), 'u' \(2 times\)"):
        survey(lambda: found_of([*"uvvwuv"]), Catalogue(["a"]), tmp_path, tmp_path, silent)


def test_users_that_only_share_a_hash_are_no_repeats(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(pl.Series, "hash", lambda self: pl.Series([7] * len(self), dtype=pl.UInt64))
    assert survey(lambda: found_of(["u", "v"]), Catalogue(["a"]), tmp_path, tmp_path, silent).users == 2
    with pytest.raises(InputError, match="more than once: 'u'"):
        survey(lambda: found_of(["u", "v", "u"]), Catalogue(["a"]), tmp_path, tmp_path, silent)


def test_the_nearest_id_is_told() -> None:
    assert near("item-01x", ["item-010", "other"]) == " (did you mean 'item-010'?)"
    assert near("?", ["item-010", "other"]) == " (ids look like 'item-010')"
