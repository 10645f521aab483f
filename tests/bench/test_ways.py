"""A checkpoint in several ways, from its folder to the report."""

from collections.abc import Mapping
from pathlib import Path

import numpy as np
import pytest

from bench.apart import TakenApart
from bench.candidates import resolve
from bench.report.files import read
from bench.stage import run
from recommender.stage import Bound
from tests.bench.conftest import bench_context
from tests.bench.exported import BATCH, quick, student_bounds


@pytest.fixture(scope="module")
def bounds(tmp_path_factory: pytest.TempPathFactory) -> Mapping[str, Bound]:
    return {"student": student_bounds(tmp_path_factory.mktemp("real"))["student"]}


def test_a_candidate_opens_in_its_way_and_tells_what_that_costs(bounds: Mapping[str, Bound]) -> None:
    candidates = resolve(["student"], {1: bounds}, ["eager", "bf16", "compile"])
    eager, bf16, compiled = (TakenApart(each.ref, device="cpu", threads=1) for each in candidates)
    assert (eager.how, bf16.how, compiled.how) == ("hooks", "hooks", None)
    costs = [each.formulas() for each in (eager, bf16, compiled)]
    assert [(cost["precision"], cost["table_precision"]) for cost in costs if cost] == [
        ("fp32", "fp32"), ("bf16", "fp32"), ("fp32", "fp32"),
    ]  # fmt: skip
    want, found = (each.scorer.top_k(BATCH, 2).scores for each in (eager, bf16))
    assert not np.array_equal(found, want) and np.allclose(found, want, rtol=0.1)
    assert bf16.split([BATCH], k=2, calls=1, seconds=9, rows=9)["parts"]


@pytest.mark.slow
def test_every_way_is_timed_judged_and_reported(bounds: Mapping[str, Bound], tmp_path: Path) -> None:
    context = bench_context(tmp_path, {5: bounds})
    ways = ["eager", "bf16", "compile"]
    run(quick(["student"], torch=ways, batch_sizes=[4]), bounds, context)
    report = read(context.folder)
    assert [each.name for each in report.candidates] == ["student", *(f"student:{way}" for way in ways[1:])]
    assert [each.variant for each in report.candidates] == [None, *ways[1:]]
    assert [each.precision for each in report.candidates] == ["fp32", "bf16", "fp32"]
    assert all(each.failed is None and each.quality and each.latency for each in report.candidates)
    eager, _, compiled = report.candidates
    assert compiled.quality["ndcg@5"] == eager.quality["ndcg@5"], "float32 ranks alike however it is run"
    assert [each.candidate for each in report.comparisons] == [f"student:{way}" for way in ways[1:]]
    roofline = report.sections.roofline
    assert roofline is not None
    assert [row.candidate for row in roofline.rows] == [each.name for each in report.candidates]
    assert set(roofline.missing) == {"student:compile"}
