from collections.abc import Callable
from pathlib import Path

import pytest

from recommender.data.config import DataConfig
from recommender.data.origin import open_origin
from recommender.data.prepare import prepare
from recommender.errors import InputError
from tests.recommender.data.conftest import SMALL, histories

LOG = ("user_id,item_id,position", "1,a,1", "1,b,0")


def test_a_folder_below_the_root_is_a_source(
    csv: Callable[..., Path], tmp_path: Path, cache: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    csv("data/shop/interactions.csv", *LOG)
    csv("data/shop/items.csv", "item_id,title", "a,Saw")
    monkeypatch.setenv("RECPRESS_DATA", str(tmp_path / "data"))
    prepared = prepare(DataConfig.model_validate({"source": "shop", **SMALL}), cache)
    assert (
        histories(prepared) == {"1": ["b", "a"]}
        and prepared.meta["name"] == prepared.meta["source"] == "shop"
    )
    assert prepared.meta["order_by"] == "position"
    assert sorted(prepared.catalogue["title"]) == ["", "Saw"]


def test_data_root_beats_the_environment(
    csv: Callable[..., Path], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    csv("mine/shop/interactions.csv", *LOG)
    csv("other/shop/interactions.csv", *LOG)
    monkeypatch.setenv("RECPRESS_DATA", str(tmp_path / "other"))
    origin = open_origin(DataConfig(source="shop", root=tmp_path / "mine"))
    assert origin.files == (tmp_path / "mine" / "shop" / "interactions.csv",)


def test_a_folder_in_the_plain_layout_wins_over_original_files(
    csv: Callable[..., Path], tmp_path: Path
) -> None:
    csv("ml-1m/ratings.dat", "1::1::5::1")
    csv("ml-1m/movies.dat", "1::Film (1999)::Drama")
    assert open_origin(DataConfig(source="ml-1m", root=tmp_path)).files[0].name == "ratings.dat"
    csv("ml-1m/interactions.csv", *LOG)
    assert [file.name for file in open_origin(DataConfig(source="ml-1m", root=tmp_path)).files] == [
        "interactions.csv"
    ]


@pytest.mark.parametrize(
    ("name", "message"),
    [
        ("shopp", r"unknown source 'shopp' \(did you mean 'shop'\?\)"),
        ("syntetic", r"did you mean 'synthetic'"),
        ("amazon-reviews-2018", "is written amazon-reviews-2018:NAME"),
        ("amazon-reviews-2018:../x", "is written amazon-reviews-2018:NAME"),
        ("ml-1m:Beauty", "is written ml-1m"),
        ("ml-1m", "lacks its file ratings.dat"),
    ],
)
def test_a_source_that_is_not_there_is_refused_with_a_way_out(
    csv: Callable[..., Path], tmp_path: Path, name: str, message: str
) -> None:
    csv("shop/interactions.csv", *LOG)
    with pytest.raises(InputError, match=message) as error:
        open_origin(DataConfig(source=name, root=tmp_path))
    assert "fix:" in str(error.value)


def test_a_named_source_needs_a_root(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    with pytest.raises(InputError, match="RECPRESS_DATA"):
        open_origin(DataConfig(source="ml-1m"))
    monkeypatch.setenv("RECPRESS_DATA", str(tmp_path / "nowhere"))
    with pytest.raises(InputError, match="not a folder"):
        open_origin(DataConfig(source="ml-1m"))


def test_columns_of_a_known_source_cannot_be_mapped(csv: Callable[..., Path], tmp_path: Path) -> None:
    with pytest.raises(InputError, match="columns of 'ml-1m' are known"):
        open_origin(
            DataConfig.model_validate({"source": "ml-1m", "root": tmp_path, "columns": {"user": "x"}})
        )


@pytest.mark.parametrize("given", [{}, {"source": "a", "interactions": "b"}, {"source": "a", "items": "b"}])
def test_a_data_section_has_one_origin(given: dict[str, str]) -> None:
    with pytest.raises(ValueError, match=r"exactly one of|goes with"):
        DataConfig.model_validate(given)
