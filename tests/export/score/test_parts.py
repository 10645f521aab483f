"""The folder of parts: what is cut, poor, full, locked or somebody else's."""

import json
import os
from pathlib import Path
from typing import Any

import pytest

from export.score import parts
from export.score.survey import Survey
from export.score.users import Options, score
from recommender.errors import InputError, StageError
from tests.export.answering import Circle, left_in, made_up, plainly, rows_of, write_lines
from tests.export.score.test_restart import Killed, stop_at, stopped


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


@pytest.mark.parametrize("ending", ["parquet", "csv"])
def test_a_part_that_was_cut_is_made_again(tmp_path: Path, ending: str) -> None:
    users = made_up(40)
    source, output = write_lines(tmp_path / "users.csv", users), tmp_path / f"top.{ending}"
    with pytest.MonkeyPatch.context() as patch:
        stop_at(patch, 8)
        with pytest.raises(Killed):
            score(Circle(), source, output, Options(k=3, batch=9))
    second = next(output.with_name(f"{output.name}.parts").glob("000000000009-*"))
    second.write_bytes(second.read_bytes()[:-30])
    assert score(Circle(), source, output, Options(k=3, batch=9)).resumed_after == 9
    assert rows_of(output) == plainly(Circle(), users, 3)


def poor(**changes: object) -> str:
    """A record that lacks something, or has something else there."""
    record: dict[str, object] = {"schema_version": 2, "replaces": None, "joined": None, "fresh": False}
    return json.dumps(record | {"identity": {}, "survey": {"users": 1}} | changes)


WHOLE = Survey(1, 1, 0, 0, 0, 0, ()).as_json()


@pytest.mark.parametrize(
    "text",
    [
        poor(),
        poor(survey=WHOLE),
        poor(survey=WHOLE | {"users": "1"}),
        poor(survey=WHOLE, identity=[]),
        poor(survey=WHOLE, identity={"files": [{}], "artifact": {}, "options": {}}),
        poor(
            survey=WHOLE, identity={"files": [], "artifact": {"manifest": "", "variant": ""}, "options": {}}
        ),
        poor(survey=WHOLE, identity={"files": None}),
        poor(survey=None),
    ],
)
def test_a_poor_record_is_told(tmp_path: Path, text: str) -> None:
    source = write_lines(tmp_path / "users.csv", made_up(40))
    output = stopped(tmp_path, source, Options(k=3, batch=9))
    (output.with_name("top.parquet.parts") / "progress.json").write_text(text)
    with pytest.raises(InputError, match=r"top\.parquet\.parts.*unreadable[\s\S]*--fresh"):
        score(Circle(), source, output, Options(k=3, batch=9))


@pytest.mark.parametrize("other", [False, True])
def test_a_file_of_another_folder_goes_on_only_if_its_content_is_the_same(
    tmp_path: Path, other: bool
) -> None:
    source = write_lines(tmp_path / "users.csv", made_up(40))
    output = stopped(tmp_path, source, Options(k=3, batch=9))
    (tmp_path / "moved").mkdir()
    moved = tmp_path / "moved" / "users.csv"
    moved.write_text(source.read_text().replace("u0,", "x0," if other else "u0,"))
    os.utime(moved, ns=(source.stat().st_atime_ns, source.stat().st_mtime_ns))
    if other:  # with the same name, size and time
        with pytest.raises(InputError, match=r"users\.csv has another content"):
            score(Circle(), moved, output, Options(k=3, batch=9))
    else:
        assert score(Circle(), moved, output, Options(k=3, batch=9)).resumed_after == 18


@pytest.mark.parametrize("text", ["{", "[]", '{"schema_version": 2}', '{"schema_version": 9, "identity": 1}'])
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

    with pytest.raises(StageError, match=r"the input changed while it was read[\s\S]*same command again"):
        score(Meddling(), source, tmp_path / "top.csv", Options(k=3, batch=9))
    assert left_in(tmp_path) == {"users.csv"}  # no part of the old content, none of the new one
    assert score(Circle(), source, tmp_path / "top.csv", Options(k=3, batch=9)).resumed_after == 0


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
            patch.setattr(parts, "write_json", no_room)
            syncs[0] = 2
        elif moment == "part":
            patch.setattr(os, "fsync", no_room)
        else:
            patch.setattr(parts.Parts, "_join", no_room)
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


@pytest.mark.parametrize("wrong", [False, True])
def test_a_folder_of_somebody_else_is_refused_and_nothing_in_it_is_touched(
    tmp_path: Path, wrong: bool
) -> None:
    source = write_lines(tmp_path / "users.csv", {"a": ["i999" if wrong else "i1"]})
    folder = tmp_path / "top.csv.parts"
    folder.mkdir()
    for name in ("thesis.txt", "other.csv", "1-2.csv"):
        (folder / name).write_text(name)
    with pytest.raises(
        InputError, match=r"parts: .*other files: 1-2\.csv, other\.csv, thesis\.txt"
    ) as caught:
        score(Circle(), source, tmp_path / "top.csv", fresh=wrong)
    assert "another --output" in str(caught.value) and caught.value.exit_code == 2
    assert {path.name: path.read_text() for path in folder.iterdir()} == {
        name: name for name in ("thesis.txt", "other.csv", "1-2.csv")
    }
    assert left_in(tmp_path) == {"users.csv", "top.csv.parts"}


def test_what_somebody_puts_beside_the_parts_outlives_the_job(tmp_path: Path) -> None:
    source = write_lines(tmp_path / "users.csv", made_up(40))
    output = stopped(tmp_path, source, Options(k=3, batch=9))
    folder = output.with_name("top.parquet.parts")
    (folder / "notes.parquet").write_text("mine")
    assert score(Circle(), source, output, Options(k=3, batch=9)).resumed_after == 18
    assert len(rows_of(output)) == 3 * 40
    assert {"notes.parquet"} <= left_in(folder) <= {"notes.parquet", ".lock"}


def test_an_empty_folder_of_that_name_does_no_harm(tmp_path: Path) -> None:
    source = write_lines(tmp_path / "users.csv", made_up(4))
    (tmp_path / "top.csv.parts").mkdir()
    score(Circle(), source, tmp_path / "top.csv")
    assert left_in(tmp_path) == {"users.csv", "top.csv"}
