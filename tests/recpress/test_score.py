"""`recpress score` on the command line: answers, exit codes, messages, and jobs that are killed for real."""

import json
import os
import random
import runpy
import signal
import subprocess
import sys
from pathlib import Path
from typing import Any

import polars as pl
import pytest

from export.runtime import Artifact
from recpress.cli.app import main
from recpress.cli.progress import Display
from recpress.cli.score import Told
from tests.export.answering import made_up, write_lines, write_log
from tests.export.fixtures import N_ITEMS, make_artifact, tiny_model
from tests.recommender.fixtures import cyclic_histories, prepared_from

ROOT = Path(__file__).parents[2]
USERS = made_up(60, N_ITEMS, longest=20)


@pytest.fixture(scope="module")
def artifact(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("score")
    prepared = prepared_from(folder / "data", cyclic_histories(60, N_ITEMS, 20), N_ITEMS)
    recipe = {"name": "test", "data": {"duplicates": "first"}}
    return make_artifact(tiny_model("sasrec"), folder / "tiny-onnx", prepared, recipe=recipe)


@pytest.fixture
def home(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    monkeypatch.chdir(tmp_path)
    write_lines(tmp_path / "users.csv", USERS)
    return tmp_path


def command(artifact: Path, *more: str, source: str = "users.csv", output: str = "top.csv") -> list[str]:
    return ["score", str(artifact), "--input", source, "--output", output, "--threads", "1", *more]


def test_score_says_what_recommend_says(
    artifact: Path, home: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    assert main(command(artifact, "-k", "5", "--batch", "16", "--json")) == 0
    captured = capsys.readouterr()
    document = json.loads(captured.out.splitlines()[-1])
    frame = pl.read_csv(home / "top.csv")
    opened = Artifact(artifact, threads=1)
    for user, past in USERS.items():
        mine = frame.filter(pl.col("user_id") == user)
        best = opened.recommend(list(dict.fromkeys(past)), 5)
        assert mine["item_id"].to_list() == [each["item_id"] for each in best]
        assert mine["score"].to_list() == pytest.approx([each["score"] for each in best], abs=1e-5)
    known = {
        "status": "done",
        "users": 60,
        "empty_users": 0,
        "unknown_items": 0,
        "k": 5,
        "duplicates": "first",
    }
    assert known.items() <= document.items()
    assert document["users_per_second"] > 0 and document["resumed_after"] == 0
    assert document["layout"] == {"kind": "lines", "user": "user_id", "history": "history", "separator": ","}
    assert "60 users" in captured.err and "scored: top.csv" in captured.err


def test_a_log_with_columns_of_its_own_and_every_option(
    artifact: Path, home: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    log = write_log(home / "log.csv", USERS | {"x": ["i1", "i999"]})
    log.write_text(log.read_text().replace("user_id,item_id,position", "who,what,when"))
    options = [
        "--log",
        "--user",
        "who",
        "--item",
        "what",
        "--order-by",
        "when",
        "--unknown",
        "skip",
        "--lists",
    ]
    options += ["--no-mask-seen", "--duplicates", "keep", "--variant", "fp32", "--json", "-k", "3"]
    assert main(command(artifact, *options, source="log.csv", output="top.parquet")) == 0
    captured = capsys.readouterr()
    document = json.loads(captured.out.splitlines()[-1])
    assert (document["users"], document["unknown_items"], document["mask_seen"]) == (61, 1, False)
    assert "1 with unknown items left out (1 users)" in captured.err
    frame = pl.read_parquet(home / "top.parquet")
    assert frame["user_id"].to_list() == [*USERS, "x"]
    assert frame["item_ids"].list.len().unique().to_list() == [3]


def test_what_is_there_already_is_replaced_with_fresh_only(
    artifact: Path, home: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    assert main(command(artifact)) == 0
    assert main(command(artifact)) == 2
    assert "is there already" in capsys.readouterr().err
    assert main(command(artifact, "--fresh")) == 0


@pytest.mark.parametrize(
    ("options", "message"),
    [
        (["-k", "99"], "k is 99, but the artifact answers lists of 1 to 15"),
        (["--variant", "int9"], "no variant 'int9'"),
        (["--history", "hist"], "no column 'hist' (did you mean 'history'?)"),
        (["--log"], "no column 'item_id'"),
        (["--item", "x"], "--item is for interaction logs"),
        (["--log", "--history", "x"], "--history is for one line per user"),
        (["--separator", ""], "--separator: is empty"),
        (["--separator", "|"], "artifact does not know"),
        (["--unknown", "guess"], "Invalid value"),
    ],
)
def test_wrong_input_exits_2_without_a_traceback_and_writes_nothing(
    artifact: Path, home: Path, capsys: pytest.CaptureFixture[str], options: list[str], message: str
) -> None:
    assert main(command(artifact, *options, "--json")) == 2
    captured = capsys.readouterr()
    assert message in " ".join(captured.err.split())
    assert "Traceback" not in captured.err
    assert json.loads(captured.out.splitlines()[-1])["exit_code"] == 2
    assert [path.name for path in home.iterdir()] == ["users.csv"]


def test_score_imports_no_torch(artifact: Path, home: Path) -> None:
    code = f"""
import sys
from recpress.cli.app import main
assert main({command(artifact)!r}) == 0
heavy = {{"torch", "transformers", "onnx", "plotly", "optimum", "accelerate"}} & set(sys.modules)
assert not heavy, heavy
"""
    environment = {**os.environ, "PYTHONPATH": str(ROOT)}
    done = subprocess.run([sys.executable, "-c", code], env=environment, capture_output=True, text=True)
    assert done.returncode == 0, done.stderr


def test_where_there_is_no_terminal_a_line_tells_the_progress_now_and_then(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    now = iter([0.0, 10.0, 31.0, 31.0, 40.0])
    monkeypatch.setattr("recpress.cli.score.time.monotonic", lambda: next(now))
    told = Told(Display())
    for step in (1000, 2000, 3000):
        told("step", {"step": step, "total": 9000, "text": "scoring, 100 users/s", "seconds_left": 60.0})
    lines = capsys.readouterr().err.splitlines()
    assert lines == ["  scoring, 100 users/s: 2,000 of 9,000 users, 60 s left"]


KILLED = """
import os, signal, sys
left = int(sys.argv[1])
def count(real):
    def counted(*arguments, **more):
        global left
        left -= 1
        if left == 0:
            os.kill(os.getpid(), signal.SIGKILL)
        return real(*arguments, **more)
    return counted
import recommender.files, shutil
os.replace, os.mkdir, os.fsync, os.unlink = map(count, (os.replace, os.mkdir, os.fsync, os.unlink))
shutil.rmtree = count(shutil.rmtree)
from recpress.cli.progress import Display
Display.__call__ = count(Display.__call__)
from recpress.cli.app import main
sys.exit(main(sys.argv[2:]))
"""


def attempt(folder: Path, moment: int, words: list[str]) -> int:
    """One start of the job that kills itself at a moment (0: never)."""
    environment = {**os.environ, "PYTHONPATH": str(ROOT), "OMP_NUM_THREADS": "1"}
    line = [sys.executable, "-c", KILLED, str(moment), *words]
    return subprocess.run(line, cwd=folder, env=environment, capture_output=True).returncode


@pytest.mark.slow
@pytest.mark.parametrize("ending", ["parquet", "csv"])
def test_a_job_that_is_killed_again_and_again_ends_like_an_undisturbed_one(
    artifact: Path, home: Path, ending: str
) -> None:
    calm = command(artifact, "--batch", "6", "-k", "5", output=f"calm.{ending}")
    assert attempt(home, 0, calm) == 0
    draw = random.Random(5)
    kills, output = 0, f"top.{ending}"
    words = command(artifact, "--batch", "6", "-k", "5", output=output)
    while kills < 12:
        code = attempt(home, draw.randint(1, 16), words)
        kills += code == -signal.SIGKILL
        assert code in (0, -signal.SIGKILL)
        if (home / output).exists():  # through: what is there must be right whatever the moment of the kill
            assert (home / output).read_bytes() == (home / f"calm.{ending}").read_bytes()
            words = command(artifact, "--batch", "6", "-k", "5", output=(output := f"top{kills}.{ending}"))
    assert attempt(home, 0, words) == 0
    assert (home / output).read_bytes() == (home / f"calm.{ending}").read_bytes()
    assert not (home / f"{output}.parts").exists()


def test_a_killed_job_goes_on(artifact: Path, home: Path) -> None:
    words = command(artifact, "--batch", "6", "--json")
    assert attempt(home, 12, words) == -signal.SIGKILL
    assert list((home / "top.csv.parts").glob("0*.csv"))
    assert not (home / "top.csv").exists()
    assert main(words) == 0
    counts: Any = pl.read_csv(home / "top.csv").group_by("user_id", maintain_order=True).len()
    assert counts["user_id"].to_list() == list(USERS)
    assert counts["len"].unique().to_list() == [10]


@pytest.mark.slow
def test_the_script_that_scores_a_million_users_runs_on_an_artifact_of_today(
    artifact: Path, home: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("PYTHONPATH", str(ROOT))
    write_log(home / "interactions.csv", USERS | {"stranger": ["i1", "unknown"]})
    script = runpy.run_path(str(ROOT / "docs" / "results" / "scripts" / "score_million.py"))
    words = [str(artifact), "--data", str(home), "--users", "300", "--kills", "2", "-k", "5"]
    with pytest.raises(SystemExit) as ended:
        script["main"]([*words, "--folder", str(home), "--results", str(home / "rows.jsonl")])
    row = json.loads((home / "rows.jsonl").read_text())
    assert ended.value.code == 0, row
    assert (row["users_found"], row["every_user_once"], row["equal"]) == (300, True, True)
    assert row["killed"]["kills"] == 2 and row["memory"]["peak_mib"] > 0
    assert {path.name for path in home.iterdir()} == {"users.csv", "interactions.csv", "rows.jsonl"}
