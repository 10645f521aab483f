"""The stage `gate`: what it refuses before anything runs, and what it makes of a report."""

from pathlib import Path
from typing import Any

import pytest

from bench.config import BenchConfig
from bench.gate_stage import GateConfig, run
from bench.report.files import write
from recommender.errors import GateError, InputError
from recommender.files import read_json
from recommender.stage import Bound, Context, Shape
from tests.bench.conftest import bench_context
from tests.bench.reports import comparison, faster, report


def config(**more: Any) -> GateConfig:
    given = {"of": "measured", "candidate": "student", "against": "teacher", "min_quality": 0.97}
    return GateConfig.model_validate({**given, **more})


def carried_out(folder: Path, asked: GateConfig, *, speedup: float = 6.0) -> Context:
    """The stage run on a report with this lower bound of the speed-up; where it wrote."""
    measured = folder / "measured"
    measured.mkdir()
    cell = faster(speedup, (speedup, speedup))
    write(report(comparisons=[comparison(speedup=[cell])]), measured)
    bound = Bound("measured", "report", measured, measured)
    context = bench_context(folder, {1: {"measured": bound}})
    outputs = run(asked, {"measured": bound}, context)
    assert read_json(context.folder / "gate.json")["verdicts"] == outputs.metrics["verdicts"]
    return context


def test_an_open_gate_leaves_its_verdicts(tmp_path: Path) -> None:
    context = carried_out(tmp_path, config(min_speedup=5))
    written = read_json(context.folder / "gate.json")
    assert [each["holds"] for each in written["verdicts"]] == [True, True]
    assert written["demand"]["min_speedup"] == 5 and "of" not in written["demand"]


def test_a_shut_gate_says_which_bound_did_not_hold_and_leaves_nothing(tmp_path: Path) -> None:
    with pytest.raises(GateError, match=r"speed-up.*lower bound 4.90x, asked >= 5.00x") as raised:
        carried_out(tmp_path, config(min_speedup=5), speedup=4.9)
    assert raised.value.exit_code == 1
    assert "NDCG@10" not in str(raised.value)
    assert list((tmp_path / "run").iterdir()) == []


def test_a_question_without_an_answer_is_wrong_input(tmp_path: Path) -> None:
    with pytest.raises(InputError, match="'ndcg@20' was not measured"):
        carried_out(tmp_path, config(metric="ndcg@20"))


def known(**more: Any) -> dict[str, Shape]:
    """What the recipe check knows of a bench in front of the gate."""
    bench = BenchConfig.model_validate(
        {"as": "measured", "compare": ["teacher", "student", "onnx"], "batch_sizes": [1, 32], **more}
    )
    shape = bench.shape({})
    assert bench.produces == "measured" and shape is not None
    return {"measured": shape}


@pytest.mark.parametrize(
    ("more", "field", "said"),
    [
        ({"candidate": "studnet"}, "candidate", "does not compare 'studnet' (did you mean 'student'?)"),
        ({"against": "techer"}, "against", "did you mean 'teacher'"),
        ({"against": "onnx"}, "against", "holds everything against 'teacher', not 'onnx'"),
        ({"min_speedup": 2, "batch": 8}, "batch", "times no batch of 8, only of 1, 32"),
    ],
)
def test_what_the_bench_will_not_measure_is_told_before_anything_runs(
    more: dict[str, Any], field: str, said: str
) -> None:
    ((at, message),) = config(**more).problems(known())
    assert at == field and said in message


def test_a_load_that_the_bench_leaves_out_is_told() -> None:
    asked = config(min_speedup=2)
    assert asked.problems(known()) == []
    assert asked.problems(known(loads=["full"])) == [("load", "'measured' has no load 'real', only full")]


def test_a_floor_that_the_bench_does_not_measure_is_told() -> None:
    asked = config(max_aa_floor=0.05)
    assert asked.problems(known()) == []
    assert [field for field, _ in asked.problems(known(aa=False))] == ["max_aa_floor"]


def test_a_variant_of_an_artifact_and_an_unasked_batch_are_no_problems() -> None:
    assert config(candidate="onnx:int8", batch=7).problems(known()) == []


def test_every_seed_with_a_report_of_its_own_decides(tmp_path: Path) -> None:
    by_seed = {}
    for seed, bound in ((1, 6.0), (2, 4.9)):
        folder = tmp_path / f"m-{seed}"
        write(report(comparisons=[comparison(speedup=[faster(bound, (bound, bound))])]), folder)
        by_seed[seed] = {"measured": Bound("measured", "report", folder, folder)}
    context = bench_context(tmp_path, by_seed)
    with pytest.raises(GateError, match=r"may not go on: seed 2: speed-up.*lower bound 4.90x"):
        run(config(min_speedup=5), by_seed[1], context)
    outputs = run(config(min_speedup=4), by_seed[1], context)
    said = [each["what"].partition(",")[0] for each in outputs.metrics["verdicts"]]
    assert said == ["seed 1: NDCG@10 kept", "seed 1: speed-up", "seed 2: NDCG@10 kept", "seed 2: speed-up"]


def test_a_report_of_which_nothing_is_known_is_read_when_its_turn_comes() -> None:
    assert config(candidate="anything").problems({"measured": Shape("report")}) == []


def test_the_stage_reads_one_report_and_makes_nothing() -> None:
    asked = config()
    assert asked.consumes == ("measured",) and asked.produces is None
    assert asked.accepts == ("report",) and asked.pools_seeds and not asked.keeps
