"""Who is in a file and with which history, in both forms and every format."""

from pathlib import Path

import polars as pl
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from export.score.read import Histories, Interactions, Lines, histories, order_column
from recommender.data import pieces as pieces_module
from recommender.errors import InputError
from tests.export.answering import made_up, write, write_lines, write_log

FORMATS = ["csv", "csv.gz", "tsv", "jsonl", "parquet"]


def as_dict(found: list[Histories]) -> dict[str, list[str | None]]:
    users: dict[str, list[str | None]] = {}
    for some in found:
        items = iter(some.items.to_list())
        for user, length in zip(some.users.to_list(), some.lengths.tolist(), strict=True):
            assert user not in users
            users[user] = [next(items) for _ in range(length)]
        assert not list(items)
    return users


@pytest.fixture
def small_pieces(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(pieces_module, "PIECE_BYTES", 300)
    monkeypatch.setattr(pieces_module, "FIRST_ROWS", 7)


@pytest.mark.parametrize("ending", FORMATS)
@pytest.mark.parametrize("log", [False, True])
def test_every_form_and_format_gives_the_same_histories(
    tmp_path: Path, small_pieces: None, ending: str, log: bool
) -> None:
    users = made_up(80)
    write_it, layout = (write_log, Interactions()) if log else (write_lines, Lines())
    file = write_it(tmp_path / f"users.{ending}", users)
    found = list(histories([file], layout))
    assert as_dict(found) == users
    assert len(found) > 3


def test_a_folder_is_read_file_by_file_and_a_user_may_run_over_the_end_of_one(tmp_path: Path) -> None:
    write_log(tmp_path / "1.csv", {"a": ["i1"], "b": ["i2", "i3"]})
    write_log(tmp_path / "2.csv", {"b": ["i4"], "c": ["i5"]})
    files = [tmp_path / "1.csv", tmp_path / "2.csv"]
    assert as_dict(list(histories(files, Interactions()))) == {
        "a": ["i1"],
        "b": ["i2", "i3", "i4"],
        "c": ["i5"],
    }


@settings(max_examples=40, deadline=None)
@given(
    rows=st.lists(
        st.tuples(st.integers(0, 4), st.integers(0, 9), st.integers(-3, 3)), min_size=1, max_size=40
    ),
    size=st.integers(8, 60),
)
def test_a_log_is_ordered_by_its_column_and_equal_keys_keep_the_order_of_the_file(
    rows: list[tuple[int, int, int]], size: int, tmp_path_factory: pytest.TempPathFactory
) -> None:
    rows = sorted(rows, key=lambda row: row[0])
    file = tmp_path_factory.mktemp("log") / "log.csv"
    pl.DataFrame(rows, schema=["who", "what", "at"], orient="row").write_csv(file)
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(pieces_module, "PIECE_BYTES", size)
        found = as_dict(list(histories([file], Interactions("who", "what", "at"))))
    for user in {row[0] for row in rows}:
        mine = sorted((row for row in rows if row[0] == user), key=lambda row: row[2])
        assert found[str(user)] == [str(row[1]) for row in mine]


def test_the_order_is_time_before_position_before_the_file(tmp_path: Path) -> None:
    frame = pl.DataFrame({"user_id": [1], "item_id": [2], "position": [0], "timestamp": [5]})
    both = write(tmp_path / "both.csv", frame)
    assert order_column([both], None) == "timestamp"
    assert order_column([write(tmp_path / "place.csv", frame.drop("timestamp"))], None) == "position"
    assert order_column([write(tmp_path / "none.csv", frame[:, :2])], None) is None
    assert order_column([both], "file") is None
    with pytest.raises(InputError, match="did you mean 'timestamp'"):
        order_column([both], "timestmp")


@pytest.mark.parametrize(
    "history",
    [
        pl.Series([[1, 2], [3]]),
        pl.Series([[1.0, 2.0], [3.0]]),
        pl.Series([["1", "2"], ["3"]], dtype=pl.List(pl.Categorical)),
        pl.Series(["1, 2", "3,"]),
    ],
)
def test_ids_are_strings_whatever_the_file_holds(tmp_path: Path, history: pl.Series) -> None:
    frame = pl.DataFrame({"user_id": [7, 8], "history": history})
    frame.write_parquet(tmp_path / "users.parquet")
    found = as_dict(list(histories([tmp_path / "users.parquet"], Lines())))
    assert found == {"7": ["1", "2"], "8": ["3"]}


def test_arrays_of_one_width_are_lists(tmp_path: Path) -> None:
    frame = pl.DataFrame({"user_id": ["a"], "history": pl.Series([[1, 2]], dtype=pl.Array(pl.Int64, 2))})
    frame.write_parquet(tmp_path / "users.parquet")
    assert as_dict(list(histories([tmp_path / "users.parquet"], Lines()))) == {"a": ["1", "2"]}


def test_columns_and_the_separator_are_mapped(tmp_path: Path) -> None:
    (tmp_path / "u.csv").write_text("past,x,who\ni1|i2,9,ann\n")
    assert as_dict(list(histories([tmp_path / "u.csv"], Lines("who", "past", "|")))) == {"ann": ["i1", "i2"]}


def test_users_without_a_history_and_nameless_items_stay_to_be_counted(tmp_path: Path) -> None:
    (tmp_path / "u.jsonl").write_text(
        '{"user_id": "a", "history": []}\n{"user_id": "b", "history": ["i1", null]}\n'
    )
    assert as_dict(list(histories([tmp_path / "u.jsonl"], Lines()))) == {"a": [], "b": ["i1", None]}
    (tmp_path / "u.csv").write_text("user_id,history\na,\nb,i1\n")
    assert as_dict(list(histories([tmp_path / "u.csv"], Lines()))) == {"a": [], "b": ["i1"]}
    (tmp_path / "l.csv").write_text('user_id,item_id\na,\na,i2\na,""\n')
    assert as_dict(list(histories([tmp_path / "l.csv"], Interactions()))) == {"a": [None, "i2", None]}


@pytest.mark.parametrize(
    ("frame", "layout", "message"),
    [
        (pl.DataFrame({"user_id": [1], "history": [5]}), Lines(), "holds Int64, neither lists"),
        (pl.DataFrame({"user_id": [[1]], "history": ["a"]}), Lines(), "holds List.Int64., not ids"),
        (pl.DataFrame({"user_id": [1], "history": [[[1]]]}), Lines(), "not ids"),
        (pl.DataFrame({"user_id": [1], "hist": ["a"]}), Lines(), "did you mean 'hist'"),
        (pl.DataFrame({"user_id": ["a", None], "history": ["x", "y"]}), Lines(), "row 2 .* names no user"),
        (pl.DataFrame({"user_id": ["a", None], "item_id": ["x", "y"]}), Interactions(), "row 2 .* no user"),
        (pl.DataFrame({"user_id": ["a", ""], "history": ["x", "y"]}), Lines(), "row 2 .* names no user"),
        (pl.DataFrame({"user_id": [1], "item_id": [[2]]}), Interactions(), "not ids"),
        (
            pl.DataFrame({"user_id": [1, 1], "item_id": [2, 2], "at": ["3", "soon"]}),
            Interactions(order_by="at"),
            "row 2 .* 'soon', which is not a number",
        ),
    ],
)  # fmt: skip
def test_wrong_columns_are_input_errors(
    tmp_path: Path, frame: pl.DataFrame, layout: Lines | Interactions, message: str
) -> None:
    frame.write_parquet(tmp_path / "users.parquet")
    with pytest.raises(InputError, match=message):
        list(histories([tmp_path / "users.parquet"], layout))
