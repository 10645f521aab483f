"""Ranks that benches left behind: what is written, read again, and joined by data set."""

import json
import runpy
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import numpy as np
import polars as pl
import pytest

from bench.quality import Judged, write_ranks
from bench.ranks import join, read_ranks
from bench.report.files import write
from recommender.errors import InputError
from tests.bench.judging import judged
from tests.bench.reports import candidate, report

SCRIPT = Path(__file__).parents[2] / "docs" / "results" / "scripts" / "pooled.py"

TEACHER = judged({1: [0, 3, 20, 0], 2: [0, 5, 20, 1]})
STUDENT = judged({1: [0, 3, -1, 4], 2: [1, 1, -1, 0]}, depth=10)


def left_behind(
    folder: Path, models: Mapping[str, Judged], *, dataset: str = "tiny", **evaluation: Any
) -> Path:
    """A run folder whose bench left the ranks of these models."""
    bench = folder / "stages" / "04-bench"
    bench.mkdir(parents=True)
    write_ranks(models, bench)
    named = [candidate(name, quality=each.quality) for name, each in models.items()]
    made = report(candidates=named, comparisons=[])
    write(
        made.model_copy(
            update={
                "dataset": made.dataset.model_copy(update={"name": dataset}),
                "evaluation": made.evaluation.model_copy(update=evaluation),
            }
        ),
        bench,
    )
    return folder


def test_one_row_per_candidate_seed_and_user(tmp_path: Path) -> None:
    file = write_ranks({"teacher": TEACHER, "student": STUDENT}, tmp_path)
    table = pl.read_parquet(file)
    assert file.name == "ranks.parquet" and table.columns == ["user", "target", "candidate", "seed", "rank"]
    assert table.height == 2 * 2 * 4
    found = table.filter(pl.col("candidate") == "student", pl.col("seed") == 1)
    assert found["rank"].to_list() == [0, 3, -1, 4]
    assert found["user"].to_list() == STUDENT.users.tolist()
    assert found["target"].to_list() == STUDENT.targets.tolist()


@pytest.mark.parametrize("metric", ["hr@1", "hr@10", "ndcg@10"])
def test_metrics_read_again_are_those_of_the_bench(tmp_path: Path, metric: str) -> None:
    found = read_ranks(left_behind(tmp_path, {"teacher": TEACHER, "student": STUDENT}), metric)
    for name, each in {"teacher": TEACHER, "student": STUDENT}.items():
        assert np.array_equal(found.mean_of(name), each.per_user[metric])
        for seed, values in found.of(name).items():
            assert np.array_equal(values, each.metrics_by_seed[seed][metric])


def test_a_metric_that_lists_cannot_tell_is_read_of_exact_ranks_only(tmp_path: Path) -> None:
    found = read_ranks(left_behind(tmp_path, {"teacher": TEACHER, "student": STUDENT}), "mrr")
    assert np.array_equal(found.mean_of("teacher"), TEACHER.per_user["mrr"])
    with pytest.raises(InputError, match=r"mrr of 'student' was not measured on tiny \(valid: teacher\)"):
        found.of("student")


def test_a_bench_folder_may_be_named_itself(tmp_path: Path) -> None:
    left_behind(tmp_path, {"teacher": TEACHER})
    assert list(read_ranks(tmp_path / "stages" / "04-bench", "hr@1").values) == ["teacher"]


def test_runs_of_one_data_set_are_joined(tmp_path: Path) -> None:
    other_seed = judged({3: [9, 9, 9, 9]})
    runs = [
        left_behind(tmp_path / "a", {"teacher": TEACHER}),
        left_behind(tmp_path / "b", {"student": STUDENT, "teacher": other_seed}),
        left_behind(tmp_path / "c", {"teacher": TEACHER}, dataset="other"),
    ]
    tiny, other = join([read_ranks(run, "hr@10") for run in runs])
    assert (tiny.dataset, other.dataset) == ("tiny", "other")
    assert sorted(tiny.of("teacher")) == [1, 2, 3] and sorted(tiny.of("student")) == [1, 2]
    assert sorted(other.values) == ["teacher"]
    assert len(tiny.folders) == 2


def test_the_same_model_in_two_runs_counts_once(tmp_path: Path) -> None:
    runs = [left_behind(tmp_path / name, {"teacher": TEACHER}) for name in "ab"]
    (found,) = join([read_ranks(run, "hr@10") for run in runs])
    assert sorted(found.of("teacher")) == [1, 2]


def test_one_name_for_two_models_is_refused_until_one_is_renamed(tmp_path: Path) -> None:
    one = left_behind(tmp_path / "a", {"student": judged({1: [0, 0, 0, 0]})})
    other = left_behind(tmp_path / "b", {"student": judged({1: [0, 0, 0, 99]})})
    with pytest.raises(InputError, match="'student' with seed 1 is another model") as raised:
        join([read_ranks(run, "hr@10") for run in (one, other)])
    assert "RUN:student=OTHER-NAME" in str(raised.value)
    (found,) = join([read_ranks(one, "hr@10"), read_ranks(other, "hr@10", {"student": "small"})])
    assert sorted(found.values) == ["small", "student"]


def test_a_name_that_is_taken_is_not_given_twice(tmp_path: Path) -> None:
    run = left_behind(tmp_path, {"teacher": TEACHER, "student": STUDENT})
    with pytest.raises(InputError, match="two candidates would have the name 'teacher'"):
        read_ranks(run, "hr@10", {"student": "teacher"})
    swapped = read_ranks(run, "hr@10", {"student": "teacher", "teacher": "student"})
    assert np.array_equal(swapped.mean_of("student"), TEACHER.per_user["hr@10"])


@pytest.mark.parametrize(
    ("other", "evaluation", "said"),
    [
        (TEACHER, {"ties": "by-row"}, "differ in ties"),
        (TEACHER, {"sampled_negatives": 99}, "differ in sampled_negatives"),
        (judged({1: [0, 3]}), {}, "differ in their users"),
    ],
)
def test_runs_that_evaluated_differently_are_not_joined(
    tmp_path: Path, other: Judged, evaluation: dict[str, Any], said: str
) -> None:
    one = left_behind(tmp_path / "a", {"teacher": TEACHER})
    two = left_behind(tmp_path / "b", {"student": other}, **evaluation)
    with pytest.raises(InputError, match=said):
        join([read_ranks(run, "hr@10") for run in (one, two)])


def test_wrong_runs_metrics_and_names_are_told(tmp_path: Path) -> None:
    run = left_behind(tmp_path / "a", {"teacher": TEACHER})
    with pytest.raises(InputError, match=r"holds no ranks\.parquet"):
        read_ranks(tmp_path / "nothing", "hr@10")
    with pytest.raises(InputError, match="'hr@11' was not measured"):
        read_ranks(run, "hr@11")
    with pytest.raises(InputError, match=r"no candidate 'techer' \(did you mean 'teacher'"):
        read_ranks(run, "hr@10", {"techer": "big"})
    (run / "stages" / "04-bench").rename(run / "stages" / "05-bench")
    left_behind(run, {"teacher": TEACHER})
    with pytest.raises(InputError, match="ranks of 2 benches"):
        read_ranks(run, "hr@10")


def pooled(*arguments: str) -> int:
    code: int = runpy.run_path(str(SCRIPT))["main"](arguments)
    return code


def test_the_script_pools_data_sets_and_keeps_a_row(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    rng = np.random.default_rng(0)
    runs = []
    for name in ("films", "games"):
        exact = {seed: rng.integers(0, 12, 300) for seed in (1, 2)}
        models = {
            "teacher": judged({s: r.tolist() for s, r in exact.items()}),
            "student": judged({s: np.where(rng.random(300) < 0.3, 99, r).tolist() for s, r in exact.items()}),
        }
        runs.append(str(left_behind(tmp_path / name, models, dataset=name)))
    out = tmp_path / "pooled.jsonl"
    command = [*runs, "--candidate", "student", "--against", "teacher", "--draws", "200", "--out", str(out)]
    assert pooled(*command, "--also-against", "student") == 0
    first, second = (json.loads(line) for line in out.read_text().splitlines())
    assert (first["non_inferior"], second["non_inferior"]) == (False, True)
    assert [each["name"] for each in first["datasets"]] == ["films", "games"]
    ratios = [each["ratio"] for each in first["datasets"]]
    assert first["mean"]["ratio"] == pytest.approx(np.mean(ratios)) and 0.6 < first["mean"]["ratio"] < 0.8
    assert first["mean"]["aa_half_width"] < first["datasets"][0]["aa_half_width"]
    assert second["mean"]["ratio"] == 1.0 and first["all users"]["ci95"][0] < first["all users"]["ratio"]
    assert str(tmp_path) not in out.read_text()
    shown = capsys.readouterr().out
    assert "not shown to be non-inferior" in shown and "| films | 300 | 2 / 2 |" in shown


def test_the_script_refuses_what_it_cannot_read(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    run, out = str(left_behind(tmp_path / "a", {"teacher": TEACHER})), tmp_path / "pooled.jsonl"
    assert pooled(run, "--candidate", "studnt", "--against", "teacher", "--out", str(out)) == 2
    assert "'studnt' was not measured on tiny" in capsys.readouterr().err
    assert not out.exists()
    renamed = f"{run}:teacher=big"
    given = [renamed, "--candidate", "big", "--against", "big", "--metric", "hr@10", "--draws", "100"]
    assert pooled(*given, "--out", str(out)) == 0
    assert json.loads(out.read_text())["mean"]["ratio"] == 1.0
