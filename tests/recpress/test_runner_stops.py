"""What fails, is wrong, is killed or runs twice: finished stages stay, nothing is half done."""

import os
import signal
import subprocess
import sys
from pathlib import Path

import pytest

from recommender.errors import GateError, InputError, StageError
from recommender.files import write_json
from tests.recpress.fakes import RECIPE
from tests.recpress.running import go, ran, why


@pytest.mark.parametrize(
    ("how", "error", "text"),
    [
        ("gate", GateError, "gate is shut"),
        ("disk", StageError, "the disk is full"),
        ("rust disk", StageError, "the disk is full"),
        ("interrupt", KeyboardInterrupt, None),
        ("crash", ZeroDivisionError, "a bug"),
    ],
)
def test_a_failure_keeps_finished_stages_and_leaves_nothing_half_done(
    tmp_path: Path, how: str, error: type[BaseException], text: str | None
) -> None:
    recipe = RECIPE + "  - {stage: grow, as: late, fails: null}\n"
    with pytest.raises(error, match=text):
        go(tmp_path, recipe, f"stages.late.fails={how}")
    assert sorted(p.name for p in (tmp_path / "run/stages").iterdir()) == [
        "00-big", "01-small", "02-packed", "03-weigh",
    ]  # fmt: skip
    assert ran(go(tmp_path, recipe)) == ["04-late"]


def test_an_error_says_in_which_stage(tmp_path: Path) -> None:
    with pytest.raises(GateError) as caught:
        go(tmp_path, RECIPE, "stages.big.fails=gate")
    assert caught.value.__notes__[0].startswith("in stage 00-big")


def test_wrong_input_that_a_stage_finds_leaves_no_folder(tmp_path: Path) -> None:
    with pytest.raises(InputError, match="told to refuse"):
        go(tmp_path, RECIPE, "stages.big.fails=input")
    assert not (tmp_path / "run").exists()


def test_wrong_input_found_late_keeps_what_is_finished(tmp_path: Path) -> None:
    with pytest.raises(InputError):
        go(tmp_path, RECIPE + "  - {stage: grow, as: late, fails: input}\n")
    assert (tmp_path / "run/stages/00-big/stage.json").exists()


@pytest.mark.parametrize(
    ("data", "text"),
    [
        ("interactions: none.csv", "none.csv"),
        ("source: beauty", "beauty"),
    ],
)
def test_missing_data_leaves_no_folder(tmp_path: Path, data: str, text: str) -> None:
    with pytest.raises(InputError, match=text):
        go(tmp_path, RECIPE.replace("source: synthetic, synthetic: {users: 80, items: 40}", data))
    assert not (tmp_path / "run").exists()


def test_an_input_checkpoint_of_another_data_set_is_refused(tmp_path: Path) -> None:
    other = tmp_path / "other"
    manifest = {"data": {"catalogue_digest": "another"}, "variants": [{"name": "fp32"}]}
    write_json(other / "manifest.json", manifest)
    text = RECIPE.replace("compare: [big,", "compare: [given, big,") + f"inputs: {{given: {other}}}\n"
    with pytest.raises(InputError, match="another data set"):
        go(tmp_path, text)
    assert not (tmp_path / "run").exists()


def test_two_runs_at_once_in_one_folder_are_refused(tmp_path: Path) -> None:
    go(tmp_path)
    code = (
        "import sys\nfrom pathlib import Path\nfrom recommender.lock import locked\n"
        "with locked(Path(sys.argv[1])):\n    print('held', flush=True)\n    sys.stdin.read()\n"
    )
    holder = subprocess.Popen(
        [sys.executable, "-c", code, str(tmp_path / "run")],
        stdin=subprocess.PIPE,
        stdout=subprocess.PIPE,
        text=True,
    )
    assert holder.stdout is not None
    assert holder.stdout.readline() == "held\n"
    with pytest.raises(StageError, match="another recpress is working"):
        go(tmp_path)
    holder.communicate("")
    assert ran(go(tmp_path)) == []


KILLED = """
import sys
from functools import partial
from pathlib import Path
from recpress.folders import check_run_folder
from recpress.recipe import load_recipe
from recpress.runner import Settings, run
from tests.recpress.fakes import FAKES
folder = Path(sys.argv[1])
run(load_recipe(folder / "recipe.yaml", stages=FAKES), folder / "run", Settings(), stages=FAKES)
"""


def test_a_killed_run_goes_on_where_it_stood(tmp_path: Path) -> None:
    late = f"{{stage: grow, as: late, steps: 5, kill_at: 3, marker: {tmp_path / 'killed'}}}"
    recipe = RECIPE + f"  - {late}\n"
    (tmp_path / "recipe.yaml").write_text(recipe)
    root = Path(__file__).parents[2]
    first = subprocess.run([sys.executable, "-c", KILLED, str(tmp_path)], cwd=root, env=os.environ.copy())
    assert first.returncode == -signal.SIGKILL
    assert (tmp_path / "killed").exists()
    assert any(p.name.startswith(".") for p in (tmp_path / "run/stages").iterdir())  # half-written
    result = go(tmp_path, recipe)
    assert ran(result) == ["04-late"]
    assert result.steps[-1].metrics["resumed_at"] == 3
    assert not any(p.name.startswith(".") for p in (tmp_path / "run/stages").iterdir())
    assert not (tmp_path / "run/.scratch").exists()


def test_a_kill_between_artifact_and_record_is_seen(tmp_path: Path) -> None:
    go(tmp_path)
    write_json(tmp_path / "run/artifacts/packed/manifest.json", {"of": "a stage that was killed then"})
    assert list(why(go(tmp_path)).values()) == ["artifacts/packed is missing or was replaced"]
