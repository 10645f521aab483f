"""Tables of item vectors: read from each kind of file, matched by id, refused where broken."""

from pathlib import Path
from typing import Any

import numpy as np
import polars as pl
import pytest
import torch

from recommender.checkpoint import load_checkpoint
from recommender.data.prepared import Prepared
from recommender.errors import InputError
from recommender.incoming.catalogue import read_catalogue
from recommender.incoming.vectors import read_vectors
from recommender.models.interface import History
from tests.recommender.incoming.conftest import FOREIGN, ITEMS, Import, saved

TABLE = torch.randn(FOREIGN + 1, 4, generator=torch.Generator().manual_seed(3))


def write(folder: Path, kind: str) -> Path:
    file = folder / f"vectors.{kind}"
    ids = [f"x{row}" for row in range(len(TABLE))]
    match kind:
        case "safetensors":
            saved({"table": TABLE}, file)
        case "npy":
            np.save(file, TABLE.numpy())
        case "parquet":
            pl.DataFrame({"item_id": ids, "vector": TABLE.tolist()}).write_parquet(file)
    return file


@pytest.mark.parametrize("kind", ["safetensors", "npy", "parquet"])
def test_every_kind_of_file_gives_the_same_table(kind: str, tmp_path: Path) -> None:
    found = read_vectors(write(tmp_path, kind))
    torch.testing.assert_close(found.table, TABLE)
    assert (found.ids is not None) == (kind == "parquet")


def test_an_array_is_read_where_it_lies_and_its_file_never_changes(tmp_path: Path) -> None:
    file = write(tmp_path, "npy")
    before = file.read_bytes()
    rows = pl.DataFrame({"index": range(len(TABLE)), "item_id": [f"x{row}" for row in range(len(TABLE))]})
    for name, given in (("same", rows), ("other", rows.reverse())):
        given.write_csv(tmp_path / f"{name}.csv")
        frame, table = read_catalogue(file, tmp_path / f"{name}.csv")
        wanted = TABLE.numpy()[given["index"].to_numpy()]
        np.testing.assert_array_equal(table, wanted)
        assert frame["item_id"].to_list() == given["item_id"].to_list()
        table[:] = 0
    assert file.read_bytes() == before


def test_columns_of_numbers_are_a_table_too(tmp_path: Path) -> None:
    columns = {f"vector_{place}": TABLE[:, place].tolist() for place in (2, 0, 3, 1)}
    pl.DataFrame({"item_id": range(len(TABLE)), **columns}).write_parquet(tmp_path / "v.parquet")
    found = read_vectors(tmp_path / "v.parquet")
    torch.testing.assert_close(found.table, TABLE)
    assert found.ids is not None and found.ids[3] == "3"


def test_one_of_several_tensors_is_chosen_by_name(tmp_path: Path) -> None:
    file = saved({"table": TABLE, "bias": torch.zeros(3)}, tmp_path / "v.safetensors")
    torch.testing.assert_close(read_vectors(file, "table").table, TABLE)
    with pytest.raises(InputError, match=r"choose one: tensor: bias \| table"):
        read_vectors(file)
    with pytest.raises(InputError, match="did you mean 'table'"):
        read_vectors(file, "tabel")


def test_what_is_not_chosen_may_hold_anything(tmp_path: Path) -> None:
    numbers = torch.arange(3)
    file = saved({"table": TABLE, "ids": numbers, "nan": TABLE * torch.nan}, tmp_path / "v.safetensors")
    torch.testing.assert_close(read_vectors(file, "table").table, TABLE)
    for name, told in (("ids", "ids holds torch.int64"), ("nan", "nan holds 112 values")):
        with pytest.raises(InputError, match=told):
            read_vectors(file, name)


def _objects(file: Path) -> None:
    np.save(file, np.array([{"a": 1}], dtype=object), allow_pickle=True)


def _archive(file: Path) -> None:
    with file.open("wb") as opened:
        np.savez(opened, table=TABLE.numpy())


def _frame(**columns: Any) -> pl.DataFrame:
    return pl.DataFrame({"item_id": ["a", "b"], **columns})


@pytest.mark.parametrize(
    ("name", "make", "told"),
    [
        ("v.npy", _objects, "cannot be read as a NumPy array"),
        ("v.npy", lambda f: np.save(f, np.zeros((3, 2), dtype=np.int64)), "holds int64"),
        ("v.npy", lambda f: np.save(f, np.full((3, 2), np.inf)), "6 values of 6 that are NaN or infinite"),
        ("v.npy", lambda f: np.save(f, np.zeros(3)), "a table of items x width, this is 3"),
        ("v.pt", lambda f: f.write_bytes(b"x"), "never loaded here"),
        ("v.txt", lambda f: f.write_bytes(b"x"), "known endings"),
        ("v.parquet", lambda f: pl.DataFrame({"id": ["a"]}).write_parquet(f), "no column 'item_id'"),
        ("v.parquet", lambda f: pl.DataFrame({"item_id": ["a"]}).write_parquet(f), "no column 'vector'"),
        (
            "v.parquet",
            lambda f: pl.DataFrame({"item_id": ["a", "b"], "vector": [[1.0], [1.0, 2.0]]}).write_parquet(f),
            "all of one length",
        ),
        (
            "v.parquet",
            lambda f: pl.DataFrame({"item_id": ["a", "a"], "vector": [[1.0], [2.0]]}).write_parquet(f),
            "'a' is repeated",
        ),
        (
            "v.parquet",
            lambda f: pl.DataFrame({"item_id": ["a", "b"], "vector": [[1.0], [None]]}).write_parquet(f),
            "NaN",
        ),
        ("v.parquet", lambda f: _frame(vector=[["a"], ["b"]]).write_parquet(f), "cannot be read"),
        ("v.parquet", lambda f: _frame(vector=[[[1.0]], [[2.0]]]).write_parquet(f), "cannot be read"),
        ("v.parquet", lambda f: _frame(vector_0=["a", "b"]).write_parquet(f), "cannot be read"),
        ("v.parquet", lambda f: _frame(vector_0=[[1.0], [2.0]]).write_parquet(f), "cannot be read"),
        ("v.npy", _archive, "an archive of arrays (.npz)"),
        ("v.npy", lambda f: f.write_bytes(b"PK\x03\x04 and no more"), "cannot be read as a NumPy array"),
    ],
)
def test_a_broken_table_is_refused(name: str, make: Any, told: str, tmp_path: Path) -> None:
    make(tmp_path / name)
    with pytest.raises(InputError) as caught:
        read_vectors(tmp_path / name)
    assert told in str(caught.value) and name in str(caught.value)


def test_a_table_that_is_not_there_is_refused(tmp_path: Path) -> None:
    with pytest.raises(InputError, match="no such file"):
        read_vectors(tmp_path / "v.npy")


@pytest.mark.parametrize("pool", ["mean", "last"])
@pytest.mark.parametrize("unit", [True, False])
def test_an_imported_table_recommends_what_is_near(
    pool: str, unit: bool, bring_in: Import, item_map: Path, numbers: np.ndarray, tmp_path: Path
) -> None:
    file = write(tmp_path, "npy")
    folder, outputs = bring_in(format="item-vectors", path=file, items=item_map, pool=pool, unit=unit)
    table = TABLE[torch.from_numpy(numbers)]
    table = torch.nn.functional.normalize(table) if unit else table
    model = load_checkpoint(folder)
    torch.testing.assert_close(model.item_table(), torch.cat((torch.zeros(1, 4), table)))
    items = torch.tensor([[0, 0, 5, 2], [1, 2, 3, 4]])
    means = torch.stack((table[[4, 1]].mean(0), table[:4].mean(0)))
    expected = means if pool == "mean" else table[[1, 3]]
    torch.testing.assert_close(model.user_vector(History(items)), expected)
    hidden = model.hidden(History(items))
    torch.testing.assert_close(hidden.final[:, -1], expected)
    assert outputs.metrics["items_matched"] == ITEMS


def test_ids_in_the_table_need_no_map(bring_in: Import, prepared: Prepared, tmp_path: Path) -> None:
    ids = [f"i{row}" for row in range(1, ITEMS + 1)]
    frame = pl.DataFrame({"item_id": ids, "vector": TABLE[:ITEMS].tolist()})
    frame.reverse().write_parquet(tmp_path / "v.parquet")
    folder, _ = bring_in(format="item-vectors", path=tmp_path / "v.parquet")
    torch.testing.assert_close(load_checkpoint(folder).item_table()[1:], TABLE[:ITEMS])


def test_a_table_without_ids_and_without_a_map_is_refused(bring_in: Import, tmp_path: Path) -> None:
    with pytest.raises(InputError, match="which row of the table is which item"):
        bring_in(format="item-vectors", path=write(tmp_path, "npy"))


def test_an_index_beyond_the_table_is_refused(bring_in: Import, item_map: Path, tmp_path: Path) -> None:
    np.save(tmp_path / "v.npy", TABLE[:9].numpy())
    with pytest.raises(InputError, match=r"no row of v\.npy, whose items are the rows 0 to 8"):
        bring_in(format="item-vectors", path=tmp_path / "v.npy", items=item_map)
