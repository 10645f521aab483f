import threading
from pathlib import Path

import numpy as np
import polars as pl
import pytest

from export.artifact import open_artifact
from export.catalogue import write_catalogue
from export.refresh import refresh_items, restore, versions
from export.runtime import Artifact
from export.verify import verify_artifact
from recommender.errors import GateError, InputError
from recommender.files import read_json, sha256_file, write_json
from recommender.scoring import HistoryArrays
from tests.export.fixtures import N_ITEMS, TOP_K, reseal

HISTORY = ["i3", "i4", "i5"]


def present(folder: Path) -> tuple[pl.DataFrame, np.ndarray]:
    """The catalogue in use: items by row and their vectors."""
    artifact = Artifact(folder)
    ids = list(artifact.item_ids)
    return pl.DataFrame({"item_id": ids}), np.array(artifact.table[1:])


def lists(folder: Path, variant: str, version: int | None = None) -> list[str]:
    opened = Artifact(folder, variant=variant, version=version)
    return [item["item_id"] for item in opened.recommend(HISTORY, TOP_K)]


def test_the_same_vectors_give_the_same_lists_from_every_variant(folder: Path) -> None:
    before = lists(folder, "fp32")
    items, vectors = present(folder)
    order = np.random.default_rng(0).permutation(N_ITEMS)  # the order of the file is not that of the rows
    told = refresh_items(folder, items[order.tolist()], vectors[order])
    assert (told.version, told.items, told.changed, told.added, told.withdrawn) == (2, N_ITEMS, 0, 0, 0)
    assert lists(folder, "fp32") == lists(folder, "fast") == before
    assert list(open_artifact(folder).item_ids) == items["item_id"].to_list()


def test_the_body_stays_the_same_file_and_the_rest_is_sealed(folder: Path) -> None:
    bodies = {name: sha256_file(folder / name) for name in ("body.onnx", "body-fast.onnx")}
    items, vectors = present(folder)
    refresh_items(folder, items, vectors * 2)
    assert {name: sha256_file(folder / name) for name in bodies} == bodies
    found = verify_artifact(folder)
    assert found.unlisted == () and found.requests > 1
    assert not any(name.startswith("catalogue-1/") for name in found.files)


def test_items_are_changed_added_and_withdrawn(folder: Path) -> None:
    items, vectors = present(folder)
    best = lists(folder, "fp32")[0]
    gone = items["item_id"].to_list().index(best)
    new_vector = vectors[gone] * 3  # an item like the best, only more so
    given = pl.DataFrame(
        {"item_id": [*items["item_id"].to_list(), "brand-new"], "title": [None] * N_ITEMS + ["New"]}
    )
    keep = np.arange(N_ITEMS + 1) != gone
    table = np.concatenate((vectors, new_vector[None]))
    table[0] += 1
    told = refresh_items(folder, given.filter(keep), table[keep], withdraw_missing=True)
    assert (told.items, told.changed, told.added, told.withdrawn) == (N_ITEMS, 1, 1, 1)
    for variant in ("fp32", "fast"):
        answer = Artifact(folder, variant=variant).recommend(HISTORY, TOP_K)
        assert (answer[0]["item_id"], answer[0]["title"]) == ("brand-new", "New")
        assert best not in [item["item_id"] for item in answer]
        assert {item["title"] for item in answer[1:]} == {f"Item {item['item_id']}" for item in answer[1:]}
    with pytest.raises(InputError, match=f"unknown item '{best}'"):
        from export.recommend import recommend

        recommend(folder, [best])


def test_an_older_version_can_be_put_back_and_be_opened_beside_the_newer(folder: Path) -> None:
    before = lists(folder, "fast")
    items, vectors = present(folder)
    refresh_items(folder, items, vectors[::-1].copy())
    after = lists(folder, "fast")
    assert after != before and lists(folder, "fast", version=1) == before
    restore(folder, 1)
    assert lists(folder, "fast") == before and versions(folder) == [1, 2]
    verify_artifact(folder)
    told = refresh_items(folder, items, vectors)  # numbers are never used twice
    assert told.version == 3
    with pytest.raises(InputError, match=r"no version 9 .*there are: 1, 2, 3"):
        restore(folder, 9)


def test_a_damaged_version_is_not_put_back(folder: Path) -> None:
    items, vectors = present(folder)
    refresh_items(folder, items, vectors * 2)
    table = folder / "catalogue-1" / "item_table.npy"
    table.write_bytes(table.read_bytes()[:-4])
    with pytest.raises(InputError, match=r"item_table\.npy has"):
        restore(folder, 1)
    assert Artifact(folder).version == 2


def test_a_reader_keeps_the_version_that_it_opened(folder: Path) -> None:
    """An open artifact keeps its lists; whoever opens it anew gets the old catalogue or the new, whole."""
    items, vectors = present(folder)
    reader = Artifact(folder)
    query = HistoryArrays(np.array([[3, 4, 5]]))
    before, faults, stop = reader.top_k(query, TOP_K).items.tolist(), [], threading.Event()
    opened: dict[int, threading.Event] = {version: threading.Event() for version in (1, 2, 3, 4)}

    def read() -> None:
        while not stop.is_set():
            try:
                assert reader.top_k(query, TOP_K).items.tolist() == before
                fresh = Artifact(folder)
                assert fresh.top_k(query, TOP_K).items.shape == (1, TOP_K)
                opened[fresh.version].set()
            except Exception as error:
                faults.append(error)
                return

    thread = threading.Thread(target=read)
    thread.start()
    try:
        assert opened[1].wait(60), faults
        for number in range(3):
            refresh_items(folder, items, vectors * (number + 2))
        assert opened[4].wait(60), faults
    finally:
        stop.set()
        thread.join()
    assert not faults, faults
    assert not reader.is_current()


@pytest.mark.parametrize("shuffled", [False, True])
def test_a_row_column_of_the_given_items_is_not_read(folder: Path, shuffled: bool) -> None:
    items, vectors = present(folder)
    order = np.random.default_rng(0).permutation(N_ITEMS) if shuffled else np.arange(N_ITEMS)
    given = pl.DataFrame(
        {"row": range(1, N_ITEMS + 2), "item_id": [*items["item_id"][order.tolist()], "new"]}
    )
    refresh_items(folder, given, np.concatenate((vectors[order], np.full((1, 16), 9, np.float32))))
    after = Artifact(folder)
    np.testing.assert_array_equal(after.table[1:-1], vectors)
    assert after.rows["new"] == N_ITEMS + 1 and (after.table[-1] == 9).all()


@pytest.mark.parametrize("name", ["place", "row", "given title", "present title", "item_id (new)"])
@pytest.mark.parametrize("whose", ["present", "given"])
def test_no_name_of_a_column_displaces_a_vector_or_a_title(folder: Path, name: str, whose: str) -> None:
    items, vectors = present(folder)
    texts = [str((row + 7) % N_ITEMS) for row in range(N_ITEMS)]  # could be taken for places
    given = items
    if whose == "given":
        given = items.with_columns(pl.Series(name, texts))
    elif name != "row":
        file = folder / "catalogue-1" / "items.parquet"
        pl.read_parquet(file).with_columns(pl.Series(name, texts)).write_parquet(file)
        reseal(folder)
    refresh_items(folder, given, vectors * 2)
    after = Artifact(folder)
    np.testing.assert_array_equal(after.table[1:], vectors * 2)
    assert list(after.titles) == [f"Item {item}" for item in items["item_id"]]
    stored = pl.read_parquet(folder / "catalogue-2" / "items.parquet")
    if name != "row":
        assert stored[name].to_list() == texts


def test_given_titles_replace_those_of_items_that_stay(folder: Path) -> None:
    items, vectors = present(folder)
    refresh_items(
        folder, items.with_columns(pl.Series("title", ["Renamed", *[None] * (N_ITEMS - 1)])), vectors
    )
    assert list(Artifact(folder).titles)[:2] == ["Renamed", "Item i2"]


def test_a_table_that_does_not_hold_the_given_vectors_is_not_published(
    folder: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def wrong(made: Path, items: pl.DataFrame, table: np.ndarray, places: np.ndarray) -> None:
        write_catalogue(made, items, table, np.roll(places, 1))

    monkeypatch.setattr("export.refresh.write_catalogue", wrong)
    items, vectors = present(folder)
    with pytest.raises(GateError, match="the vector of item 'i1' is not the one given"):
        refresh_items(folder, items, vectors)
    assert versions(folder) == [1] and Artifact(folder).version == 1


def test_changed_vectors_are_counted_over_several_pieces(
    folder: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("export.refresh.ROWS_AT_ONCE", 7)
    monkeypatch.setattr("export.catalogue.ROWS_AT_ONCE", 7)
    monkeypatch.setattr("export.proof.ROWS_AT_ONCE", 7)
    items, vectors = present(folder)
    vectors[[0, 6, 7, 39]] += 1
    assert refresh_items(folder, items, vectors).changed == 4
    np.testing.assert_array_equal(Artifact(folder).table[1:], vectors)


def test_variants_that_nobody_knows_here_are_refused(folder: Path) -> None:
    items, vectors = present(folder)
    manifest = read_json(folder / "manifest.json")
    manifest["variants"][1]["name"] = "turbo"
    write_json(folder / "manifest.json", manifest)
    with pytest.raises(InputError, match="turbo are unknown"):
        refresh_items(folder, items, vectors)


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ("fewer", r"3 of the 40 items have no new vector: 'i38', 'i39', 'i40'"),
        ("narrow", r"40 x 15, but the body reads vectors of 16"),
        ("nan", r"row 6 is not finite"),
        ("twice", r"1 ids are there twice, the first is 'i1'"),
        ("unequal", r"39 vectors for 40 items"),
        ("few", r"5 items are fewer than the 15"),
    ],
)
def test_what_does_not_fit_changes_nothing(folder: Path, change: str, message: str) -> None:
    items, vectors = present(folder)
    match change:
        case "fewer":
            items, vectors = items[:-3], vectors[:-3]
        case "narrow":
            vectors = vectors[:, :-1]
        case "nan":
            vectors[5, 2] = np.nan
        case "twice":
            items = items.with_columns(pl.col("item_id").replace("i2", "i1"))
        case "unequal":
            vectors = vectors[:-1]
        case "few":
            items, vectors = items[:5], vectors[:5]
    before = {path.as_posix() for path in folder.rglob("*")}
    manifest = read_json(folder / "manifest.json")
    with pytest.raises(InputError, match=message):
        refresh_items(folder, items, vectors, withdraw_missing=change in ("few", "twice"))
    assert read_json(folder / "manifest.json") == manifest
    assert {path.as_posix() for path in folder.rglob("*")} - {f"{folder.as_posix()}/.lock"} == before
