"""A table read in pieces is the table read at once, and what cannot be read is told."""

import gzip
import json
from pathlib import Path
from typing import Any

import polars as pl
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from recommender.data import pieces as module
from recommender.data.pieces import columns_of, pieces
from recommender.errors import InputError

TEXT = st.text(st.sampled_from('ab,"\n é\t'), max_size=6)
ROWS = st.lists(st.tuples(st.text("abc", min_size=1, max_size=3), TEXT, TEXT), min_size=1, max_size=30)


def read(file: Path, columns: list[str]) -> tuple[list[pl.DataFrame], list[int]]:
    found = list(pieces(file, columns))
    return [piece.frame for piece in found], [piece.first for piece in found]


@settings(max_examples=60, deadline=None)
@given(
    rows=ROWS, size=st.integers(1, 40), ending=st.sampled_from(["csv", "tsv", "csv.gz", "jsonl", "parquet"])
)
def test_pieces_of_any_size_are_the_table(
    rows: list[tuple[str, str, str]], size: int, ending: str, tmp_path_factory: pytest.TempPathFactory
) -> None:
    file = tmp_path_factory.mktemp("pieces") / f"table.{ending}"
    table = pl.DataFrame(rows, schema=["a", "b", "c"], orient="row")
    if ending == "parquet":
        table.write_parquet(file, row_group_size=4)
    elif ending == "jsonl":
        table.write_ndjson(file)
    else:
        table = table.with_columns(pl.col("b", "c").replace("", None))  # an empty cell is a missing one
        packed = "gzip" if ending.endswith("gz") else "uncompressed"
        table.write_csv(file, separator="\t" if ending == "tsv" else ",", compression=packed)
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(module, "PIECE_BYTES", size)
        patch.setattr(module, "FIRST_ROWS", size)
        frames, firsts = read(file, ["c", "a"])
    assert pl.concat(frames).equals(table.select("c", "a"))
    assert firsts == [1 + sum(len(frame) for frame in frames[:n]) for n in range(len(frames))]


def test_a_piece_is_not_much_larger_than_asked_for(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    table = pl.DataFrame({"a": [f"{n:06d}" for n in range(20_000)]})
    table.write_csv(tmp_path / "t.csv")
    table.write_parquet(tmp_path / "t.parquet", row_group_size=20_000)
    monkeypatch.setattr(module, "PIECE_BYTES", 4096)
    assert max(len(frame) for frame in read(tmp_path / "t.csv", ["a"])[0]) <= 2 * 4096 / 7
    assert max(len(frame) for frame in read(tmp_path / "t.parquet", ["a"])[0]) <= 2 * 4096 / 6


def test_a_byte_order_mark_windows_line_ends_and_blank_lines_do_no_harm(tmp_path: Path) -> None:
    file = tmp_path / "t.csv"
    file.write_bytes(b'\xef\xbb\xbfa,b\r\n1,"x\r\ny"\r\n2,z')
    assert columns_of(file) == ["a", "b"]
    assert pl.concat(read(file, ["a", "b"])[0]).rows() == [("1", "x\r\ny"), ("2", "z")]
    file.write_bytes(b"\n\na,b\n\n1,2\n\n")
    assert [row for row in pl.concat(read(file, ["a", "b"])[0]).rows() if any(row)] == [("1", "2")]


def test_numbers_in_json_lines_become_the_strings_that_they_are_written_as(tmp_path: Path) -> None:
    file = tmp_path / "t.jsonl"
    file.write_text(
        '{"u": 12345678901234567890, "h": [1, "x", 2.0], "other": {"a": 1}}\n{"u": "y", "h": []}\n'
    )
    frames, _ = read(file, ["u", "h"])
    assert frames[0].rows() == [("12345678901234567890", ["1", "x", "2"]), ("y", [])]


LISTS = st.lists(st.one_of(st.none(), st.text("a[{", max_size=3), st.integers(0, 99)), max_size=3)
ABSENT = object()


@settings(max_examples=150, deadline=None)
@given(kind=st.sampled_from(["lists", "texts", "numbers"]), data=st.data(), size=st.integers(1, 200))
def test_a_column_of_json_lines_is_the_same_however_late_its_first_value_comes(
    kind: str, data: st.DataObject, size: int, tmp_path_factory: pytest.TempPathFactory
) -> None:
    some = {"lists": LISTS, "texts": st.text("a[{]", max_size=4), "numbers": st.integers(0, 10**20)}[kind]
    empty = st.lists(st.sampled_from([None, ABSENT]), max_size=20)
    mixed = st.lists(st.one_of(some, st.just(None), st.just(ABSENT)), max_size=20)
    values = [*data.draw(empty), *data.draw(mixed), data.draw(some)]
    records = [{"user": n} | ({} if value is ABSENT else {"h": value}) for n, value in enumerate(values)]
    file = tmp_path_factory.mktemp("pieces") / "t.jsonl"
    file.write_text("".join(json.dumps(record) + "\n" for record in records))
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(module, "PIECE_BYTES", size)
        frames, _ = read(file, ["h", "user"])
    found = [value for frame in frames for value in frame["h"].to_list()]

    def written(value: Any) -> Any:
        if isinstance(value, list):
            return [None if each is None else str(each) for each in value]
        return None if value is None or value is ABSENT else str(value)

    assert found == [written(value) for value in values]


@pytest.mark.parametrize("size", [20, 1 << 20])
@pytest.mark.parametrize(
    ("values", "message"),
    [
        ([["a"], "a,b"], "column 'h' holds lists in some lines and other values in others"),
        ([None, "a,b", ["a"]], "column 'h' holds lists in some lines"),
        (["[a", ["a"]], "column 'h' holds lists in some lines"),
        ([["a"], None, 5], "column 'h' holds lists in some lines"),
        ([None, {"a": 1}], "column 'h' holds objects"),
        ([["a"], {"a": 1}], "column 'h' holds objects|column 'h' holds lists in some"),
    ],
)
def test_json_lines_with_values_of_two_kinds_are_refused_wherever_pieces_end(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, size: int, values: list[Any], message: str
) -> None:
    monkeypatch.setattr(module, "PIECE_BYTES", size)
    file = tmp_path / "t.jsonl"
    file.write_text("".join(json.dumps({"user": "u", "h": value}) + "\n" for value in values))
    with pytest.raises(InputError, match=message):
        read(file, ["user", "h"])


def test_a_key_that_no_line_has_is_told_before_any_row_is_given(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(module, "PIECE_BYTES", 20)
    file = tmp_path / "t.jsonl"
    file.write_text('{"user": 1, "x": 2}\n' * 9 + '{"user": 1, "itm": 2}\n')
    with pytest.raises(InputError, match="did you mean 'itm'"):
        next(pieces(file, ["user", "item"]))
    assert next(pieces(file, ["user", "itm"])).frame.rows() == [("1", None)]
    assert columns_of(file) == ["user", "x"]


@pytest.mark.parametrize("content", ["[1]\n", "5\n", "user\n"])
def test_what_is_no_json_object_is_told(tmp_path: Path, content: str) -> None:
    (tmp_path / "t.jsonl").write_text(content)
    with pytest.raises(InputError, match=r"t\.jsonl: [\s\S]*one JSON object per line"):
        read(tmp_path / "t.jsonl", ["user"])


def test_a_column_that_stands_there_twice_is_refused_if_it_is_wanted(tmp_path: Path) -> None:
    (tmp_path / "t.csv").write_text("user,item,item\n1,2,3\n")
    with pytest.raises(InputError, match="more than one column 'item'"):
        read(tmp_path / "t.csv", ["user", "item"])
    assert read(tmp_path / "t.csv", ["user"])[0][0].rows() == [("1",)]


@pytest.mark.parametrize(
    ("name", "content", "message"),
    [
        ("t.csv", b"", "the file is empty"),
        ("t.csv", b"\n\n", "the file is empty"),
        ("t.jsonl", b" \n", "the file is empty"),
        ("t.csv", b"user,itm\n1,2\n", "no column 'item' (did you mean 'itm'?)"),
        ("t.jsonl", b'{"user": 1, "itm": 2}\n', "did you mean 'itm'"),
        ("t.csv", b"user,item\n1,2\n3,4,5\n", "row 1"),
        ("t.csv", b"user,item\n1,\xff\xfe\n", "invalid utf-8"),
        ("t.jsonl", b'{"user": 1, "item": 2}\n{"user": 1, "it\n', "cannot be read"),
        ("t.csv.gz", gzip.compress(b"user,item\n1,2\n" * 500, mtime=0)[:40], "cannot be read"),
        ("t.csv.gz", b"user,item\n1,2\n", "cannot be read"),
        ("t.parquet", b"PAR1 and no more", "cannot be read"),
    ],
)
def test_what_cannot_be_read_is_an_input_error_that_names_the_file(
    tmp_path: Path, name: str, content: bytes, message: str
) -> None:
    (tmp_path / name).write_bytes(content)
    with pytest.raises(InputError) as caught:
        list(pieces(tmp_path / name, ["user", "item"]))
    assert message in "\n".join([str(caught.value), *getattr(caught.value, "__notes__", ())])
    assert name in str(caught.value)


def test_a_fault_is_told_with_the_rows_where_it_is(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(module, "PIECE_BYTES", 16)
    (tmp_path / "t.csv").write_text("user,item\n" + "1,2\n" * 100 + "3,4,5\n")
    with pytest.raises(InputError) as caught:
        list(pieces(tmp_path / "t.csv", ["user", "item"]))
    assert any(int(note.split()[-1]) in range(95, 102) for note in caught.value.__notes__)


def test_a_quote_that_is_never_closed_does_not_read_the_whole_file(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(module, "PIECE_BYTES", 64)
    monkeypatch.setattr(module, "RECORD_BYTES", 256)
    (tmp_path / "t.csv").write_text('user,item\n1,"2\n' + "3,4\n" * 1000)
    with pytest.raises(InputError, match="a quote that is not closed"):
        list(pieces(tmp_path / "t.csv", ["user", "item"]))


STRAY = st.text(st.sampled_from('ab"'), max_size=4).map(lambda text: f"x{text}")


@settings(max_examples=150, deadline=None)
@given(
    rows=st.lists(st.tuples(STRAY, STRAY), min_size=1, max_size=30),
    size=st.integers(1, 60),
    ending=st.sampled_from(["csv", "tsv"]),
    place=st.integers(0, 2),
)
def test_stray_quotes_in_columns_that_nobody_reads_never_lose_a_row(
    rows: list[tuple[str, str]], size: int, ending: str, place: int, tmp_path_factory: pytest.TempPathFactory
) -> None:
    file = tmp_path_factory.mktemp("pieces") / f"table.{ending}"
    lines = [("a", "b"), *rows]
    ids = ["id", *(str(n) for n in range(len(rows)))]
    cells = [[*line[:place], name, *line[place:]] for name, line in zip(ids, lines, strict=True)]
    file.write_text("".join((("," if ending == "csv" else "\t").join(line)) + "\n" for line in cells))
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(module, "PIECE_BYTES", size)
        try:
            frames, _ = read(file, ["id"])
        except InputError:
            assert any('"' in cell for row in rows for cell in row)
            return
    assert pl.concat(frames)["id"].to_list() == ids[1:]


@pytest.mark.parametrize(
    "lines",
    [
        ['u1,i1,5" pipe', "u2,i2,ok", 'u3,i3,6" x', "u4,i4,z"],
        ['u1,i1,"abc', "u2,i2,x", 'u3,i3,d"ef', "u4,i4,z"],
    ],
)
def test_a_stray_quote_is_told_with_what_to_do(tmp_path: Path, lines: list[str]) -> None:
    (tmp_path / "t.csv").write_text("\n".join(["user,item,note", *lines, ""]))
    with pytest.raises(InputError, match=r"t\.csv: cannot be read[\s\S]*between quotes and double it"):
        read(tmp_path / "t.csv", ["user", "item"])
