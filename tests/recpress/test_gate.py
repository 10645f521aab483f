"""The gate from the outside: the verb with its exit codes, and a recipe that stops where it is shut."""

import json
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
    cell = faster(config.bound, (config.bound, config.bound))
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
    assert {step.status for step in go(tmp_path).steps} == {"cached"}


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


def test_a_gate_may_read_a_report_that_exists_already(tmp_path: Path, measured: Path) -> None:
    other = tmp_path / "other"
    measured.rename(other)
    text = RECIPE.replace("stages:", f"inputs: {{measured: {other}}}\nstages:")
    text = "\n".join(line for line in text.splitlines() if "stage: measure" not in line)
    assert [step.status for step in go(tmp_path, text=text).steps] == ["done"] * 5
    (other / "notes.txt").write_text("whatever else lies in the run folder has no say")
    assert {step.status for step in go(tmp_path, text=text).steps} == {"cached"}
    write(report(comparisons=[comparison(speedup=[faster(4.0, (3.9, 4.1))])]), other)
    with pytest.raises(GateError):
        go(tmp_path, text=text)


def test_only_a_report_can_be_gated(tmp_path: Path) -> None:
    with pytest.raises(InputError, match="'big' is a checkpoint, but this stage needs a report"):
        go(tmp_path, "stages.gate.of=big")
    with pytest.raises(InputError, match="'measured' is a report, but this stage needs a checkpoint"):
        go(tmp_path, "stages.packed.of=measured")


def real(tmp_path: Path, gate: str) -> Any:
    """The check of a recipe with the real stages."""
    file = tmp_path / "recipe.yaml"
    file.write_text(
        "name: x\ndata: {source: synthetic}\nstages:\n"
        "  - {stage: train, as: teacher, model: {kind: sasrec}}\n"
        "  - {stage: train, as: student, model: {kind: sasrec}}\n"
        "  - {stage: bench, as: measured, compare: [teacher, student]}\n"
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
