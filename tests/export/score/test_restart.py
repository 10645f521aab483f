"""A job that stops anywhere goes on there, and one that is not the same is refused."""

import os
from pathlib import Path
from typing import Any

import pytest

from export.score.read import Interactions
from export.score.users import Options, score
from recommender.errors import InputError
from tests.export.answering import Circle, left_in, made_up, plainly, rows_of, write_lines, write_log


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


def stopped(
    tmp_path: Path, source: Path, options: Options, artifact: Circle | None = None, *, fresh: bool = False
) -> Path:
    """A job that was stopped after its second part."""
    output = tmp_path / "top.parquet"
    with pytest.MonkeyPatch.context() as patch:
        stop_at(patch, 6)
        with pytest.raises(Killed):
            score(artifact or Circle(), source, output, options, fresh=fresh)
    assert len(list(output.with_name("top.parquet.parts").glob("0*.parquet"))) == 2
    return output


def test_another_batch_size_goes_on_and_no_user_is_lost_or_doubled(tmp_path: Path) -> None:
    users = made_up(40)
    source = write_lines(tmp_path / "users.csv", users)
    output = stopped(tmp_path, source, Options(k=3, batch=9))
    done = score(Circle(), source, output, Options(k=3, batch=5))
    assert done.resumed_after == 18
    assert rows_of(output) == plainly(Circle(), users, 3)


@pytest.mark.parametrize("users_per_call", [1, 8])
def test_another_batch_size_is_refused_where_users_of_a_call_change_each_others_answers(
    tmp_path: Path, users_per_call: int
) -> None:
    source, artifact = write_lines(tmp_path / "users.csv", made_up(40)), Circle()
    artifact.users_per_call = users_per_call
    output = stopped(tmp_path, source, Options(k=3, batch=9), artifact)
    if users_per_call > 1:
        with pytest.raises(InputError, match="batch was 9, is 5"):
            score(artifact, source, output, Options(k=3, batch=5))
    batch = 5 if users_per_call == 1 else 9
    assert score(artifact, source, output, Options(k=3, batch=batch)).resumed_after == 18


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


def test_a_job_that_was_begun_fresh_goes_on_with_the_same_command(tmp_path: Path) -> None:
    users = made_up(40)
    source = write_lines(tmp_path / "users.csv", users)
    output, options = tmp_path / "top.parquet", Options(k=3, batch=9)
    output.write_text("old")
    with pytest.MonkeyPatch.context() as patch:
        stop_at(patch, 6)
        with pytest.raises(Killed):
            score(Circle(), source, output, options, fresh=True)
    output.write_text("another one, which is to be replaced as well")
    assert score(Circle(), source, output, options, fresh=True).resumed_after == 18
    assert rows_of(output) == plainly(Circle(), users, 3)
    assert score(Circle(), source, output, options, fresh=True).resumed_after == 0  # that one was through


@pytest.mark.parametrize("change", ["begun without", "other options", "other input", "broken record"])
def test_fresh_forgets_every_job_but_the_same_one_begun_fresh(tmp_path: Path, change: str) -> None:
    source, options = write_lines(tmp_path / "users.csv", made_up(40)), Options(k=3, batch=9)
    output = stopped(tmp_path, source, options, fresh=change != "begun without")
    if change == "other options":
        options = Options(k=2, batch=9)
    elif change == "other input":
        source.write_text(source.read_text().replace("u1,", "x1,"))
    elif change == "broken record":
        (output.with_name("top.parquet.parts") / "progress.json").write_text("{")
    assert score(Circle(), source, output, options, fresh=True).resumed_after == 0
    assert len(rows_of(output)) == 40 * options.k
