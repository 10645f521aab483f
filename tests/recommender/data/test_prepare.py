import json
import os
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

import numpy as np
import polars as pl
import pytest

from recommender.data import prepare as module
from recommender.data.config import DataConfig
from recommender.data.prepare import find_prepared, prepare
from recommender.data.prepared import Prepared
from recommender.errors import InputError, StageError
from tests.recommender.data.conftest import SMALL, histories

HEADER = "user_id,item_id,timestamp"
LOG = (HEADER, "b,x,3", "a,y,9", "b,y,1", "a,x,9", "a,z,2", "b,z,3")
Make = Callable[..., Prepared]


def config_of(file: Path, **settings: Any) -> DataConfig:
    return DataConfig.model_validate({"interactions": file, **SMALL, **settings})


def test_histories_are_in_the_order_of_time_and_ties_keep_the_file_order(prepared_from: Make) -> None:
    prepared = prepared_from(*LOG)
    assert histories(prepared) == {"a": ["z", "y", "x"], "b": ["y", "x", "z"]}
    assert prepared.times is not None and prepared.times.tolist() == [2, 9, 9, 1, 3, 3]
    assert prepared.meta["ties"] == 2 and prepared.meta["order_by"] == "time" and prepared.meta["has_time"]


@pytest.mark.parametrize(
    ("order_by", "expected"),
    [
        ("time", ["c", "b", "a"]),
        ("position", ["b", "a", "c"]),
        ("file", ["a", "b", "c"]),
        ("auto", ["c", "b", "a"]),
    ],
)
def test_order_by_decides_the_order(prepared_from: Make, order_by: str, expected: list[str]) -> None:
    lines = ("user_id,item_id,timestamp,position", "1,a,3,1", "1,b,2,0", "1,c,1,2")
    prepared = prepared_from(*lines, order_by=order_by)
    assert histories(prepared) == {"1": expected}
    assert prepared.meta["has_time"] == (expected == ["c", "b", "a"])  # times that run backwards are left out


def test_times_are_kept_when_another_order_agrees_with_them(prepared_from: Make) -> None:
    prepared = prepared_from("user_id,item_id,timestamp,position", "1,a,5,0", "1,b,5,1", order_by="position")
    assert prepared.times is not None and prepared.times.tolist() == [5, 5] and prepared.meta["ties"] == 0


def test_milliseconds_are_ordered_as_such_and_stored_as_seconds(prepared_from: Make) -> None:
    prepared = prepared_from(HEADER, "1,a,2999", "1,b,2001", columns={"time_unit": "ms"})
    assert histories(prepared) == {"1": ["b", "a"]} and prepared.meta["ties"] == 0
    assert prepared.times is not None and prepared.times.tolist() == [2, 2]


def test_shuffled_ties_depend_on_the_seed_only(prepared_from: Make) -> None:
    lines = (HEADER, *(f"1,{item},5" for item in range(30)))
    first, again, other = (prepared_from(*lines, shuffle_ties=seed) for seed in (1, 1, 2))
    assert histories(first) == histories(again) != histories(other)
    assert sorted(histories(first)["1"]) == sorted(histories(other)["1"])


@pytest.mark.parametrize(
    ("duplicates", "expected", "dropped"),
    [("first", ["x", "y"], 2), ("last", ["y", "x"], 2), ("keep", ["x", "y", "x", "x"], 0)],
)
def test_repeats_are_kept_or_reduced_to_the_first_or_last(
    prepared_from: Make, duplicates: str, expected: list[str], dropped: int
) -> None:
    prepared = prepared_from(HEADER, "1,x,9", "1,x,1", "1,y,2", "1,x,3", duplicates=duplicates)
    assert histories(prepared) == {"1": expected} and prepared.meta["duplicates_dropped"] == dropped


def test_repeats_do_not_count_for_the_k_core(prepared_from: Make) -> None:
    lines = (HEADER, "1,x,1", "1,x,2", "2,x,3", "2,y,4", "3,x,5", "3,y,6")
    assert set(histories(prepared_from(*lines, min_user=2))) == {"2", "3"}
    assert set(histories(prepared_from(*lines, min_user=2, duplicates="keep"))) == {"1", "2", "3"}


def test_min_rating_drops_lower_ratings(prepared_from: Make) -> None:
    lines = ("user_id,item_id,rating", "1,x,3.5", "1,y,4", "1,z,5")
    assert histories(prepared_from(*lines, min_rating=4)) == {"1": ["y", "z"]}


def test_users_and_items_that_the_k_core_drops_are_gone(prepared_from: Make) -> None:
    prepared = prepared_from(*LOG, "c,q,1", min_user=2, min_item=2)
    assert prepared.user_ids.to_list() == ["a", "b"]
    assert sorted(prepared.catalogue["item_id"]) == ["x", "y", "z"] and prepared.n_items == 3


@pytest.mark.parametrize(
    ("settings", "message"),
    [
        ({"min_user": 7}, "no user has 7 interactions"),
        ({"min_rating": 9, "columns": {"rating": "timestamp"}}, None),
    ],
)
def test_a_log_that_is_filtered_away_is_refused_and_nothing_is_written(
    csv: Callable[..., Path], cache: Path, settings: dict[str, Any], message: str | None
) -> None:
    file = csv("log.csv", HEADER, "1,a,1", "2,b,2")
    with pytest.raises(InputError, match=message or "no interaction is rated 9.0 or more"):
        prepare(config_of(file, **settings), cache)
    assert not list((cache / "data").glob("[!.]*"))


def test_rows_are_a_seeded_permutation_of_the_sorted_ids(prepared_from: Make) -> None:
    lines = ("user_id,item_id", *(f"1,{item}" for item in range(50)))
    prepared = prepared_from(*lines, item_seed=3)
    ids = np.array(sorted(str(item) for item in range(50)))
    assert prepared.catalogue["row"].to_list() == list(range(1, 51))
    assert prepared.catalogue["item_id"].to_list() == ids[np.random.default_rng(3).permutation(50)].tolist()
    assert histories(prepared) == {"1": [str(item) for item in range(50)]}
    assert prepared_from(*lines, item_seed=4).catalogue_digest != prepared.catalogue_digest


def test_titles_and_text_stand_beside_the_items(csv: Callable[..., Path], cache: Path) -> None:
    items = csv("items.csv", "item_id,title,brand", "x,Saw,Acme", "q,Nail,")
    prepared = prepare(config_of(csv("log.csv", *LOG), items=items), cache)
    assert prepared.catalogue.columns == ["row", "item_id", "title", "brand"]
    texts = {row["item_id"]: (row["title"], row["brand"]) for row in prepared.catalogue.to_dicts()}
    assert texts == {"x": ("Saw", "Acme"), "y": ("", ""), "z": ("", "")}


def test_catalogue_all_adds_the_rest_of_the_item_file(csv: Callable[..., Path], cache: Path) -> None:
    items = csv("items.csv", "item_id,title", "x,Saw", "q,Nail")
    prepared = prepare(config_of(csv("log.csv", *LOG), items=items, catalogue="all"), cache)
    shuffled = np.array(["q", "x", "y", "z"])[np.random.default_rng(0).permutation(4)]
    assert prepared.catalogue["item_id"].to_list() == shuffled.tolist() and prepared.n_items == 4
    assert histories(prepared)["a"] == ["z", "y", "x"]
    assert prepared.train_counts(prepared.split("leave-one-out"))[prepared.rows["q"]] == 0


def test_arrays_are_memory_mapped_and_have_the_documented_types(prepared_from: Make) -> None:
    prepared = prepared_from(*LOG)
    arrays = (prepared.offsets, prepared.items, prepared.times)
    assert all(isinstance(array, np.memmap) and not array.flags.writeable for array in arrays)
    assert [array.dtype for array in arrays if array is not None] == [np.int64, np.int32, np.int64]
    assert prepared.catalogue.schema["row"] == pl.Int64 and prepared.user_ids.dtype == pl.String


def test_meta_holds_the_numbers_of_the_data_set(prepared_from: Make) -> None:
    meta = prepared_from(*LOG, ",x,1").meta
    expected = {
        "name": "log",
        "users": 2,
        "items": 3,
        "interactions": 6,
        "source": None,
        "incomplete_dropped": 1,
    }
    assert {key: meta[key] for key in expected} == expected
    assert meta["files"][0]["name"] == "log.csv" and meta["config"]["duplicates"] == "first"
    assert "max_length" not in meta["config"] and "interactions" not in meta["config"]


# --- the cache ---


@pytest.fixture
def writes(monkeypatch: pytest.MonkeyPatch) -> list[Path]:
    """The folders that were really written."""
    folders: list[Path] = []
    real = module._write

    def spy(config: Any, origin: Any, digests: Any, folder: Path) -> None:
        folders.append(folder)
        real(config, origin, digests, folder)

    monkeypatch.setattr(module, "_write", spy)
    return folders


def test_the_same_content_is_prepared_once(csv: Callable[..., Path], cache: Path, writes: list[Path]) -> None:
    file = csv("log.csv", *LOG)
    first = prepare(config_of(file), cache)
    copy = csv("elsewhere/log.csv", *LOG)
    assert prepare(config_of(copy, max_length=7), cache).path == first.path and len(writes) == 1


def test_changed_content_is_prepared_anew_even_with_the_same_size_and_time(
    csv: Callable[..., Path], cache: Path
) -> None:
    file = csv("log.csv", *LOG)
    stat = file.stat()
    first = prepare(config_of(file), cache)
    csv("log.csv", *(line.replace("y", "w") for line in LOG))
    os.utime(file, ns=(stat.st_atime_ns, stat.st_mtime_ns))
    second = prepare(config_of(file), cache)
    assert first.path != second.path and first.digest != second.digest
    assert histories(second)["b"] == ["w", "x", "z"]


@pytest.mark.parametrize(
    "settings", [{"min_item": 2}, {"order_by": "file"}, {"item_seed": 1}, {"columns": {"time": None}}]
)
def test_another_setting_is_another_entry(
    csv: Callable[..., Path], cache: Path, settings: dict[str, Any]
) -> None:
    file = csv("log.csv", *LOG)
    assert prepare(config_of(file), cache).path != prepare(config_of(file, **settings), cache).path


def test_other_code_is_another_entry(
    csv: Callable[..., Path], cache: Path, monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    file = csv("log.csv", *LOG)
    first = prepare(config_of(file), cache)
    (tmp_path / "code").mkdir()
    (tmp_path / "code" / "prepare.py").write_text("# other code\n", encoding="utf-8")
    monkeypatch.setattr(module, "__file__", str(tmp_path / "code" / "prepare.py"))
    second = prepare(config_of(file), cache)
    assert first.path != second.path and first.digest == second.digest


def test_equal_content_has_an_equal_digest_whatever_the_file_looks_like(
    csv: Callable[..., Path], cache: Path
) -> None:
    plain = prepare(config_of(csv("log.csv", *LOG)), cache)
    lines = [dict(zip(HEADER.split(","), line.split(","), strict=True)) for line in LOG[1:]]
    as_json = prepare(config_of(csv("log.jsonl", *(json.dumps(line) for line in lines))), cache)
    assert plain.path != as_json.path
    assert (plain.digest, plain.catalogue_digest) == (as_json.digest, as_json.catalogue_digest)


@pytest.mark.parametrize("name", ["meta.json", "items.npy", "offsets.npy", "times.npy", "items.parquet"])
def test_a_damaged_entry_is_prepared_anew(
    csv: Callable[..., Path], cache: Path, writes: list[Path], name: str
) -> None:
    config = config_of(csv("log.csv", *LOG))
    folder = prepare(config, cache).path
    (folder / name).write_bytes((folder / name).read_bytes()[:20] if name != "items.parquet" else b"")
    assert histories(prepare(config, cache))["a"] == ["z", "y", "x"] and len(writes) == 2


def test_a_failure_while_writing_leaves_nothing_and_is_no_input_error(
    csv: Callable[..., Path], cache: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def full(*_: object, **__: object) -> None:
        raise OSError(28, "No space left on device")

    with monkeypatch.context() as patch:
        patch.setattr(np, "save", full)
        with pytest.raises(StageError, match="No space left") as error:
            prepare(config_of(csv("log.csv", *LOG)), cache)
    assert error.value.exit_code == 1 and not list((cache / "data").glob("[!.]*"))
    assert prepare(config_of(csv("log.csv", *LOG)), cache).n_users == 2


def test_what_is_in_the_cache_is_found_without_preparing(
    csv: Callable[..., Path], cache: Path, writes: list[Path]
) -> None:
    config = config_of(csv("log.csv", *LOG))
    assert find_prepared(config, cache) is None and writes == []
    path = prepare(config, cache).path
    found = find_prepared(config, cache)
    assert found is not None and found.path == path and len(writes) == 1


def test_two_that_prepare_at_the_same_time_write_once(
    csv: Callable[..., Path], cache: Path, writes: list[Path]
) -> None:
    config = config_of(csv("log.csv", *LOG))
    with ThreadPoolExecutor(4) as pool:
        found = list(pool.map(lambda _: prepare(config, cache).digest, range(4)))
    assert len(set(found)) == 1 and len(writes) == 1


def test_the_cache_folder_comes_from_the_environment(
    csv: Callable[..., Path], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("RECPRESS_CACHE", str(tmp_path / "here"))
    assert prepare(config_of(csv("log.csv", *LOG))).path.parent == tmp_path / "here" / "data"
    monkeypatch.delenv("RECPRESS_CACHE")
    assert module.default_cache() == Path.home() / ".cache" / "recpress"
