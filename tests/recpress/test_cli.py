"""The command line: exit codes, messages on stderr, one JSON document last on stdout, help without torch."""

import json
import os
import subprocess
import sys
from pathlib import Path
from typing import Any, cast

import pytest

from recommender.errors import InputError
from recpress.cli.app import describe, main
from recpress.stages import STAGES, StageKind
from tests.recpress.fakes import FAKES, RECIPE

ROOT = Path(__file__).parents[2]
VERBS = ["run", *STAGES, "recommend", "score", "refresh-items", "report", "lint", "verify", "doctor"]
VERBS += [f"recipes {verb}" for verb in ("list", "show", "copy", "schema", "check")]
VERBS += [f"data {verb}" for verb in ("prepare", "stats", "fetch", "sources")]


@pytest.fixture
def fakes(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> Path:
    """The fake stages in place of the real ones, in an empty folder with a recipe of them."""
    table = cast(dict[str, StageKind], STAGES)
    for name in list(table):
        monkeypatch.delitem(table, name)
    for name, kind in FAKES.items():
        monkeypatch.setitem(table, name, kind)
    monkeypatch.chdir(tmp_path)
    (tmp_path / "fake.yaml").write_text(RECIPE)
    return tmp_path


def last_json(capsys: pytest.CaptureFixture[str]) -> Any:
    return json.loads(capsys.readouterr().out.splitlines()[-1])


def python(code: str) -> subprocess.CompletedProcess[str]:
    return subprocess.run([sys.executable, "-c", code], cwd=ROOT, capture_output=True, text=True)


def test_help_and_reading_recipes_import_no_torch() -> None:
    code = """
import sys
from recpress.cli.app import main
assert main(["--help"]) == 0
assert main(["run", "--help"]) == 0
assert main(["recipes", "check", "slmrec"]) == 0
assert main(["recipes", "schema"]) == 0
assert main(["train", "--options"]) == 0
heavy = {"torch", "transformers", "onnx", "onnxruntime", "plotly", "optimum", "accelerate"} & set(sys.modules)
assert not heavy, heavy
"""
    done = python(code)
    assert done.returncode == 0, done.stderr


def test_help_of_the_top_imports_nothing_heavy_at_all() -> None:
    code = (
        "import sys\nfrom recpress.cli.app import main\nmain(['--help'])\nassert 'polars' not in sys.modules"
    )
    assert python(code).returncode == 0


@pytest.mark.parametrize("verb", VERBS)
def test_every_verb_has_help_with_an_example(verb: str, capsys: pytest.CaptureFixture[str]) -> None:
    assert main([*verb.split(), "--help"]) == 0
    shown = " ".join(capsys.readouterr().out.split())
    assert f"Example: recpress {verb}" in shown


def test_a_run_ends_with_one_json_document(fakes: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["run", "fake.yaml", "--device", "cpu", "--json"]) == 0
    captured = capsys.readouterr()
    document = json.loads(captured.out.splitlines()[-1])
    assert [stage["status"] for stage in document["stages"]] == ["done"] * 4
    assert document["run"] == str(fakes / "runs" / "fake")
    assert "00-big" in captured.err and "runs: not run yet" in captured.err
    assert main(["run", "fake.yaml", "--device", "cpu", "--json"]) == 0
    assert [stage["status"] for stage in last_json(capsys)["stages"]] == ["cached"] * 4


def test_without_json_stdout_stays_empty(fakes: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["run", "fake.yaml", "--device", "cpu"]) == 0
    assert capsys.readouterr().out == ""


def test_the_report_of_a_run_remembers_its_command(fakes: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(sys, "argv", ["recpress", "run", "fake.yaml", "--set", "stages.big.size=2"])
    from recpress.cli.options import command_line

    assert command_line() == "recpress run fake.yaml --set stages.big.size=2"


@pytest.mark.parametrize(
    ("sets", "message"),
    [
        ("stages.big.siez=1", "stages.0.siez: unknown key (did you mean 'size'?)"),
        ("stages.big.size=many", "should be a valid integer"),
        ("stages.small.of=none", "no earlier stage binds the name 'none'"),
        ("stages.small.as=big", "is already bound"),
        ("stages.small.keep=5", "cannot keep 5 of 4"),
        ("data={interactions: none.csv}", "none.csv"),
        ("data.source=beauty", "RECPRESS_DATA"),
        ("stages.big.fails=input", "the fake was told to refuse"),
    ],
)
def test_wrong_input_exits_2_and_writes_nothing(
    fakes: Path, capsys: pytest.CaptureFixture[str], sets: str, message: str
) -> None:
    assert main(["run", "fake.yaml", "--device", "cpu", "--json", "--set", sets]) == 2
    captured = capsys.readouterr()
    assert message in captured.err
    assert "Traceback" not in captured.err
    assert [p.name for p in fakes.iterdir()] == ["fake.yaml"]
    document = json.loads(captured.out.splitlines()[-1])
    assert (document["status"], document["exit_code"]) == ("failed", 2)


@pytest.mark.parametrize(
    ("how", "code", "message"),
    [
        ("gate", 1, "the fake's gate is shut"),
        ("disk", 1, "the disk is full"),
        ("rust disk", 1, "the disk is full"),
        ("crash", 1, "internal error: ZeroDivisionError: a bug"),
        ("interrupt", 130, "interrupted; finished stages are kept"),
    ],
)
def test_failures_exit_with_their_code_and_go_on_later(
    fakes: Path, capsys: pytest.CaptureFixture[str], how: str, code: int, message: str
) -> None:
    (fakes / "fake.yaml").write_text(RECIPE + "  - {stage: grow, as: late}\n")
    command = ["run", "fake.yaml", "--device", "cpu", "--json"]
    assert main([*command, "--set", f"stages.late.fails={how}"]) == code
    captured = capsys.readouterr()
    assert message in captured.err
    assert "Traceback" not in captured.err
    assert main(command) == 0
    assert [stage["status"] for stage in last_json(capsys)["stages"]] == ["cached"] * 4 + ["done"]


def test_debug_shows_the_traceback(fakes: Path) -> None:
    with pytest.raises(ZeroDivisionError):
        main(["run", "fake.yaml", "--device", "cpu", "--debug", "--set", "stages.big.fails=crash"])


def test_a_real_interrupt_exits_130_and_keeps_what_is_finished(tmp_path: Path) -> None:
    code = f"""
import os, signal, sys
from recpress.cli.app import main
from recpress.stages import STAGES
from tests.recpress import fakes
STAGES.clear(); STAGES.update(fakes.FAKES)
real = fakes.cut
def interrupted(*arguments):
    os.kill(os.getpid(), signal.SIGINT)
    return real(*arguments)
fakes.cut = interrupted
sys.exit(main(["run", "fake.yaml", "--device", "cpu", "--out", {str(tmp_path / "run")!r}]))
"""
    (tmp_path / "fake.yaml").write_text(RECIPE)
    environment = {**os.environ, "PYTHONPATH": str(ROOT)}
    done = subprocess.run(
        [sys.executable, "-c", code], cwd=tmp_path, env=environment, capture_output=True, text=True
    )
    assert done.returncode == 130, done.stderr
    assert "interrupted" in done.stderr
    assert sorted(p.name for p in (tmp_path / "run/stages").iterdir()) == ["00-big"]


@pytest.mark.parametrize(
    "command",
    [
        ["run"],
        ["run", "quickstart", "--device", "tpu"],
        ["walk"],
        ["run", "quickstart", "--ste", "x=1"],
        ["recipes", "show", "quickstrt"],
        ["recipes", "check", "none.yaml"],
        ["data", "stats", "none.csv"],
        ["data", "fetch", "ml-1m"],
        ["recommend", "nowhere", "--history", "a"],
        ["score", "nowhere", "--input", "a.csv", "--output", "b.csv"],
        ["verify", "nowhere"],
        ["refresh-items", "nowhere"],
        ["refresh-items", "nowhere", "--restore", "1"],
        ["refresh-items", "nowhere", "--vectors", "none.npy"],
        ["report", "nowhere"],
        ["prune-depth", "nowhere", "--set", "keep=2"],
        ["train", "--data", "synthetic"],
    ],
)
def test_wrong_commands_exit_2_without_a_traceback(
    command: list[str], capsys: pytest.CaptureFixture[str], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    assert main(command) == 2
    assert "Traceback" not in capsys.readouterr().err
    assert not list(tmp_path.iterdir())


def test_cuda_that_is_not_there_is_told(fakes: Path, capsys: pytest.CaptureFixture[str]) -> None:
    import torch

    if torch.cuda.is_available():
        pytest.skip("there is a CUDA device")
    assert main(["run", "fake.yaml", "--device", "cuda"]) == 2
    assert "sees no CUDA device" in capsys.readouterr().err


def test_the_version_is_told(capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["--version"]) == 0
    assert capsys.readouterr().out.startswith("recpress ")


def test_wrong_usage_with_json_ends_with_a_document(capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["run", "quickstart", "--json", "--ste", "x=1"]) == 2
    assert last_json(capsys)["status"] == "failed"


def test_recipes_list_show_and_copy(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.chdir(tmp_path)
    assert main(["recipes", "list", "--json"]) == 0
    listed = {each["name"]: each for each in last_json(capsys)}
    assert {"quickstart", "slmrec", "sasrec"} <= set(listed)
    assert listed["slmrec"]["stages"][-1] == "bench"
    assert main(["recipes", "show", "quickstart"]) == 0
    shown = capsys.readouterr().out
    assert main(["recipes", "copy", "quickstart"]) == 0
    assert (tmp_path / "quickstart.yaml").read_text().rstrip() == shown.rstrip()
    (tmp_path / "quickstart.yaml").write_text("mine")
    assert main(["recipes", "copy", "quickstart"]) == 2
    assert (tmp_path / "quickstart.yaml").read_text() == "mine"
    assert main(["recipes", "copy", "quickstart", "quickstart.yaml", "--force"]) == 0
    assert main(["recipes", "check", "quickstart.yaml", "--json"]) == 0
    assert last_json(capsys)["recipe"]["name"] == "quickstart"


def test_the_options_of_a_stage_can_be_listed(capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["prune-depth", "--options"]) == 0
    shown = capsys.readouterr().err
    assert "importance" in shown and "block-influence" in shown and "required" in shown


def test_data_verbs_describe_a_log_of_ones_own(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.chdir(tmp_path)
    rows = [f"u{u},i{(u + t) % 6},{t}" for u in range(8) for t in range(6)]
    (tmp_path / "log.csv").write_text("\n".join(["user_id,item_id,timestamp", *rows]))
    assert main(["data", "prepare", "log.csv", "--json"]) == 0
    prepared = last_json(capsys)
    assert (prepared["users"], prepared["items"], prepared["interactions"]) == (8, 6, 48)
    assert Path(prepared["path"]).is_dir()
    assert main(["data", "stats", "log.csv", "--set", "min_user=2", "--json"]) == 0
    assert last_json(capsys)["history_length"]["mean"] == 6
    assert main(["data", "stats", "log.csv", "--set", "min_usr=2"]) == 2
    assert "did you mean 'min_user'" in capsys.readouterr().err


def test_data_sources_lists_folders_of_the_root(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    (tmp_path / "shop").mkdir()
    (tmp_path / "shop" / "interactions.csv").write_text("user_id,item_id\n")
    monkeypatch.setenv("RECPRESS_DATA", str(tmp_path))
    assert main(["data", "sources", "--json"]) == 0
    names = [each["name"] for each in last_json(capsys)]
    assert "shop" in names and "synthetic" in names


def test_errors_of_the_system_are_told_by_file() -> None:
    assert describe(PermissionError(13, "Permission denied", "/x")) == "/x: Permission denied"
    assert describe(OSError(28, "No space left on device", "/x")).startswith("the disk is full (/x)")
    assert describe(InputError("bad", where="here", fix="mend")) == "here: bad\n  fix: mend"
