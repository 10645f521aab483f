import json
from collections.abc import Mapping
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from pydantic import ValidationError

from bench.candidates import resolve
from bench.config import BenchConfig
from bench.report.schema import CandidateReport, Report
from bench.session import _judge
from bench.stage import run
from bench.timing import Timings
from recommender.data.config import EvaluationConfig
from recommender.errors import InputError
from recommender.stage import Bound, Shape
from tests.bench.conftest import bench_context, quick, three_candidates
from tests.bench.fakes import HOSTILE


def by_name(report: Report) -> Mapping[str, CandidateReport]:
    return {each.name: each for each in report.candidates}


def test_every_candidate_is_in_the_report_in_the_order_of_the_recipe(report: Report) -> None:
    assert list(by_name(report)) == ["teacher", "student", "student-onnx", "student-onnx:int8"]
    assert [each.of for each in report.candidates] == [None, "teacher", "student", "student"]
    assert [each.kind for each in report.candidates] == ["checkpoint"] * 2 + ["artifact"] * 2
    assert [each.runtime for each in report.candidates] == ["torch"] * 2 + ["onnxruntime"] * 2


def test_quality_is_that_of_the_ranks(report: Report) -> None:
    found = by_name(report)
    assert found["teacher"].quality["hr@1"] == pytest.approx(3 / 6)
    assert found["student"].quality["mrr"] == pytest.approx(
        np.mean([1 / (r + 1) for r in [4, 4, 3, 2, 2, 1]])
    )
    assert "mrr" not in found["student-onnx"].quality
    assert found["student-onnx"].quality["ndcg@5"] == found["teacher"].quality["ndcg@5"]
    assert [each.seed for each in found["teacher"].quality_by_seed] == report.seeds == [1, 2]


def test_comparisons_are_against_the_first_name_unless_told_otherwise(report: Report) -> None:
    assert [(each.candidate, each.against) for each in report.comparisons] == [
        ("student", "teacher"), ("student-onnx", "teacher"), ("student-onnx:int8", "teacher"),
    ]  # fmt: skip
    student, same, _ = report.comparisons
    assert (student.size_ratio, student.parameter_ratio) == (0.25, 0.25)
    assert student.quality["hr@1"].ratio == 0.0
    assert same.quality["ndcg@5"].model_dump() == {
        "ratio": 1.0, "ci95": (1.0, 1.0), "p_value": 1.0, "aa_half_width": None,  # both seeds are one model
    }  # fmt: skip
    assert "mrr" not in same.quality and same.parameter_ratio is None
    assert [(each.load, each.batch) for each in student.speedup] == [
        ("full", 1), ("full", 4), ("real", 1), ("real", 4),
    ]  # fmt: skip


def test_slices_hold_all_users_and_average_to_the_whole(report: Report) -> None:
    for each in report.candidates:
        for by in ("history", "popularity"):
            parts = [part for part in each.slices if part.by == by]
            assert sum(part.users for part in parts) == report.evaluation.users == 6
            total = sum(part.users * part.quality["ndcg@5"] for part in parts)
            assert total / 6 == pytest.approx(each.quality["ndcg@5"])


def test_what_was_not_measured_is_absent_in_the_file(bench_folder: Path) -> None:
    text = (bench_folder / "run" / "report.json").read_text()
    assert "null" not in text and "NaN" not in text
    teacher, *_, onnx = json.loads(text)["candidates"]
    assert not {"of", "variant", "energy", "failed"} & set(teacher)
    assert not {"parameters", "train"} & set(onnx)
    assert not any({"p95_ms", "p99_ms"} & set(each) for each in teacher["latency"])  # 8 rounds


def test_samples_show_titles_of_the_history_and_of_each_candidate(report: Report) -> None:
    samples = report.sections.samples
    assert samples is not None and len(samples) == 4
    for sample in samples:
        assert [each.candidate for each in sample.suggestions] == list(by_name(report))
        assert sample.history_length in (3, 5)
        assert HOSTILE in sample.history or sample.next == HOSTILE
        teacher = sample.suggestions[0]
        assert teacher.rank is not None and teacher.titles[teacher.rank - 1] == sample.next
    assert any(
        "id5" in sample.history or sample.next == "id5" for sample in samples
    )  # an item without a title


def test_the_plot_has_a_point_with_intervals_for_each_candidate(report: Report) -> None:
    assert report.sections.pareto is not None
    for pareto in report.sections.pareto:
        assert [each.candidate for each in pareto.points] == list(by_name(report))
        assert all(
            p.quality_ci95 and p.quality_ci95[0] <= p.quality <= p.quality_ci95[1] for p in pareto.points
        )
        assert all(p.users_per_second_ci95 is not None for p in pareto.points)


def test_the_report_says_what_ran_and_how_it_was_timed(report: Report) -> None:
    assert (report.recipe, report.variant, report.command) == (
        "tiny-recipe",
        "plain",
        "recpress run tiny-recipe",
    )
    assert (report.dataset.users, report.dataset.items, report.dataset.interactions) == (6, 8, 28)
    notes = report.sections.notes or []
    assert any("in one process of its own" in note for note in notes)
    assert any("pinned to the same cores" in note or "pins no process" in note for note in notes)
    assert any(note.startswith("A/A: teacher in one process against itself") for note in notes)
    assert any(note.startswith("Opening took teacher ") for note in notes)
    assert {each.threads for each in report.candidates} == {1}


def test_every_speedup_stands_beside_the_floor_of_its_own_load_and_batch(report: Report) -> None:
    for comparison in report.comparisons:
        for each in comparison.speedup:
            assert each.aa_floor is not None and each.aa_ci95 is not None
    floors = [[each.aa_floor for each in comparison.speedup] for comparison in report.comparisons]
    assert floors[0] == floors[1] == floors[2], "the reference's, whatever is compared with it"


def test_peak_memory_is_that_of_each_candidates_own_process(report: Report) -> None:
    for each in report.candidates:
        assert each.peak_memory_bytes is not None and 1 << 20 < each.peak_memory_bytes < 1 << 30


def test_the_evidence_beside_the_ratios_is_there(report: Report, bench_folder: Path) -> None:
    assert report.sections.rank_changes is not None
    assert [each.candidate for each in report.sections.rank_changes] == [
        each.candidate for each in report.comparisons
    ]
    assert report.sections.findings
    assert (bench_folder / "run" / "ranks.parquet").is_file()


def test_other_metrics_go_to_stage_json(tmp_path: Path) -> None:
    bounds = three_candidates(tmp_path)
    outputs = run(quick(compare=["student"]), bounds, bench_context(tmp_path, {5: bounds}))
    assert outputs.metrics["quality"]["student"]["hr@1"] == 0.0


def test_against_may_be_any_candidate_and_one_alone_has_no_comparison(tmp_path: Path) -> None:
    from bench.report.files import read

    bounds = three_candidates(tmp_path)
    (tmp_path / "one").mkdir()
    run(
        quick(compare=["student"], loads=["real"], samples=0),
        bounds,
        bench_context(tmp_path / "one", {5: bounds}),
    )
    alone = read(tmp_path / "one" / "run")
    assert alone.comparisons == [] and alone.sections.samples == []
    (tmp_path / "two").mkdir()
    config = quick(compare=["student", "teacher"], against="teacher")
    run(config, bounds, bench_context(tmp_path / "two", {5: bounds}))
    assert [each.candidate for each in read(tmp_path / "two" / "run").comparisons] == ["student"]


def test_lists_that_are_too_short_are_refused_before_anything_is_written(tmp_path: Path) -> None:
    bounds = three_candidates(tmp_path)
    manifest = bounds["student-onnx"].path / "manifest.json"
    manifest.write_text(manifest.read_text().replace('"top_k": 9', '"top_k": 3'))
    context = bench_context(tmp_path, {5: bounds}, evaluation=EvaluationConfig(ks=(5,)))
    with pytest.raises(InputError, match="answers 3 items"):
        run(quick(), bounds, context)
    assert list(context.folder.iterdir()) == []


@pytest.mark.parametrize(
    ("more", "message"),
    [
        ({"compare": []}, "at least 1"),
        ({"compare": ["a", "b", "a"]}, "'a' twice"),
        ({"batch_sizes": [0]}, "greater than or equal to 1"),
        ({"batch_sizes": [4, 4]}, "4 twice"),
        ({"loads": ["fast"]}, "'full' or 'real'"),
        ({"rouns": 3}, "Extra inputs"),
    ],
)
def test_a_wrong_config_is_refused(more: dict[str, object], message: str) -> None:
    with pytest.raises(ValidationError, match=message):
        BenchConfig.model_validate({"compare": ["a"], **more})


def test_against_must_be_compared() -> None:
    known: dict[str, Shape] = {}
    assert BenchConfig(compare=("teacher", "student"), against="student").problems(known) == []
    field, message = BenchConfig(compare=("teacher", "student"), against="techer").problems(known)[0]
    assert field == "against" and "did you mean 'teacher'" in message


def test_the_stage_reads_what_it_compares_and_pools_seeds() -> None:
    config = BenchConfig(compare=("a", "b"))
    assert config.consumes == ("a", "b") and config.produces is None and config.pools_seeds


def test_inputs_are_enough_where_no_seeds_are_given(tmp_path: Path) -> None:
    bounds: dict[str, Bound] = three_candidates(tmp_path)
    context = bench_context(tmp_path, {5: {}})
    object.__setattr__(context, "by_seed", {})
    run(quick(compare=["teacher"]), bounds, context)
    assert json.loads((context.folder / "report.json").read_text())["seeds"] == [5]


def test_depth_profiles_that_are_named_stand_in_the_report(tmp_path: Path) -> None:
    from bench.report.files import read

    profile = {
        "of": "teacher", "blocks": 1, "users": 3, "seed": 5, "block_influence": [0.5], "cuts": [],
        "greedy": [], "validation_loss": 1.0, "depths": [],
    }  # fmt: skip
    folder = tmp_path / "profile"
    folder.mkdir()
    (folder / "profile.json").write_text(json.dumps(profile))
    found = three_candidates(tmp_path)
    found["depths"] = Bound("depths", "profile", folder, folder)
    context = bench_context(tmp_path, {5: found, 6: found})
    config = quick(compare=["teacher"], profiles=["depths"], loads=["real"], aa=False)
    assert config.consumes == ("teacher", "depths")
    run(config, found, context)
    shown = read(context.folder).sections.depth_profile
    assert shown is not None
    assert [each.block_influence for each in shown] == [[0.5]], "once, though two seeds share it"


def test_a_sample_of_users_is_called_one(tmp_path: Path) -> None:
    found = three_candidates(tmp_path)
    context = bench_context(tmp_path, {5: found})
    run(quick(compare=["teacher", "student"], users=4, loads=["real"], aa=False), found, context)
    said = json.loads((context.folder / "report.json").read_text())["evaluation"]
    assert said["users"] == 4 and said["drawn_from"] > 4
    assert (
        f"4 (drawn at random) of {said['drawn_from']} test users"
        in (context.folder / "report.md").read_text()
    )


def test_the_threads_of_later_stages_are_not_those_of_the_bench(tmp_path: Path) -> None:
    import torch

    found = three_candidates(tmp_path)
    ref = replace(found["teacher"].scorers[0], opener="tests.bench.scorers:open_with_threads")
    candidates = resolve(["teacher"], {5: {"teacher": replace(found["teacher"], scorers=(ref,))}})
    nothing: dict[str, Any] = {
        "opening_seconds": {}, "warming_seconds": {}, "restless": {}, "called_ns": {}, "waited_ns": {},
        "peaks": {}, "devices": {}, "cells": [], "failures": {}, "twin_failed": None, "cores": None,
    }  # fmt: skip
    before = torch.get_num_threads()
    evidence = _judge(
        candidates, Timings(threads=1, **nothing), bench_context(tmp_path, {5: found}), threads=before + 1
    )
    assert list(evidence.judged) == ["teacher"]
    assert torch.get_num_threads() == before


def test_the_report_says_where_the_candidates_come_from(report: Report) -> None:
    origin = report.sections.provenance
    assert origin is not None and origin.data_digest == "d"
    assert {"teacher (seed 1)", "student (seed 2)"} <= set(origin.digests)


@pytest.mark.parametrize(
    ("ways", "said"),
    [
        (["bf16"], "has to begin with eager"),
        (["eager", "bf16", "bf16"], "twice"),
        ([], "at least 1"),
        (["eager", "fp8"], "'compile-bf16'"),
    ],
)
def test_ways_to_run_checkpoints_are_checked_when_the_recipe_is_read(ways: list[str], said: str) -> None:
    with pytest.raises(ValidationError, match=said):
        BenchConfig.model_validate({"compare": ["a"], "torch": ways})


def test_a_way_of_a_gpu_is_refused_on_a_processor_before_anything_is_opened(tmp_path: Path) -> None:
    found = three_candidates(tmp_path)
    context = bench_context(tmp_path, {5: found})
    with pytest.raises(InputError, match="needs CUDA"):
        run(quick(torch=["eager", "graphs"]), found, context)
    assert not list(context.folder.iterdir())
