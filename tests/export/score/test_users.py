"""A file of users in, their recommendations out: as one by one, in any form, wherever it stops."""

import os
import weakref
from pathlib import Path
from typing import Any

import numpy as np
import polars as pl
import pytest

from export.runtime import ArtifactError
from export.score import read
from export.score.read import Interactions, Lines
from export.score.users import Options, score
from recommender.data import pieces as pieces_module
from recommender.errors import InputError
from tests.export.answering import Circle, left_in, made_up, plainly, rows_of, write_lines, write_log

FORMATS = ["csv", "csv.gz", "tsv", "jsonl", "parquet"]
OUTPUTS = ["parquet", "pq", "csv", "tsv", "jsonl"]


@pytest.mark.parametrize("ending", FORMATS)
@pytest.mark.parametrize("log", [False, True])
def test_every_format_gives_what_one_call_per_user_gives(tmp_path: Path, ending: str, log: bool) -> None:
    users, artifact = made_up(100), Circle()
    source = (write_log if log else write_lines)(tmp_path / f"users.{ending}", users)
    layout = Interactions() if log else Lines()
    done = score(artifact, source, tmp_path / "top.parquet", Options(layout, k=5, batch=7))
    frame = pl.read_parquet(tmp_path / "top.parquet")
    assert frame.rows() == plainly(artifact, users, 5)
    assert frame.columns == ["user_id", "rank", "item_id", "score"]
    assert (done.survey.users, done.resumed_after) == (100, 0)
    assert done.users_per_second is not None and done.users_per_second > 0
    assert left_in(tmp_path) == {source.name, "top.parquet"}


@pytest.mark.parametrize("ending", OUTPUTS)
@pytest.mark.parametrize("lists", [False, True])
def test_every_output_holds_the_same_answers(tmp_path: Path, ending: str, lists: bool) -> None:
    users, artifact = made_up(30) | {"none": []}, Circle()
    source = write_lines(tmp_path / "users.parquet", users)
    score(artifact, source, tmp_path / f"top.{ending}", Options(k=4, lists=lists, batch=8))
    expected: list[tuple[Any, ...]] = list(plainly(artifact, users, 4))
    if lists:
        mine = {user: [row for row in expected if row[0] == user] for user in users}
        expected = [(user, [row[2] for row in rows], [row[3] for row in rows]) for user, rows in mine.items()]
        if ending in ("csv", "tsv"):
            expected = [(user, ",".join(ids), ",".join(map(str, scores))) for user, ids, scores in expected]
    assert rows_of(tmp_path / f"top.{ending}") == expected


def test_users_without_a_history_get_nothing_and_are_counted(tmp_path: Path) -> None:
    source = write_lines(tmp_path / "users.csv", {"a": ["i1"], "b": [], "c": ["i2"]})
    done = score(Circle(), source, tmp_path / "top.csv", Options(k=2))
    assert [row[0] for row in rows_of(tmp_path / "top.csv")] == ["a", "a", "c", "c"]
    assert (done.survey.users, done.survey.empty_users) == (3, 1)


def test_a_list_ends_where_nothing_is_left_to_recommend(tmp_path: Path) -> None:
    artifact = Circle(n_items=6, limit=5)
    source = write_lines(tmp_path / "users.csv", {"a": ["i1", "i2", "i3", "i4"], "b": ["i1"]})
    score(artifact, source, tmp_path / "top.csv", Options(k=5))
    assert [row[:3] for row in rows_of(tmp_path / "top.csv")][:2] == [("a", 1, "i5"), ("a", 2, "i6")]
    assert len(rows_of(tmp_path / "top.csv")) == 2 + 5


@pytest.mark.parametrize(
    ("evaluated", "asked", "masked"),
    [(True, None, True), (False, None, False), (True, False, False), (False, True, True)],
)
def test_seen_items_come_back_as_asked_else_as_the_artifact_was_evaluated(
    tmp_path: Path, evaluated: bool, asked: bool | None, masked: bool
) -> None:
    artifact = Circle()
    artifact.manifest["mask_seen"] = evaluated
    past = [f"i{row}" for row in range(2, 14)]  # longer than the model reads: the whole of it counts as seen
    source = write_lines(tmp_path / "users.csv", {"a": [*past, "i1"]})
    score(artifact, source, tmp_path / "top.csv", Options(k=3, mask_seen=asked))
    best = [row[2] for row in rows_of(tmp_path / "top.csv")]
    assert best == (["i14", "i15", "i16"] if masked else ["i2", "i3", "i4"])


def test_repeated_items_are_treated_as_in_training_unless_told_otherwise(tmp_path: Path) -> None:
    source = write_lines(tmp_path / "users.csv", {"a": ["i5", "i7", "i5"]})
    for artifact, asked, best in (
        (Circle(duplicates="first"), None, "i8"),
        (Circle(), None, "i6"),
        (Circle(duplicates="first"), "last", "i6"),
    ):
        options = Options(k=1, duplicates=asked)  # type: ignore[arg-type]
        score(artifact, source, tmp_path / "top.csv", options, fresh=True)
        assert rows_of(tmp_path / "top.csv")[0][2] == best


def test_unknown_items_are_an_error_before_anything_is_scored_or_written(tmp_path: Path) -> None:
    artifact = Circle()
    source = write_lines(tmp_path / "users.csv", made_up(50) | {"x": ["i3", "i300", "i300"], "y": ["j1"]})
    with pytest.raises(InputError) as caught:
        score(artifact, source, tmp_path / "top.csv", Options(batch=4))
    assert "3 interactions of 2 users" in str(caught.value)
    assert "'i300' 2 times (did you mean 'i30'?)" in str(caught.value)
    assert not artifact.calls
    assert left_in(tmp_path) == {"users.csv"}


def test_unknown_items_can_be_left_out_and_are_counted(tmp_path: Path) -> None:
    users = {"x": ["i3", "i300"], "y": ["j1"], "z": ["i4"]}
    source = write_lines(tmp_path / "users.csv", users)
    done = score(Circle(), source, tmp_path / "top.csv", Options(k=2, unknown="skip"))
    counts = (done.survey.unknown_items, done.survey.unknown_users, done.survey.empty_users)
    assert counts == (2, 2, 1)
    assert rows_of(tmp_path / "top.csv") == plainly(Circle(), {"x": ["i3"], "z": ["i4"]}, 2)


@pytest.mark.parametrize("log", [False, True])
def test_a_user_who_comes_twice_is_named(tmp_path: Path, log: bool) -> None:
    (tmp_path / "users.csv").write_text("user_id,history,item_id\na,i1,i1\nb,i2,i2\na,i3,i3\n")
    options = Options(Interactions() if log else Lines())
    with pytest.raises(
        InputError, match=r"more than once: 'a' \(2 times\)[\s\S]*sort the log by its user column"
    ):
        score(Circle(), tmp_path / "users.csv", tmp_path / "top.csv", options)
    assert left_in(tmp_path) == {"users.csv"}


@pytest.mark.parametrize(
    ("content", "output", "options", "message"),
    [
        ("user_id,history\na,i1\n", "top.csv", Options(k=11), "k is 11, .* lists of 1 to 10"),
        ("user_id,history\na,i1\n", "top.csv", Options(batch=0), "a batch of 0 users"),
        ("user_id,history\na,i1\n", "top.xlsx", Options(), "cannot write 'top.xlsx'"),
        ("user_id,history\na,i1\n", "top.csv.gz", Options(), "cannot write 'top.csv.gz'"),
        ("user_id,history\na,i1\n", "none/top.csv", Options(), "no such folder"),
        ("user_id,history\na,i1\n", "users.csv", Options(), "would be a part of the input"),
        ("user_id,history\n", "top.csv", Options(), "holds no users"),
        ("", "top.csv", Options(), "the file is empty"),
        ("user_id,histories\na,i1\n", "top.csv", Options(), "did you mean 'histories'"),
        ("user_id,history\na,i1\n,i2\n", "top.csv", Options(), "row 2 .* names no user"),
        ("user_id,history\na,i1\n", "top.csv", Options(Interactions()), "no column 'item_id'"),
        ("user_id,history\na,i1\n", "top.csv", Options(Interactions(order_by="at")), "no column 'at'"),
        ("user_id,history\na,i1\n", "top.csv", Options(Lines("a", "a")), "--user and --history: 'a'"),
        ("user_id,history\na,i1\n", "top.csv", Options(Interactions("a", "a")), "--user and --item: 'a'"),
        ("a,b\na,i1\n", "top.csv", Options(Interactions("a", "b", "b")), "--item and --order-by: 'b'"),
        ("user_id,history,history\na,i1,i2\n", "top.csv", Options(), "more than one column 'history'"),
        ('user_id,history,x\na,i1,5" y\nb,i1,z\nc,i1,6" y\n', "top.csv", Options(), "csv: cannot be read"),
    ],
)  # fmt: skip
def test_wrong_input_is_told_and_nothing_is_written(
    tmp_path: Path, content: str, output: str, options: Options, message: str
) -> None:
    (tmp_path / "users.csv").write_text(content)
    with pytest.raises(InputError, match=message) as caught:
        score(Circle(), tmp_path / "users.csv", tmp_path / output, options)
    assert caught.value.exit_code == 2
    assert left_in(tmp_path) == {"users.csv"}
    assert (tmp_path / "users.csv").read_text() == content


@pytest.mark.parametrize("recipe", [None, {}, {"data": None}, {"data": {}}, {"data": {"duplicates": None}}])
def test_an_artifact_that_tells_no_recipe_keeps_repeated_items(tmp_path: Path, recipe: object) -> None:
    artifact, source = Circle(), write_lines(tmp_path / "users.csv", {"a": ["i1", "i2", "i1"]})
    artifact.manifest["recipe"] = recipe
    assert score(artifact, source, tmp_path / "top.csv").options.duplicates == "keep"


def test_a_recipe_with_an_unknown_treatment_of_duplicates_needs_an_option(tmp_path: Path) -> None:
    artifact, source = Circle(duplicates="median"), write_lines(tmp_path / "users.csv", {"a": ["i1"]})
    with pytest.raises(InputError, match=r"'median'[\s\S]*--duplicates keep, first, last"):
        score(artifact, source, tmp_path / "top.csv")
    score(artifact, source, tmp_path / "top.csv", Options(duplicates="first"))


def test_an_order_beyond_whole_numbers_is_a_fault_of_the_input(tmp_path: Path) -> None:
    frame = pl.DataFrame({"user_id": ["a", "a"], "item_id": ["i1", "i2"], "timestamp": [1, 2**63 + 5]})
    frame = frame.with_columns(pl.col("timestamp").cast(pl.UInt64))
    frame.write_parquet(tmp_path / "log.parquet")
    with pytest.raises(InputError, match=r"log\.parquet, column 'timestamp': row 2 .* which is too large"):
        score(Circle(), tmp_path / "log.parquet", tmp_path / "top.csv", Options(Interactions()))
    assert left_in(tmp_path) == {"log.parquet"}


def test_a_fault_of_reading_is_not_blamed_on_the_output(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def broken(*_: Any) -> Any:
        raise pl.exceptions.ComputeError("odd")
        yield

    source = write_lines(tmp_path / "users.csv", made_up(3))
    monkeypatch.setattr(read, "pieces", broken)
    with pytest.raises(pl.exceptions.ComputeError, match="odd"):
        score(Circle(), source, tmp_path / "top.csv")
    assert left_in(tmp_path) == {"users.csv"}


def test_an_input_that_may_not_be_read_is_an_input_error(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    source, real = write_lines(tmp_path / "users.csv", made_up(3)), Path.open

    def refused(self: Path, *arguments: Any, **more: Any) -> Any:
        if self == source:
            raise PermissionError(13, "Permission denied")
        return real(self, *arguments, **more)

    monkeypatch.setattr(Path, "open", refused)
    with pytest.raises(InputError, match=r"users\.csv: cannot be read: Permission denied"):
        score(Circle(), source, tmp_path / "top.csv")
    assert left_in(tmp_path) == {"users.csv"}


def test_a_pipe_is_refused_and_not_waited_for(tmp_path: Path) -> None:
    os.mkfifo(tmp_path / "users.csv")
    with pytest.raises(InputError, match=r"users\.csv: is neither a file nor a folder"):
        score(Circle(), tmp_path / "users.csv", tmp_path / "top.csv")
    users = write_lines(tmp_path / "u.csv", made_up(3))
    os.mkfifo(tmp_path / "top.csv")
    with pytest.raises(InputError, match=r"top\.csv: is no file"):
        score(Circle(), users, tmp_path / "top.csv", fresh=True)


def test_lists_in_text_need_ids_without_a_comma(tmp_path: Path) -> None:
    artifact = Circle()
    artifact.item_ids[4] = "i,5"
    source = write_lines(tmp_path / "users.parquet", {"a": ["i,5"]})
    with pytest.raises(InputError, match="the item 'i,5' has one"):
        score(artifact, source, tmp_path / "top.csv", Options(lists=True))
    score(artifact, source, tmp_path / "top.csv", Options(k=1))
    score(artifact, source, tmp_path / "top.jsonl", Options(k=1, lists=True))


def test_an_artifact_that_cannot_answer_is_an_input_error(tmp_path: Path) -> None:
    class Broken(Circle):
        def top_k(self, history: Any, k: int) -> Any:
            raise ArtifactError("answers NaN")

    source = write_lines(tmp_path / "users.csv", made_up(3))
    with pytest.raises(InputError, match="artifact: answers NaN"):
        score(Broken(), source, tmp_path / "top.csv")
    assert not (tmp_path / "top.csv").exists()


@pytest.mark.parametrize("ending", FORMATS)
def test_reading_is_never_further_ahead_than_a_piece_and_a_batch(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, ending: str
) -> None:
    monkeypatch.setattr(pieces_module, "PIECE_BYTES", 2000)
    monkeypatch.setattr(pieces_module, "FIRST_ROWS", 20)
    source = write_lines(tmp_path / f"users.{ending}", made_up(3000, longest=4))
    real, ahead, alive, sizes, peaks = pieces_module.pieces, [0], [0], [0], [0, 0]

    def gone(size: int) -> None:
        alive[0] -= size

    def counted(*arguments: Any) -> Any:
        for piece in real(*arguments):
            size = len(piece.frame)
            weakref.finalize(piece.frame, gone, size)
            ahead[0], alive[0], sizes[0] = ahead[0] + size, alive[0] + size, max(sizes[0], size)
            peaks[1] = max(peaks[1], alive[0])
            yield piece
            del piece

    class Watching(Circle):
        def top_k(self, history: Any, k: int) -> Any:
            peaks[0] = max(peaks[0], ahead[0] - 3000)  # the survey has read all 3000 before
            ahead[0] -= len(history.items)
            return super().top_k(history, k)

    monkeypatch.setattr(read, "pieces", counted)
    score(Watching(), source, tmp_path / "top.parquet", Options(k=3, batch=50))
    assert ahead[0] == 3000
    assert sizes[0] < 300
    assert 0 < peaks[0] <= sizes[0] + 50
    assert 0 < peaks[1] <= 2 * sizes[0]


def test_progress_counts_users_and_tells_how_long_it_will_take(tmp_path: Path) -> None:
    source = write_lines(tmp_path / "users.csv", made_up(20))
    told: list[tuple[str, dict[str, Any]]] = []
    score(
        Circle(),
        source,
        tmp_path / "top.csv",
        Options(batch=8),
        progress=lambda e, v: told.append((e, {**v})),
    )
    steps = [values for event, values in told if event == "step" and values["total"]]
    assert [values["step"] for values in steps] == [8, 16, 20]
    assert steps[-1]["seconds_left"] == 0 and "users/s" in steps[0]["text"]
    assert any("20 users" in values.get("text", "") for event, values in told if event == "note")


def test_many_small_parts_are_joined(tmp_path: Path) -> None:
    users = made_up(700, longest=3)
    source = write_lines(tmp_path / "users.csv", users)
    score(Circle(), source, tmp_path / "top.parquet", Options(k=1, batch=1))
    frame = pl.read_parquet(tmp_path / "top.parquet")
    assert frame["user_id"].to_list() == list(users)
    assert np.array_equal(frame["rank"].to_numpy(), np.ones(700))
