"""The gate from the outside: the verb with its exit codes, and a recipe that stops where it is shut."""

import json
import re
import shutil
from collections.abc import Mapping
from pathlib import Path
from typing import Any, ClassVar, Literal

import pytest
from pydantic import Field

from bench.report.files import write
from recommender.errors import GateError, InputError
from recommender.files import read_json
from recommender.stage import Bound, Context, Kind, Outputs, Shape, StageConfig
from recpress.cli.app import main
from recpress.plan import plan
from recpress.recipe import load_recipe
from recpress.runner import RunResult, Settings, run
from recpress.stages import STAGES, StageKind, StageTable
from tests.bench.reports import comparison, faster, kept, report
from tests.recpress.fakes import FAKES

OPTIONS = ["--candidate", "student", "--against", "teacher"]


@pytest.fixture
def measured(tmp_path: Path) -> Path:
    """A run folder with a report: 98% of the quality and 5.5x for sure."""
    write(report(), tmp_path / "run")
    return tmp_path / "run"


def test_an_open_gate_exits_0_with_a_table_and_a_document(
    measured: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    asked = ["--min-quality", "0.97", "--min-speedup", "5", "--max-size-ratio", "0.3"]
    assert main(["gate", str(measured), *OPTIONS, *asked, "--json"]) == 0
    captured = capsys.readouterr()
    document = json.loads(captured.out.splitlines()[-1])
    assert (document["status"], document["exit_code"]) == ("open", 0)
    assert document["demand"]["metric"] == "ndcg@10" and document["demand"]["load"] == "real"
    assert [each["bound"] for each in document["verdicts"]] == [0.98, 5.5, 0.25]
    shown = " ".join(captured.err.split())
    assert "NDCG@10 kept >= 97.0% 99.0% 98.0% holds" in shown and "the gate is open" in shown


@pytest.mark.parametrize(
    ("asked", "fails"),
    [
        (["--min-quality", "0.985", "--min-speedup", "5"], "min_quality"),
        (["--min-quality", "0.97", "--min-speedup", "5.6"], "min_speedup"),
        (["--min-quality", "0.97", "--max-size-ratio", "0.2"], "max_size_ratio"),
    ],
)
def test_a_shut_gate_exits_1_and_says_what_does_not_hold(
    measured: Path, asked: list[str], fails: str, capsys: pytest.CaptureFixture[str]
) -> None:
    assert main(["gate", str(measured), *OPTIONS, *asked, "--json"]) == 1
    captured = capsys.readouterr()
    document = json.loads(captured.out.splitlines()[-1])
    assert (document["status"], document["exit_code"]) == ("shut", 1)
    assert [each["demand"] for each in document["verdicts"] if not each["holds"]] == [fails]
    assert captured.err.count("FAILS") == 1 and "the gate is shut" in captured.err


def test_a_bound_that_does_not_exist_shuts_the_gate(tmp_path: Path) -> None:
    few = comparison(quality={"ndcg@10": kept(1.0, None)}, speedup=[faster(9.0, None)])
    write(report(comparisons=[few]), tmp_path)
    assert main(["gate", str(tmp_path), *OPTIONS, "--min-quality", "0.5"]) == 1
    assert main(["gate", str(tmp_path), *OPTIONS, "--min-speedup", "1"]) == 1


@pytest.mark.parametrize(
    ("more", "said"),
    [
        ([], "asks for nothing"),
        (["--min-quality", "0"], "--min-quality should be greater than 0"),
        (["--min-quality", "nan"], "--min-quality"),
        (["--min-speedup", "2", "--load", "fast"], "--load cannot be 'fast'"),
        (["--min-speedup", "2", "--batch", "64"], "batch 64; there is: real: batch 1"),
        (["--min-quality", "0.9", "--metric", "ndcg@99"], "'ndcg@99' was not measured"),
        (["--min-quality", "0.9", "--candidate", "studnet"], "did you mean 'student'?"),
        (["--max-memory-ratio", "0.9"], "peak memory of 'student' and 'teacher' was not measured"),
    ],
)
def test_a_question_that_has_no_answer_exits_2(
    measured: Path, more: list[str], said: str, capsys: pytest.CaptureFixture[str]
) -> None:
    assert main(["gate", str(measured), *OPTIONS, *more, "--json"]) == 2
    captured = capsys.readouterr()
    assert said in captured.err and "Traceback" not in captured.err
    assert json.loads(captured.out.splitlines()[-1])["exit_code"] == 2


def test_no_report_and_a_report_of_another_schema_exit_2(
    measured: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    asked = [*OPTIONS, "--min-quality", "0.9"]
    (tmp_path / "empty").mkdir()
    assert main(["gate", str(tmp_path / "none"), *asked]) == 2
    assert main(["gate", str(tmp_path / "empty"), *asked]) == 2
    file = measured / "report.json"
    file.write_text(file.read_text().replace('"schema_version": 1', '"schema_version": 2'))
    assert main(["gate", str(measured), *asked]) == 2
    assert "schema_version 2; this recpress reads schema_version 1" in capsys.readouterr().err


MACHINE = {"speed": 1.0}
"""What no fingerprint knows of."""


class MeasureConfig(StageConfig):
    """A bench whose result is known."""

    pools_seeds: ClassVar[bool] = True
    accepts: ClassVar[tuple[Kind, ...]] = ("checkpoint", "artifact")

    stage: Literal["measure"]
    as_: str = Field(alias="as")
    compare: tuple[str, ...]
    bound: float = 5.5

    @property
    def consumes(self) -> tuple[str, ...]:
        return self.compare

    @property
    def produces(self) -> str:
        return self.as_

    def shape(self, known: Mapping[str, Shape]) -> Shape:
        return Shape("report")


def measure(config: MeasureConfig, inputs: Mapping[str, Bound], context: Context) -> Outputs:
    """A report of a student and a teacher with this lower bound of the speed-up."""
    bound = config.bound * MACHINE["speed"]
    cell = faster(bound, (bound, bound))
    write(report(comparisons=[comparison(speedup=[cell])]), context.folder)
    return Outputs({})


TABLE: StageTable = {
    **FAKES,
    "measure": StageKind(
        "measure", "tests.recpress.test_gate:MeasureConfig", "tests.recpress.test_gate:measure", ()
    ),
    "gate": STAGES["gate"],
}

RECIPE = """
name: gated
seeds: [1, 2]
data: {source: synthetic, synthetic: {users: 80, items: 40}, max_length: 8}
stages:
  - {stage: grow, as: big}
  - {stage: measure, as: measured, compare: [big]}
  - {stage: gate, of: measured, candidate: student, against: teacher, min_quality: 0.97, min_speedup: 5}
  - {stage: pack, of: big, as: packed}
"""


def go(tmp_path: Path, *sets: str, text: str = RECIPE) -> RunResult:
    (tmp_path / "recipe.yaml").write_text(text)
    loaded = load_recipe(tmp_path / "recipe.yaml", sets, stages=TABLE)
    return run(loaded, tmp_path / "run", Settings(), stages=TABLE)


def test_a_recipe_goes_on_behind_an_open_gate(tmp_path: Path) -> None:
    result = go(tmp_path)
    assert [step.name for step in result.steps][2:4] == ["01-measured", "02-gate"]
    assert {step.status for step in result.steps} == {"done"}
    verdicts = read_json(tmp_path / "run" / "stages" / "02-gate" / "gate.json")["verdicts"]
    assert [each["holds"] for each in verdicts] == [True, True]
    assert (tmp_path / "run" / "artifacts" / "packed-seed1").is_dir()
    assert status(go(tmp_path)) == {"01-measured": "cached", "02-gate": "done", "03-packed-seed2": "cached"}


def status(result: RunResult) -> dict[str, str]:
    """Of the steps around the gate."""
    names = ("01-measured", "02-gate", "03-packed-seed2")
    return {step.name: step.status for step in result.steps if step.name in names}


def test_a_recipe_stops_at_a_shut_gate_and_keeps_what_is_finished(tmp_path: Path) -> None:
    with pytest.raises(GateError, match=r"lower bound 4.50x, asked >= 5.00x") as raised:
        go(tmp_path, "stages.measured.bound=4.5")
    assert raised.value.exit_code == 1
    top = tmp_path / "run"
    assert sorted(f.name for f in (top / "stages").iterdir()) == [
        "00-big-seed1", "00-big-seed2", "01-measured",
    ]  # fmt: skip
    assert (top / "report.json").is_file() and not (top / "artifacts").exists()
    better = go(tmp_path, "stages.measured.bound=6")
    assert [step.status for step in better.steps][:3] == ["cached", "cached", "done"]
    assert (top / "artifacts" / "packed-seed2").is_dir()


def test_a_gate_decides_anew_when_the_report_changes(tmp_path: Path) -> None:
    go(tmp_path)
    with pytest.raises(GateError):
        go(tmp_path, "stages.measured.bound=4.5")


def test_a_gate_decides_anew_when_the_same_bench_measures_something_else(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    go(tmp_path)
    shutil.rmtree(tmp_path / "run" / "stages" / "01-measured")
    monkeypatch.setitem(MACHINE, "speed", 0.5)
    with pytest.raises(GateError, match=r"lower bound 2.75x, asked >= 5.00x"):
        go(tmp_path)


def test_a_plan_shows_that_the_gate_decides_anew(tmp_path: Path) -> None:
    go(tmp_path)
    loaded = load_recipe(tmp_path / "recipe.yaml", stages=TABLE)
    found = plan(loaded, tmp_path / "run", device="cpu", stages=TABLE)
    again = [(step.name, step.why) for step in found.steps if not step.cached]
    assert again == [("02-gate", "decided anew every time")]


def given(folder: Path, gate: str = "") -> str:
    """A recipe that gates a report which is there already."""
    text = RECIPE.replace("stages:", f"inputs: {{measured: '{folder}'}}\nstages:").replace(
        "min_speedup: 5", f"min_speedup: 5{gate}"
    )
    return "\n".join(line for line in text.splitlines() if "stage: measure" not in line)


def test_a_gate_may_read_a_report_that_exists_already(tmp_path: Path, measured: Path) -> None:
    other = measured.rename(tmp_path / "other")
    text = given(other)
    assert [step.status for step in go(tmp_path, text=text).steps] == ["done"] * 5
    (other / "notes.txt").write_text("whatever else lies in the run folder has no say")
    again = go(tmp_path, text=text).steps
    assert [step.name for step in again if step.status == "done"] == ["01-gate"]
    write(report(comparisons=[comparison(speedup=[faster(4.0, (3.9, 4.1))])]), other)
    with pytest.raises(GateError):
        go(tmp_path, text=text)


def test_a_gate_reads_the_report_of_every_seed(tmp_path: Path) -> None:
    write(report(), tmp_path / "m-1")
    write(report(comparisons=[comparison(speedup=[faster(4.0, (3.9, 4.1))])]), tmp_path / "m-2")
    text = given(tmp_path / "m-{seed}")
    with pytest.raises(GateError, match=r"may not go on: seed 2: speed-up.*lower bound 3.90x") as raised:
        go(tmp_path, text=text)
    assert "seed 1" not in str(raised.value)
    write(report(), tmp_path / "m-2")
    verdicts = go(tmp_path, text=text).steps[2].metrics["verdicts"]
    assert [each["what"].partition(":")[0] for each in verdicts] == ["seed 1", "seed 1", "seed 2", "seed 2"]


@pytest.mark.parametrize(
    ("gate", "said"),
    [
        (", metric: ndcg@20", "'measured' does not measure 'ndcg@20' (did you mean 'ndcg@10'"),
        (", load: full", "'measured' has no load 'full', only real"),
        (", batch: 8", "'measured' times no batch of 8, only of 1"),
    ],
)
def test_what_a_given_report_does_not_hold_is_told_before_anything_runs(
    tmp_path: Path, measured: Path, gate: str, said: str
) -> None:
    with pytest.raises(InputError, match=re.escape(said)):
        go(tmp_path, text=given(measured.rename(tmp_path / "other"), gate))


def test_a_given_report_is_read_before_anything_runs(tmp_path: Path, measured: Path) -> None:
    other = measured.rename(tmp_path / "other")
    with pytest.raises(InputError, match=r"does not compare 'studnet' \(did you mean 'student'"):
        go(tmp_path, text=given(other).replace("student", "studnet"))
    file = other / "report.json"
    file.write_text(file.read_text().replace('"schema_version": 1', '"schema_version": 2'))
    with pytest.raises(InputError, match="schema_version 2; this recpress reads schema_version 1"):
        go(tmp_path, text=given(other))
    assert not (tmp_path / "run").exists()


def test_only_a_report_can_be_gated(tmp_path: Path) -> None:
    with pytest.raises(InputError, match="'big' is a checkpoint, but this stage needs a report"):
        go(tmp_path, "stages.gate.of=big")
    with pytest.raises(InputError, match="'measured' is a report, but this stage needs a checkpoint"):
        go(tmp_path, "stages.packed.of=measured")


def real(tmp_path: Path, gate: str, *, bench: str = "", more: str = "") -> Any:
    """The check of a recipe with the real stages."""
    file = tmp_path / "recipe.yaml"
    file.write_text(
        f"name: x\ndata: {{source: synthetic}}\n{more}stages:\n"
        "  - {stage: train, as: teacher, model: {kind: sasrec}}\n"
        "  - {stage: train, as: student, model: {kind: sasrec}}\n"
        f"  - {{stage: bench, as: measured, compare: [teacher, student]{bench}}}\n"
        f"  - {{stage: gate, of: measured, {gate}}}\n"
    )
    return load_recipe(file).recipe.stages[-1]


def test_a_recipe_with_a_gate_is_checked_before_anything_runs(tmp_path: Path) -> None:
    asked = real(tmp_path, "candidate: student, against: teacher, min_quality: 0.97")
    assert asked.consumes == ("measured",)
    with pytest.raises(
        InputError, match=r"stages\.3\.against: 'measured' holds everything against 'teacher'"
    ):
        real(tmp_path, "candidate: teacher, against: student, min_quality: 0.97")
    with pytest.raises(InputError, match="the gate asks for nothing"):
        real(tmp_path, "candidate: student, against: teacher")
    with pytest.raises(InputError, match=r"min_qualty: unknown key \(did you mean 'min_quality'"):
        real(tmp_path, "candidate: student, against: teacher, min_qualty: 1")


def test_a_metric_and_a_floor_that_the_bench_will_not_measure_are_told_before_anything_runs(
    tmp_path: Path,
) -> None:
    asked = "candidate: student, against: teacher"
    with pytest.raises(InputError, match=r"stages\.3\.metric: 'measured' does not measure 'ndcg@7'"):
        real(tmp_path, f"{asked}, min_quality: 0.97, metric: ndcg@7")
    assert real(tmp_path, f"{asked}, min_quality: 0.9, metric: ndcg@7", more="evaluation: {ks: [7]}\n")
    assert real(tmp_path, f"{asked}, min_speedup: 2, metric: ndcg@7"), "the metric is not asked for"
    floor = f"{asked}, max_aa_floor: 0.05"
    assert real(tmp_path, floor)
    with pytest.raises(InputError, match=r"stages\.3\.max_aa_floor: 'measured' measures no A/A floor"):
        real(tmp_path, floor, bench=", aa: false")
