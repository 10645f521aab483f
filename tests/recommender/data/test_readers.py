import gzip
from collections.abc import Callable
from pathlib import Path
from typing import Any

import polars as pl
import pytest

from recommender.data.readers import as_id, files_of, format_of, reading, scan
from recommender.errors import InputError

FRAME = pl.DataFrame({"user_id": ["007", "8"], "item_id": ["a", "ö"], "timestamp": [1, 2]})


def written(folder: Path, name: str) -> Path:
    path = folder / name
    kind = format_of(path)
    if kind == "parquet":
        FRAME.write_parquet(path)
        return path
    plain = folder / "plain"
    if kind == "jsonl":
        FRAME.write_ndjson(plain)
    else:
        FRAME.write_csv(plain, separator="\t" if kind == "tsv" else ",")
    content = plain.read_bytes()
    plain.unlink()
    path.write_bytes(gzip.compress(content) if name.endswith(".gz") else content)
    return path


@pytest.mark.parametrize(
    "name",
    [
        "a.csv", "a.csv.gz", "a.tsv", "a.tsv.gz", "a.jsonl", "a.jsonl.gz", "a.ndjson", "a.json.gz",
        "a.parquet", "a.pq", "A.CSV", "log.2024.csv",
    ],
)  # fmt: skip
def test_every_format_reads_the_same_table(tmp_path: Path, name: str) -> None:
    types = {"user_id": pl.String, "item_id": pl.String, "timestamp": None}
    assert scan(written(tmp_path, name), types).select(FRAME.columns).collect().equals(FRAME)


@pytest.mark.parametrize("name", ["a.txt", "a", "a.gz", "a.parquet.gz", "a.csv.zip"])
def test_other_endings_have_no_format(name: str) -> None:
    assert format_of(Path(name)) is None


def test_text_files_without_types_keep_leading_zeros(tmp_path: Path) -> None:
    assert scan(written(tmp_path, "a.csv"), None).collect()["user_id"].to_list() == ["007", "8"]


def test_json_lines_read_only_the_wanted_columns_when_others_change_their_type(tmp_path: Path) -> None:
    file = tmp_path / "a.jsonl"
    lines = [f'{{"user": {n}, "extra": {"[1]" if n > 1500 else "1"}}}' for n in range(2000)]
    file.write_text("\n".join(lines), encoding="utf-8")
    assert scan(file, {"user": pl.String}).collect()["user"].to_list()[-1] == "1999"


def test_a_folder_stands_for_its_data_files_in_order(tmp_path: Path) -> None:
    for name in ("part-2.csv", "part-10.csv", "part-1.csv", ".hidden.csv", "_SUCCESS", "README.md"):
        (tmp_path / name).write_text("x", encoding="utf-8")
    assert [file.name for file in files_of(tmp_path)] == ["part-1.csv", "part-10.csv", "part-2.csv"]


@pytest.mark.parametrize(
    ("name", "message"),
    [("none.csv", "file not found"), ("notes.txt", "unknown file type"), ("empty", "no data file")],
)
def test_what_cannot_be_a_log_is_refused_with_its_path(tmp_path: Path, name: str, message: str) -> None:
    (tmp_path / "notes.txt").write_text("x", encoding="utf-8")
    (tmp_path / "empty").mkdir()
    with pytest.raises(InputError, match=message) as error:
        files_of(tmp_path / name)
    assert str(tmp_path / name) in str(error.value) and error.value.exit_code == 2


def test_a_folder_that_may_not_be_listed_is_an_input_error(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def refused(_: Path) -> None:
        raise PermissionError(13, "Permission denied")

    monkeypatch.setattr(Path, "iterdir", refused)
    with pytest.raises(InputError, match="cannot be read: Permission denied"):
        files_of(tmp_path)


@pytest.mark.parametrize("name", ["a.csv", "a.jsonl", "a.parquet"])
def test_an_empty_file_is_called_empty(tmp_path: Path, name: str) -> None:
    file = tmp_path / name
    file.touch()
    with pytest.raises(InputError, match="the file is empty"):
        reading(file, lambda: scan(file).collect())


@pytest.mark.parametrize("name", ["a.csv.gz", "a.jsonl.gz", "a.parquet"])
def test_a_cut_file_is_refused_by_name(tmp_path: Path, name: str) -> None:
    file = written(tmp_path, name)
    file.write_bytes(file.read_bytes()[:-12])
    with pytest.raises(InputError, match="cannot be read") as error:
        reading(file, lambda: scan(file).collect())
    assert error.value.where == str(file)


@pytest.mark.parametrize(
    ("name", "content"),
    [
        ("a.csv", b"user_id,item_id\nCaf\xe9,1\n"),
        ("a.csv", b"a,b\n1,2,3\n"),
        ("a.jsonl", b'{"a": 1}\nnot json\n'),
    ],
)
def test_broken_text_is_refused_by_name(tmp_path: Path, name: str, content: bytes) -> None:
    file = tmp_path / name
    file.write_bytes(content)
    with pytest.raises(InputError, match="cannot be read"):
        reading(file, lambda: scan(file, None).collect())


def test_a_csv_keeps_quoted_commas_and_a_file_name_is_not_a_pattern(csv: Callable[..., Path]) -> None:
    file = csv("odd[1]*.csv", "user_id,item_id", '1,"a, ""b"""')
    assert scan(file).collect()["item_id"].to_list() == ['a, "b"']


@pytest.mark.parametrize(
    ("values", "expected"),
    [
        ([17.0, None, 2.5], ["17", None, "2.5"]),
        ([17, None], ["17", None]),
        ([True], ["true"]),
        (["07"], ["07"]),
    ],
)
def test_ids_become_the_strings_people_mean(values: list[object], expected: list[str | None]) -> None:
    frame = pl.DataFrame({"id": values})
    assert frame.select(as_id("id", frame.schema["id"], pl.String())).to_series().to_list() == expected


@pytest.mark.parametrize("engine", ["in-memory", "streaming"])
@pytest.mark.parametrize("types", [None, {"user_id": pl.String, "item_id": pl.String, "timestamp": None}])
@pytest.mark.parametrize(
    "notes", [['5" pipe', "ok", '6" x', "z"], ['"abc', "x", 'd"ef', "z"], ["ok", 'x "y" z"', "", ""]]
)
def test_rows_behind_a_stray_quote_are_not_lost_but_refused_even_if_nobody_reads_its_column(
    csv: Callable[..., Path], engine: str, types: dict[str, Any] | None, notes: list[str]
) -> None:
    rows = [f"u{n},i{n},{n},{note}" for n, note in enumerate(notes)]
    file = csv("a.csv", "user_id,item_id,timestamp,note", *rows)
    with pytest.raises(InputError, match=r"a\.csv: cannot be read[\s\S]*between quotes and double it"):
        reading(file, lambda: scan(file, types).select("user_id", "item_id").collect(engine=engine))  # type: ignore[call-overload]


def test_a_column_that_nobody_wants_may_change_its_type(csv: Callable[..., Path]) -> None:
    file = csv("a.csv", "user,extra,at", *(f"u{n},{'x' if n > 1500 else n},{n}" for n in range(2000)))
    frame = scan(file, {"user": pl.String, "at": None}).select("user", "at").collect()
    assert frame.row(-1) == ("u1999", 1999)
