"""Item maps in every form, and what happens to items that one side does not know."""

import json
from pathlib import Path
from typing import Any

import numpy as np
import polars as pl
import pytest
import torch

from recommender.data.prepared import Prepared
from recommender.errors import InputError
from recommender.incoming.items import align, gather, read_map

PAIRS = {3: "i1", 0: "i2", 7: "17"}


def write(file: Path, document: Any) -> Path:
    file.write_text(json.dumps(document))
    return file


def every_form(folder: Path) -> list[Path]:
    frame = pl.DataFrame({"index": list(PAIRS), "item_id": list(PAIRS.values()), "more": ["a", "b", "c"]})
    frame.write_csv(folder / "map.csv")
    frame.write_csv(folder / "map.tsv", separator="\t")
    frame.write_parquet(folder / "map.parquet")
    frame.write_ndjson(folder / "map.jsonl")
    by_place = ["i2", "?1", "?2", "i1", "?4", "?5", "?6", "17"]
    return [
        *(folder / f"map.{ending}" for ending in ("csv", "tsv", "parquet", "jsonl")),
        write(folder / "records.json", [{"index": n, "item_id": i} for n, i in PAIRS.items()]),
        write(folder / "ids.json", {i: n for n, i in PAIRS.items()}),
        write(folder / "numbers.json", {str(n): i for n, i in PAIRS.items()}),
        write(folder / "list.json", by_place),
    ]


def test_every_form_says_the_same(tmp_path: Path) -> None:
    for file in every_form(tmp_path):
        found = read_map(file)
        pairs = dict(zip(found["index"].to_list(), found["item_id"].to_list(), strict=True))
        assert {n: pairs[n] for n in PAIRS} == PAIRS, file.name
        assert found.schema == {"index": pl.Int64, "item_id": pl.String}


def test_ids_that_look_like_numbers_are_text(tmp_path: Path) -> None:
    pl.DataFrame({"index": [1, 2], "item_id": [17.0, 18.0]}).write_parquet(tmp_path / "map.parquet")
    assert read_map(tmp_path / "map.parquet")["item_id"].to_list() == ["17", "18"]


@pytest.mark.parametrize(
    ("text", "told"),
    [
        ("number,item_id\n1,a\n", "no column 'index'"),
        ("index,item\n1,a\n", "no column 'item_id' (did you mean 'item'?)"),
        ("index,item_id\n1,a\nx,b\n", "index 'x' with item_id 'b'"),
        ("index,item_id\n1,a\n-2,b\n", "index '-2' with item_id 'b'"),
        ("index,item_id\n1,a\n2,\n", "1 of 2 entries"),
        ("index,item_id\n1,a\n1,b\n", "the index 1 stands there 2 times"),
        ("index,item_id\n1,a\n2,a\n", "the item_id 'a' stands there 2 times"),
        ("", "the file is empty"),
    ],
)
def test_a_wrong_map_is_refused(text: str, told: str, tmp_path: Path) -> None:
    file = tmp_path / "map.csv"
    file.write_text(text)
    with pytest.raises(InputError) as caught:
        read_map(file)
    assert told in str(caught.value) and "map.csv" in str(caught.value)


def test_a_row_that_is_no_item_is_null_in_a_list(tmp_path: Path) -> None:
    found = read_map(write(tmp_path / "map.json", [None, "a", None, "b"]))
    assert found.rows() == [(1, "a"), (3, "b")]


def test_numbers_for_numbers_are_refused(tmp_path: Path) -> None:
    with pytest.raises(InputError, match=r"which are the rows.*\n.*write records"):
        read_map(write(tmp_path / "map.json", {"1": 3952, "2": 17}))
    records = [{"index": 1, "item_id": 3952}, {"index": 2, "item_id": 17}]
    assert read_map(write(tmp_path / "map.json", records)).rows() == [(1, "3952"), (2, "17")]
    assert read_map(write(tmp_path / "map.json", {"1": "3952"})).rows() == [(1, "3952")]


def test_an_index_with_a_fraction_is_refused(tmp_path: Path) -> None:
    frame = pl.DataFrame({"index": [1.7, 2.0], "item_id": ["a", "b"]})
    frame.write_parquet(tmp_path / "map.parquet")
    with pytest.raises(InputError, match=r"1 of 2 entries.*index 1\.7 with item_id 'a'"):
        read_map(tmp_path / "map.parquet")
    frame[1:].write_parquet(tmp_path / "map.parquet")  # whole ones are what a column with gaps becomes
    assert read_map(tmp_path / "map.parquet").rows() == [(2, "b")]


@pytest.mark.parametrize("document", ["[1, 2", '"text"', "[]", "{}", '[["a", 1]]', '{"a": 1.5}', "[1.5]"])
def test_json_of_another_form_is_refused(document: str, tmp_path: Path) -> None:
    (tmp_path / "map.json").write_text(document)
    with pytest.raises(InputError, match=r"not valid JSON|is no item map"):
        read_map(tmp_path / "map.json")


def test_a_map_that_is_not_there_is_refused(tmp_path: Path) -> None:
    with pytest.raises(InputError, match="no such item map"):
        read_map(tmp_path / "map.csv")


def ids_without(prepared: Prepared, gone: int) -> tuple[list[str], np.ndarray]:
    """Ids of all our items but the first `gone`, and one of theirs."""
    ids = [f"i{row}" for row in range(gone + 1, prepared.n_items + 1)] + ["theirs"]
    return ids, np.arange(len(ids), dtype=np.int64)


def test_rows_are_matched_and_counted(prepared: Prepared) -> None:
    ids, rows = ids_without(prepared, 2)
    aligned = align(ids, rows, prepared, missing="zero", where=Path("map.csv"))
    assert aligned.foreign.tolist() == [-1, -1, -1, *range(prepared.n_items - 2)]
    counts = {"items_matched": prepared.n_items - 2, "items_missing": 2, "items_dropped": 1}
    assert aligned.missing.tolist() == [1, 2] and aligned.facts() == counts


def test_missing_items_are_named(prepared: Prepared) -> None:
    ids, rows = ids_without(prepared, 7)
    with pytest.raises(InputError) as caught:
        align(ids, rows, prepared, missing="error", where=Path("map.csv"))
    told = str(caught.value)
    assert "7 of 24 items" in told and "'i1', 'i2', 'i3', 'i4', 'i5', ..." in told and "'i6'" not in told
    assert "mean, zero or fresh" in told


def test_ids_that_do_not_match_at_all_are_shown_from_both_sides(prepared: Prepared) -> None:
    with pytest.raises(InputError) as caught:
        align(["B01", "B02"], np.array([1, 2]), prepared, missing="mean", where=Path("map.csv"))
    assert "'B01', 'B02'" in str(caught.value) and "'i1', 'i2'" in str(caught.value)


def test_missing_vectors_are_filled_as_asked(prepared: Prepared) -> None:
    ids, rows = ids_without(prepared, 10)
    aligned = align(ids, rows, prepared, missing="fresh", where=Path("map.csv"))
    table = torch.randn(len(ids), 6, generator=torch.Generator().manual_seed(0)) * 3 + 5
    zero, mean, fresh, again = (
        gather(table, aligned, missing=how, seed=seed)
        for how, seed in (("zero", 1), ("mean", 1), ("fresh", 1), ("fresh", 2))
    )
    known = table[:-1]
    for filled in (zero, mean, fresh):
        assert not filled[0].any() and torch.equal(filled[11:], known)
    assert not zero[1:11].any()
    torch.testing.assert_close(mean[1:11], known.mean(dim=0).expand(10, -1))
    assert not torch.equal(fresh[1:11], again[1:11])
    assert (fresh[1:11].mean() - 5).abs() < 1 and 1.5 < fresh[1:11].std() < 4.5
