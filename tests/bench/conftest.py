"""One bench of three fakes over the tiny log, run once: a perfect, a poor and an exported recommender."""

from collections.abc import Mapping
from pathlib import Path

import pytest

from bench.config import BenchConfig
from bench.report.files import read
from bench.report.schema import Report
from bench.stage import run
from recommender.data.config import DataConfig, EvaluationConfig
from recommender.stage import Bound, Context
from tests.bench.fakes import artifact, checkpoint, tiny_log

UP, DOWN = list(range(1, 9)), list(range(8, 0, -1))


@pytest.fixture(scope="session", autouse=True)
def _traces(shared_traces: None) -> None:
    """Before the first export."""


def bench_context(
    folder: Path, by_seed: Mapping[int, Mapping[str, Bound]], *, evaluation: EvaluationConfig | None = None
) -> Context:
    """A context over the tiny log that writes to `folder / run`."""
    (folder / "run").mkdir()
    return Context(
        prepared=tiny_log(folder / "prepared"),
        data=DataConfig(source="synthetic", max_length=4),
        evaluation=evaluation or EvaluationConfig(ks=(1, 2, 5)),
        seed=next(iter(by_seed)),
        device="cpu",
        folder=folder / "run",
        scratch=folder,
        by_seed=by_seed,
        recipe={"name": "tiny-recipe"},
        variant="plain",
        command="recpress run tiny-recipe",
        threads=1,
    )


def three_candidates(folder: Path) -> dict[str, Bound]:
    """teacher ranks 1..8, student 8..1, student-onnx like the teacher, in two variants."""
    return {
        "teacher": checkpoint(folder / "teacher", "teacher", UP, parameters=4000),
        "student": checkpoint(folder / "student", "student", DOWN, of="teacher", parameters=1000),
        "student-onnx": artifact(
            folder / "onnx", "student-onnx", UP, of="student", variants=("fp32", "int8")
        ),
    }


def quick(**more: object) -> BenchConfig:
    """A bench of all three that takes no time."""
    given = {
        "compare": ["teacher", "student", "student-onnx"],
        "batch_sizes": [1, 4],
        "rounds": 8,
        "draws": 200,
    }
    return BenchConfig.model_validate({**given, **more})


@pytest.fixture(scope="session")
def bench_folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The folder that a bench of two seeds left behind (`run/` holds the report)."""
    folder = tmp_path_factory.mktemp("bench")
    by_seed = {seed: three_candidates(folder / f"seed{seed}") for seed in (1, 2)}
    context = bench_context(folder, by_seed)
    run(quick(), by_seed[1], context)
    return folder


@pytest.fixture(scope="session")
def report(bench_folder: Path) -> Report:
    """Its report, as read from report.json."""
    return read(bench_folder / "run")
