"""The roofline as it is measured: children that are asked, and a bench from end to end."""

import json
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any

import pytest

from bench import roofline as subject
from bench.child import Child, ChildFailed, as_plain
from bench.report.files import read
from bench.report.roofline_parts import PARTS, Roofline, RooflineRow
from bench.report.schema import Report
from bench.stage import run
from recommender.cost import CostFormulas
from recommender.stage import Bound
from tests.bench.conftest import bench_context, three_candidates
from tests.bench.exported import BATCH, quick, student_bounds

PATIENT = 120.0


@pytest.fixture(scope="module")
def bounds(tmp_path_factory: pytest.TempPathFactory) -> Mapping[str, Bound]:
    return student_bounds(tmp_path_factory.mktemp("real"))


@pytest.fixture(scope="module")
def report(bounds: Mapping[str, Bound], tmp_path_factory: pytest.TempPathFactory) -> Report:
    """A bench of all three with a roofline."""
    folder = tmp_path_factory.mktemp("bench")
    run(quick(list(bounds)), bounds, bench_context(folder, {5: bounds}))
    return read(folder / "run")


@pytest.fixture
def roofline(report: Report) -> Roofline:
    assert report.sections.roofline is not None
    return report.sections.roofline


def rows_of(roofline: Roofline, name: str) -> list[RooflineRow]:
    return [row for row in roofline.rows if row.candidate == name]


def test_every_candidate_has_a_row_per_batch(roofline: Roofline, report: Report) -> None:
    assert [(row.candidate, row.batch) for row in roofline.rows] == [
        (name, batch) for name in ("student", "known", "unknown") for batch in (1, 4)
    ]
    for each in report.candidates:
        times = [row.time_ms for row in rows_of(roofline, each.name)]
        assert times == [pytest.approx(entry.p50_ms) for entry in each.latency]


def test_checkpoint_and_artifact_of_one_model_have_the_same_work(roofline: Roofline) -> None:
    for ours, theirs in zip(rows_of(roofline, "student"), rows_of(roofline, "known"), strict=True):
        assert (ours.flops, ours.bytes, ours.bound_ms) == (theirs.flops, theirs.bytes, theirs.bound_ms)
        assert ours.bound_ms == max(ours.compute_ms or 0, ours.bandwidth_ms or 0) > 0
        assert ours.share_of_bound == pytest.approx(ours.bound_ms / ours.time_ms)


def test_the_time_is_shared_out_whole(roofline: Roofline) -> None:
    for row in roofline.rows:
        assert row.split_by == ("hooks" if row.candidate == "student" else "profile")
        assert sum(part.share or 0 for part in row.parts) == pytest.approx(1)
        assert sum(part.time_ms or 0 for part in row.parts) == pytest.approx(row.time_ms)
        names = [part.part for part in row.parts if part.share]
        assert names == [name for name in PARTS if name in names]
        assert {"blocks", "scoring", "top_k"} <= set(names)
        assert ("copies" in names) == (row.candidate != "student")


def test_products_of_the_blocks_stand_beside_the_peak_of_their_shapes(roofline: Roofline) -> None:
    assert all(row.products is None for row in rows_of(roofline, "student"))
    known, unknown = rows_of(roofline, "known")[1], rows_of(roofline, "unknown")[1]
    assert known.products is not None and unknown.products is not None
    own = [trial for trial in roofline.machine.trials if trial.shape in ((16, 16, 16), (16, 16, 32))]
    assert known.products.share_of_peak == pytest.approx(
        known.products.flops_per_second / max(trial.best for trial in own)
    )
    assert unknown.products.share_of_peak is None


def test_an_artifact_without_formulas_is_taken_apart_and_says_what_is_not_known(roofline: Roofline) -> None:
    assert list(roofline.missing) == ["unknown"]
    assert "has no cost formulas" in roofline.missing["unknown"]
    for row in rows_of(roofline, "unknown"):
        assert row.flops is None and row.bound_ms is None and row.parts
        assert set(row.model_dump(exclude_none=True)) == {
            "candidate", "load", "batch", "threads", "time_ms", "split_by", "parts", "products",
        }  # fmt: skip


def test_the_machine_is_measured_before_the_candidates_and_after_each(roofline: Roofline) -> None:
    machine = roofline.machine
    assert machine.buffer_bytes == 1 << 18 and machine.threads == 1
    assert {trial.samples for trial in machine.trials if trial.what == "bandwidth"} == {4}
    square = [trial for trial in machine.trials if trial.shape == (16, 16, 16)]
    assert {trial.library for trial in square} == {"numpy", "torch", "onnxruntime"}
    assert machine.gemm == max(trial.best for trial in machine.trials if trial.what == "gemm")


def test_each_candidate_has_its_reason_in_words(roofline: Roofline, report: Report) -> None:
    assert [each.candidate for each in roofline.reasons] == ["student", "known", "unknown"]
    assert all("At batch 1 (full histories)" in each.text for each in roofline.reasons)


def test_a_bench_that_was_not_asked_has_no_roofline(bench_folder: Path) -> None:
    assert "roofline" not in json.loads((bench_folder / "run" / "report.json").read_text())["sections"]


def test_scorers_that_nobody_can_look_into_are_named(tmp_path: Path) -> None:
    found = three_candidates(tmp_path)
    context = bench_context(tmp_path, {5: found})
    run(quick(["teacher", "student-onnx"]), found, context)
    section = read(context.folder).sections.roofline
    assert section is not None and section.rows == [] and section.reasons == []
    assert list(section.missing) == ["teacher", "student-onnx", "student-onnx:int8"]
    assert all(text.endswith(subject.NO_SPLIT) for text in section.missing.values())
    page = (context.folder / "report.md").read_text()
    assert "The machine at its best" in page and "Against the machine" not in page


@pytest.fixture
def child() -> Iterator[Child]:
    made = Child("x", threads=1, cores=())
    yield made
    made.end()


def ask(child: Child, **order: Any) -> Mapping[str, Any]:
    return child.ask(order, seconds=PATIENT, doing="in a test")


def test_a_child_tells_of_a_checkpoint_and_ends_early_but_not_below_three_calls(
    child: Child, bounds: Mapping[str, Bound]
) -> None:
    (ref,) = bounds["student"].scorers
    said = ask(child, order="trace", ref=as_plain(ref), device="cpu", threads=1)
    assert said["how"] == "hooks"
    assert CostFormulas.model_validate(said["formulas"]).rows == 9
    child.load([BATCH], seconds=PATIENT)
    found = ask(child, order="split", k=2, calls=5, seconds=PATIENT, rows=9)
    assert len(found["plain_ns"]) == len(found["parts"]) == 5 and found["products"] is None
    assert all(call["blocks"] > 0 for call in found["parts"])
    early = ask(child, order="split", k=2, calls=1000, seconds=1e-9, rows=9)
    assert len(early["plain_ns"]) == len(early["parts"]) == 3
    assert len(ask(child, order="split", k=2, calls=1, seconds=1e-9, rows=9)["plain_ns"]) == 1


def test_a_child_without_a_candidate_says_so(child: Child) -> None:
    with pytest.raises(ChildFailed, match="no candidate is open to be taken apart"):
        ask(child, order="split", k=2, calls=1, seconds=1, rows=9)


def test_a_child_measures_the_machine_without_a_candidate(child: Child) -> None:
    order = {"threads": 1, "buffer_bytes": 4096, "shapes": [[4, 4, 4]], "repeats": 2}
    trials = ask(child, order="machine", **order)["trials"]
    assert {(trial["what"], trial["library"]) for trial in trials} == {
        ("bandwidth", "numpy"), ("bandwidth", "torch"), ("gemm", "numpy"), ("gemm", "torch"),
        ("gemm", "onnxruntime"),
    }  # fmt: skip
    assert all(len(trial["rates"]) == 2 and min(trial["rates"]) > 0 for trial in trials)


@pytest.mark.parametrize("more", [{"calls": 0}, {"seconds": 0}, {"repeats": 0}, {"square": 1}, {"cals": 3}])
def test_wrong_settings_are_refused(more: dict[str, Any]) -> None:
    with pytest.raises(ValueError, match="roofline"):
        quick(["a"], roofline=more)
