"""A file of users in, their recommendations out: as one by one, in any form, wherever it stops."""

import os
import weakref
from pathlib import Path
from typing import Any

import numpy as np
import polars as pl
import pytest

from export import score_input, score_parts
from export.runtime import ArtifactError
from export.score import Options, score
from export.score_input import Interactions, Lines
from recommender.data import pieces as pieces_module
from recommender.errors import InputError, StageError
from tests.export.answering import Circle, made_up, plainly, write_lines, write_log

FORMATS = ["csv", "csv.gz", "tsv", "jsonl", "parquet"]
OUTPUTS = ["parquet", "pq", "csv", "tsv", "jsonl"]


def rows_of(output: Path) -> list[tuple[Any, ...]]:
    if output.suffix in (".parquet", ".pq"):
        frame = pl.read_parquet(output)
    elif output.suffix == ".jsonl":
        frame = pl.read_ndjson(output)
    else:
        frame = pl.read_csv(output, separator="\t" if output.suffix == ".tsv" else ",")
    return frame.rows()


def left_in(folder: Path) -> set[str]:
    return {path.name for path in folder.iterdir()}


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


# --- memory -------------------------------------------------------------------------------------------------


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

    monkeypatch.setattr(score_input, "pieces", counted)
    score(Watching(), source, tmp_path / "top.parquet", Options(k=3, batch=50))
    assert ahead[0] == 3000
    assert sizes[0] < 300
    assert 0 < peaks[0] <= sizes[0] + 50
    assert 0 < peaks[1] <= 2 * sizes[0]


# --- stopping and going on ----------------------------------------------------------------------------------


class Killed(BaseException):
    """Stands for a kill; nothing may catch it."""


def stop_at(patch: pytest.MonkeyPatch, moment: int) -> None:
    """Stop just before (odd moments) or just after (even ones) a rename."""
    real, count = os.replace, [0]

    def counted(*arguments: Any) -> None:
        count[0] += 1
        if 2 * count[0] - 1 == moment:
            raise Killed
        real(*arguments)
        if 2 * count[0] == moment:
            raise Killed

    patch.setattr(os, "replace", counted)


@pytest.mark.parametrize("ending", ["parquet", "csv"])
def test_stopped_anywhere_and_started_again_it_ends_like_an_undisturbed_job(
    tmp_path: Path, ending: str
) -> None:
    users = made_up(40) | {"none": []}
    source = write_lines(tmp_path / "users.csv", users)
    options = Options(k=3, batch=9)
    calm = tmp_path / f"calm.{ending}"
    score(Circle(), source, calm, options)
    moment, resumed = 0, set()
    while True:
        moment += 1
        output = tmp_path / f"top{moment}.{ending}"
        with pytest.MonkeyPatch.context() as patch:
            stop_at(patch, moment)
            try:
                score(Circle(), source, output, options)
                break  # there are no more renames to stop at
            except Killed:
                pass
        artifact = Circle()
        done = score(artifact, source, output, options)
        resumed.add(done.resumed_after)
        assert sum(users for users, _ in artifact.calls) == 40 - min(done.resumed_after, 40)
        assert output.read_bytes() == calm.read_bytes()
        assert not output.with_name(f"{output.name}.parts").exists()
    assert resumed == {0, 9, 18, 27, 36, 41}


def stopped(tmp_path: Path, source: Path, options: Options, artifact: Circle | None = None) -> Path:
    """A job that was stopped after its second part."""
    output = tmp_path / "top.parquet"
    with pytest.MonkeyPatch.context() as patch:
        stop_at(patch, 6)
        with pytest.raises(Killed):
            score(artifact or Circle(), source, output, options)
    assert len(list(output.with_name("top.parquet.parts").glob("0*.parquet"))) == 2
    return output


def test_another_batch_size_goes_on_and_no_user_is_lost_or_doubled(tmp_path: Path) -> None:
    users = made_up(40)
    source = write_lines(tmp_path / "users.csv", users)
    output = stopped(tmp_path, source, Options(k=3, batch=9))
    done = score(Circle(), source, output, Options(k=3, batch=5))
    assert done.resumed_after == 18
    assert rows_of(output) == plainly(Circle(), users, 3)


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ("k", "k was 3, is 4"),
        ("mask", "mask_seen was True, is False"),
        ("log", "layout was interactions, is lines"),
        ("artifact", "the artifact is another one, or was changed"),
        ("variant", "the variant was fp32, is int8"),
        ("longer", r"users.csv had [\d,]+ bytes, has"),
        ("other", "users.csv has another content"),
        ("name", "the input was users.csv, is renamed.csv"),
    ],
)
def test_a_job_that_was_begun_otherwise_is_refused_and_fresh_starts_anew(
    tmp_path: Path, change: str, message: str
) -> None:
    users, artifact, options = made_up(40), Circle(), Options(k=3, batch=9)
    source = write_log(tmp_path / "users.csv", users)
    source.write_text(source.read_text().replace("item_id", "history"))
    options = Options(Interactions(item="history"), k=3, batch=9)
    output = stopped(tmp_path, source, options)
    text = source.read_text()
    match change:
        case "k":
            options = Options(options.layout, k=4, batch=9)
        case "mask":
            options = Options(options.layout, k=3, mask_seen=False)
        case "log":
            options = Options(k=3)
            source.write_text(text)
        case "artifact":
            artifact.manifest["files"] = {"catalogue.json": "new"}
        case "variant":
            artifact.variant = "int8"
        case "longer":
            source.write_text(text + "u99,i1,0\n")
        case "other":
            source.write_text(text.replace("u0,", "x0,"))
        case "name":
            source = source.rename(tmp_path / "renamed.csv")
    with pytest.raises(InputError, match=message):
        score(artifact, source, output, options)
    assert not output.exists()
    if change != "log":  # whose users would come twice
        score(artifact, source, output, options, fresh=True)
        assert output.exists() and not output.with_name("top.parquet.parts").exists()


def test_an_input_that_was_only_touched_goes_on(tmp_path: Path) -> None:
    source = write_lines(tmp_path / "users.csv", made_up(40))
    output = stopped(tmp_path, source, Options(k=3, batch=9))
    os.utime(source, (1, 1))
    assert score(Circle(), source, output, Options(k=3, batch=9)).resumed_after == 18


def test_an_output_that_is_there_is_replaced_only_by_a_fresh_job_and_at_its_very_end(tmp_path: Path) -> None:
    source = write_lines(tmp_path / "users.csv", made_up(40))
    output, options = tmp_path / "top.parquet", Options(k=3, batch=9)
    output.write_text("old")
    with pytest.raises(InputError, match="is there already"):
        score(Circle(), source, output, options)
    assert left_in(tmp_path) == {"users.csv", "top.parquet"}
    with pytest.MonkeyPatch.context() as patch:
        stop_at(patch, 6)
        with pytest.raises(Killed):
            score(Circle(), source, output, options, fresh=True)
    assert output.read_text() == "old"
    assert score(Circle(), source, output, options).resumed_after == 18  # --fresh is not needed twice
    assert len(rows_of(output)) == 40 * 3


def test_an_output_that_appears_meanwhile_is_not_overwritten(tmp_path: Path) -> None:
    source = write_lines(tmp_path / "users.csv", made_up(40))
    output = stopped(tmp_path, source, Options(k=3, batch=9))
    output.write_text("somebody else's")
    with pytest.raises(InputError, match="is there already"):
        score(Circle(), source, output, Options(k=3, batch=9))
    assert output.read_text() == "somebody else's"


def test_parts_behind_a_missing_one_are_made_again(tmp_path: Path) -> None:
    users = made_up(40)
    source = write_lines(tmp_path / "users.csv", users)
    output = stopped(tmp_path, source, Options(k=3, batch=9))
    next(output.with_name("top.parquet.parts").glob("000000000000-*")).unlink()
    assert score(Circle(), source, output, Options(k=3, batch=9)).resumed_after == 0
    assert rows_of(output) == plainly(Circle(), users, 3)


@pytest.mark.parametrize("text", ["{", "[]", '{"schema_version": 1}', '{"schema_version": 9, "identity": 1}'])
def test_a_record_that_cannot_be_read_is_told(tmp_path: Path, text: str) -> None:
    source = write_lines(tmp_path / "users.csv", made_up(40))
    output = stopped(tmp_path, source, Options(k=3, batch=9))
    (output.with_name("top.parquet.parts") / "progress.json").write_text(text)
    with pytest.raises(InputError, match=r"top\.parquet\.parts.*(unreadable|another version)[\s\S]*--fresh"):
        score(Circle(), source, output, Options(k=3, batch=9))


def test_an_input_that_changes_while_it_is_read_is_not_scored_to_the_end(tmp_path: Path) -> None:
    source = write_lines(tmp_path / "users.csv", made_up(40))

    class Meddling(Circle):
        def top_k(self, history: Any, k: int) -> Any:
            source.write_text(source.read_text().replace("i1,", "i2,"))
            os.utime(source, (1, 1))
            return super().top_k(history, k)

    with pytest.raises(StageError, match="the input changed while it was read"):
        score(Meddling(), source, tmp_path / "top.csv", Options(k=3, batch=9))
    assert not (tmp_path / "top.csv").exists()


@pytest.mark.parametrize("moment", ["survey", "part", "join"])
@pytest.mark.parametrize("ending", ["parquet", "csv"])
def test_a_full_disk_is_told_and_leaves_what_is_finished(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, moment: str, ending: str
) -> None:
    users = made_up(40)
    source = write_lines(tmp_path / "users.csv", users)
    output = tmp_path / f"top.{ending}"
    full, syncs, real = OSError(28, "No space left on device"), [0], os.fsync

    def no_room(*_: Any, **__: Any) -> None:
        syncs[0] += 1
        if syncs[0] > 2:
            raise full
        real(*_)

    with pytest.MonkeyPatch.context() as patch:
        if moment == "survey":
            patch.setattr(score_parts, "write_json", no_room)
            syncs[0] = 2
        elif moment == "part":
            patch.setattr(os, "fsync", no_room)
        else:
            patch.setattr(score_parts.Parts, "_join", no_room)
            syncs[0] = 2
        with pytest.raises(StageError, match="the disk is full") as caught:
            score(Circle(), source, output, Options(k=3, batch=9))
    assert caught.value.exit_code == 1
    assert not output.exists()
    assert not list(tmp_path.rglob(".*.tmp"))
    done = score(Circle(), source, output, Options(k=3, batch=9))
    assert done.resumed_after == {"survey": 0, "part": 18, "join": 40}[moment]
    assert len(rows_of(output)) == 3 * 40


def test_two_jobs_do_not_write_the_same_output(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    import fcntl

    def taken(*_: Any) -> None:
        raise BlockingIOError(11, "Resource temporarily unavailable")

    source = write_lines(tmp_path / "users.csv", made_up(4))
    monkeypatch.setattr(fcntl, "lockf", taken)
    with pytest.raises(StageError, match=r"another recpress is working[\s\S]*another --output"):
        score(Circle(), source, tmp_path / "top.csv")


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
