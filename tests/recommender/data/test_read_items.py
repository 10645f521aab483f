from collections.abc import Callable
from pathlib import Path

import polars as pl
import pytest

from recommender.data.config import Columns
from recommender.data.read_items import read_items
from recommender.errors import InputError


def test_items_keep_all_text_columns_as_strings(csv: Callable[..., Path]) -> None:
    file = csv("items.csv", "item_id,brand,title,year", "007,Acme,Saw,1999", "8,,,2001")
    assert read_items([file], Columns()).to_dicts() == [
        {"item_id": "007", "title": "Saw", "brand": "Acme", "year": "1999"},
        {"item_id": "8", "title": "", "brand": "", "year": "2001"},
    ]


def test_only_the_named_text_columns_are_kept(csv: Callable[..., Path]) -> None:
    file = csv("items.csv", "asin,brand,name,year", "a,Acme,Saw,1999")
    columns = Columns(item_key="asin", title="name", text=("brand",))
    assert read_items([file], columns).to_dicts() == [{"item_id": "a", "title": "Saw", "brand": "Acme"}]


def test_the_first_row_of_an_item_counts_and_rows_without_id_do_not(csv: Callable[..., Path]) -> None:
    file = csv("items.csv", "item_id,title", "1,first", "1,second", ",nobody")
    assert read_items([file], Columns())["title"].to_list() == ["first"]


def test_lists_and_structures_become_text(tmp_path: Path) -> None:
    file = tmp_path / "items.parquet"
    frame = {"item_id": [1], "title": ["x"], "tags": [["a", None, "b"]], "size": [{"w": 1}]}
    pl.DataFrame(frame).write_parquet(file)
    row = read_items([file], Columns()).to_dicts()[0]
    assert (row["item_id"], row["tags"], row["size"]) == ("1", "a, b", '{"w":1}')


@pytest.mark.parametrize(
    ("header", "columns", "message"),
    [
        ("id,title", Columns(), "no column 'item_id'"),
        ("item_id,titel", Columns(), r"no column 'title' \(did you mean 'titel'"),
        ("item_id,title", Columns(text=("brand",)), "no column 'brand'"),
        ("item_id,title,row", Columns(), "'row' has the name of a column of our own"),
    ],
)
def test_wrong_columns_are_refused(
    csv: Callable[..., Path], header: str, columns: Columns, message: str
) -> None:
    with pytest.raises(InputError, match=message):
        read_items([csv("items.csv", header, "1,2,3"[: len(header.split(",")) * 2 - 1])], columns)
