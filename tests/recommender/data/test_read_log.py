from collections.abc import Callable
from datetime import date, datetime
from pathlib import Path
from typing import Any

import polars as pl
import pytest

from recommender.data.config import DataConfig
from recommender.data.log import Log
from recommender.data.read_log import as_numbers, read_log
from recommender.data.readers import files_of
from recommender.errors import InputError


def read(path: Path, **settings: Any) -> Log:
    config = DataConfig.model_validate({"interactions": path, **settings})
    return read_log(files_of(path), config)


def rows(log: Log) -> list[tuple[str, str]]:
    return list(zip(log.user_ids.gather(log.users), log.item_ids.gather(log.items), strict=True))


def test_ids_are_the_strings_of_the_file(csv: Callable[..., Path]) -> None:
    log = read(csv("log.csv", "user_id,item_id", "7,B01", "007,b01", "+7, B01"))
    assert rows(log) == [("7", "B01"), ("007", "b01"), ("+7", " B01")]


def test_ids_that_look_like_integers_for_a_thousand_rows_may_end_differently(
    csv: Callable[..., Path],
) -> None:
    lines = [f"{number},{number % 7}" for number in range(1500)]
    log = read(csv("log.csv", "user_id,item_id", *lines, "00,x", "99999999999999999999,7.0"))
    assert rows(log)[-3:] == [("1499", "1"), ("00", "x"), ("99999999999999999999", "7.0")]


def test_numbers_that_look_like_integers_for_a_thousand_rows_may_have_fractions_later(
    csv: Callable[..., Path],
) -> None:
    lines = [f"{number},1,{number}" for number in range(1500)]
    log = read(csv("log.csv", "user_id,item_id,timestamp", *lines, "1,2,3.5"))
    assert log.time is not None and log.time[-2:].tolist() == [1499.0, 3.5]


def test_columns_are_mapped_by_name(csv: Callable[..., Path]) -> None:
    file = csv("log.tsv", "sku\twho\twhen\tstars", "x\tann\t1500\t4")
    columns = {"user": "who", "item": "sku", "time": "when", "time_unit": "ms", "rating": "stars"}
    log = read(file, columns=columns, min_rating=3)
    assert rows(log) == [("ann", "x")]
    assert log.time is not None and log.time.tolist() == [1.5]
    assert log.rating is not None and log.rating.tolist() == [4]


def test_json_numbers_and_strings_are_the_same_id(csv: Callable[..., Path]) -> None:
    file = csv(
        "log.jsonl", '{"user_id": 7, "item_id": "a"}', '{"user_id": "7", "item_id": "b", "more": {"x": []}}'
    )
    assert rows(read(file)) == [("7", "a"), ("7", "b")]


def test_a_parquet_file_may_hold_integers_floats_with_gaps_and_dates(tmp_path: Path) -> None:
    when = [datetime(2020, 1, 1), datetime(2020, 1, 2), datetime(2020, 1, 3)]
    frame = pl.DataFrame({"user_id": [1.0, None, 2.0], "item_id": [5, 6, 7], "timestamp": when})
    frame.write_parquet(tmp_path / "log.parquet")
    log = read(tmp_path / "log.parquet")
    assert rows(log) == [("1", "5"), ("2", "7")] and log.dropped == 1
    assert log.time is not None and log.time.tolist() == [1577836800.0, 1578009600.0]


def test_the_files_of_a_folder_are_one_log_in_the_order_of_their_names(csv: Callable[..., Path]) -> None:
    csv("parts/2.csv", "user_id,item_id", "x1,3")
    csv("parts/1.csv", "item_id,user_id", "1,7", "2,8")
    folder = csv("parts/3.jsonl", '{"user_id": 7, "item_id": 4}').parent
    assert rows(read(folder)) == [("7", "1"), ("8", "2"), ("x1", "3"), ("7", "4")]


def test_files_with_and_without_times_are_not_mixed(csv: Callable[..., Path]) -> None:
    csv("parts/1.csv", "user_id,item_id,timestamp", "1,2,3")
    folder = csv("parts/2.csv", "user_id,item_id", "1,2").parent
    with pytest.raises(InputError, match="differ in their columns"):
        read(folder)
    assert len(read(folder, order_by="file", columns={"time": None}).users) == 2


def test_rows_without_a_user_or_an_item_are_dropped_and_counted(csv: Callable[..., Path]) -> None:
    log = read(csv("log.csv", "user_id,item_id,timestamp", "1,a,1", ",b,2", "", "2,,x", "3,c,4"))
    assert rows(log) == [("1", "a"), ("3", "c")] and log.dropped == 3


def test_time_beats_position_unless_asked_otherwise(csv: Callable[..., Path]) -> None:
    file = csv("log.csv", "user_id,item_id,timestamp,position", "1,2,5,6")
    assert read(file).position is None
    by_position = read(file, order_by="position")
    assert by_position.position is not None and by_position.time is not None


@pytest.mark.parametrize(
    ("header", "settings", "message"),
    [
        ("userid,item_id", {}, r"no column 'user_id' \(did you mean 'userid'\?\)"),
        ("user_id,item", {}, r"no column 'item_id' \(did you mean 'item'\?\)"),
        ("user_id,item_id,times", {"order_by": "time"}, r"no column 'timestamp' \(did you mean 'times'"),
        ("user_id,item_id", {"order_by": "position"}, "no column 'position'"),
        ("user_id,item_id", {"min_rating": 3}, "no column 'rating'"),
        ("user_id,item_id,timestamp", {"columns": {"time": "when"}}, "no column 'when'"),
        ("user_id,item_id", {"order_by": "time", "columns": {"time": None}}, "no time column is mapped"),
    ],
)
def test_a_missing_column_is_named_with_the_nearest_one(
    csv: Callable[..., Path], header: str, settings: dict[str, Any], message: str
) -> None:
    file = csv("log.csv", header, ",".join("1" * len(header.split(","))))
    with pytest.raises(InputError, match=message) as error:
        read(file, **settings)
    assert "data.columns" in str(error.value)


@pytest.mark.parametrize("lines", [(), ("user_id,item_id",), ("user_id,item_id", ",", ",x")])
def test_a_log_without_interactions_is_refused(csv: Callable[..., Path], lines: tuple[str, ...]) -> None:
    with pytest.raises(InputError, match=r"is empty|holds no interactions|no row names both"):
        read(csv("log.csv", *lines))


@pytest.mark.parametrize(
    ("values", "row", "shown"),
    [
        (["1", "yesterday"], 2, "'yesterday'"),
        (["", "2"], 1, "None"),
        (["1", "2", "nan"], 3, "nan"),
        (["inf"], 1, "inf"),
    ],
)
def test_a_time_that_is_no_number_is_shown_with_its_row(
    csv: Callable[..., Path], values: list[str], row: int, shown: str
) -> None:
    file = csv("log.csv", "user_id,item_id,timestamp", *(f"1,{n},{value}" for n, value in enumerate(values)))
    with pytest.raises(InputError, match=f"row {row} .*{shown}.*not a number") as error:
        read(file)
    assert "column 'timestamp'" in str(error.value)


def test_the_row_of_a_bad_time_counts_dropped_rows(csv: Callable[..., Path]) -> None:
    with pytest.raises(InputError, match="row 3 "):
        read(csv("log.csv", "user_id,item_id,timestamp", ",x,1", "1,x,1", "1,x,soon"))


def test_a_bad_time_after_the_first_thousand_rows_is_found(csv: Callable[..., Path]) -> None:
    lines = [f"1,{number},{number}" for number in range(1500)]
    with pytest.raises(InputError, match=r"row 1501 .*'soon'"):
        read(csv("log.csv", "user_id,item_id,timestamp", *lines, "1,2,soon"))


def test_dates_become_unix_seconds_and_large_integers_stay_exact() -> None:
    assert as_numbers(pl.Series([date(1970, 1, 2)]), "x").tolist() == [86400.0]
    assert as_numbers(pl.Series([str(2**60 + 1)]), "x").tolist() == [2**60 + 1]
    with pytest.raises(InputError, match="holds List"):
        as_numbers(pl.Series([[1]]), "x")
