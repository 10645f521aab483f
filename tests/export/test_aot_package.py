"""Real packages: one that is compiled here, for this machine. Slow, as a compiler takes its time."""

import dataclasses
import json
import os
import re
import shutil
import subprocess
import sys
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch

from export.aot_build import AotConfig, require_compiler
from export.config import ExportConfig
from export.runtime import Artifact
from export.stage import run
from export.verify import verify_artifact
from recommender.checkpoint import save_checkpoint
from recommender.data.prepared import Prepared
from recommender.errors import InputError
from recommender.models.interface import SequentialRecommender
from recommender.scoring import HistoryArrays
from recommender.stage import Bound, Outputs
from tests.export.fixtures import MAX_LENGTH, MODELS, N_ITEMS, TOP_K, left_padded, make_artifact, tiny_model
from tests.recommender.fixtures import context_for


def compiler_is_missing() -> bool:
    try:
        require_compiler()
    except InputError:
        return True
    return False


pytestmark = [
    pytest.mark.slow,
    pytest.mark.skipif(compiler_is_missing(), reason="no C++ compiler: apt-get install g++"),
]


@pytest.fixture(scope="module")
def done(
    tmp_path_factory: pytest.TempPathFactory, sasrec: SequentialRecommender, prepared: Prepared
) -> tuple[Path, Outputs]:
    """The stage, run once with both variants: the artifact and what it reported."""
    folder = tmp_path_factory.mktemp("compiled")
    save_checkpoint(sasrec, folder / "checkpoint", prepared=prepared, model_config=MODELS["sasrec"])
    student = Bound("student", "checkpoint", folder / "checkpoint", folder)
    (folder / "run").mkdir()
    context = dataclasses.replace(context_for(prepared, folder / "run", max_length=MAX_LENGTH), threads=1)
    given = {
        "of": "student", "as": "onnx", "top_k": TOP_K, "variants": ["aot", "aot-bf16"],
        "parity": {"users": 20, "max_ndcg_change": 0.05},
    }  # fmt: skip
    outputs = run(ExportConfig.model_validate(given), {"student": student}, context)
    return context.folder / "artifact", outputs


@pytest.fixture
def artifact(done: tuple[Path, Outputs]) -> Path:
    return done[0]


def opened(folder: Path, name: str, **options: Any) -> Artifact:
    return Artifact(folder, variant=name, threads=1, verify=False, **options)


def test_the_stage_proves_both_and_serves_neither_by_itself(done: tuple[Path, Outputs]) -> None:
    folder, outputs = done
    found = outputs.metrics["variants"]
    assert outputs.metrics["default_variant"] == "fp32"
    assert found["aot"]["parity"]["max_score_error"] < 1e-4
    assert 0 < found["aot-bf16"]["parity"]["max_score_error"] < 0.03
    told = {each["name"]: each for each in json.loads((folder / "manifest.json").read_text())["variants"]}
    assert told["aot"]["compiled"]["metadata"]["AOTI_DEVICE_KEY"] == "cpu"
    assert "AOTI_CPU_ISA" in told["aot"]["compiled"]["metadata"]


@pytest.mark.parametrize(("users", "length"), [(1, 1), (1, MAX_LENGTH), (3, 7), (32, MAX_LENGTH)])
def test_one_package_serves_every_shape(artifact: Path, users: int, length: int) -> None:
    items, seen = left_padded(users, length), left_padded(users, 4, seed=2)
    exact, same, half = (opened(artifact, name).run(items, seen) for name in ("fp32", "aot", "aot-bf16"))
    np.testing.assert_array_equal(same.items, exact.items)
    np.testing.assert_allclose(same.scores, exact.scores, rtol=1e-4, atol=1e-6)
    assert np.abs(half.scores - exact.scores).max() < 0.03 * np.abs(exact.scores).max()
    assert half.scores.dtype == np.float32 and not (half.items[:, :, None] == seen[:, None]).any()


@pytest.mark.parametrize("name", ["aot", "aot-bf16"])
def test_padding_changes_nothing(artifact: Path, name: str) -> None:
    bare, seen = np.array([[7, 3, 9]]), np.zeros((1, 1), np.int64)
    padded = np.pad(bare, ((0, 0), (MAX_LENGTH - 3, 0)))
    one, other = (opened(artifact, name).run(items, seen) for items in (bare, padded))
    np.testing.assert_array_equal(one.items, other.items)
    np.testing.assert_allclose(one.scores, other.scores, rtol=1e-4 if name == "aot" else 0.02)


def test_equal_scores_stand_by_row(tmp_path: Path, prepared: Prepared) -> None:
    folder = make_artifact(tiny_model("popularity"), tmp_path / "artifact", prepared, variants=("aot",))
    best = opened(folder, "aot").run(np.array([[2], [5]]), np.zeros((2, 1), np.int64))
    counts = np.arange(N_ITEMS, -1, -1) // 3  # of `tiny_model`: ties of three rows each
    rows = np.argsort(-counts[1:], kind="stable")[:TOP_K] + 1
    assert best.items.tolist() == [rows.tolist()] * 2


def test_fewer_items_left_than_a_list_holds_end_in_nothing(artifact: Path) -> None:
    seen = np.arange(1, N_ITEMS - 2)[None]
    best = opened(artifact, "aot").run(np.array([[1]]), seen)
    assert best.items[0].tolist()[3:] == [0] * (TOP_K - 3) and (best.items[0][:3] >= N_ITEMS - 2).all()


def test_golden_requests_are_answered_and_digests_hold(artifact: Path) -> None:
    assert verify_artifact(artifact, variant="aot").max_score_difference < 1e-3
    verify_artifact(artifact, variant="aot-bf16")


def test_several_threads_share_an_open_package(artifact: Path) -> None:
    package, histories = (
        opened(artifact, "aot"),
        [HistoryArrays(left_padded(5, 9, seed=i)) for i in range(16)],
    )
    alone = [package.top_k(history, 5) for history in histories]
    with ThreadPoolExecutor(4) as pool:
        together = list(pool.map(lambda history: package.top_k(history, 5), histories))
    for one, other in zip(alone, together, strict=True):
        np.testing.assert_array_equal(one.items, other.items)


GUIDE = Path(__file__).parents[2] / "docs" / "aot.md"
TOOLS = ("bash", "cmake", "g++")
MISSING = [tool for tool in TOOLS if shutil.which(tool) is None]


def of_guide() -> tuple[dict[str, str], str]:
    """The files of the C++ program as the guide shows them, and the commands that build and run it."""
    text = GUIDE.read_text().partition("## From C++")[2]
    files = dict(re.findall(r"^`([\w.]+)`:\n\n```\w+\n(.*?)^```", text, re.MULTILINE | re.DOTALL))
    commands = re.findall(r"^```bash\n(.*?)^```", text, re.MULTILINE | re.DOTALL)
    assert set(files) == {"recommend.cpp", "CMakeLists.txt"} and len(commands) == 1
    return files, commands[0]


@pytest.mark.skipif(bool(MISSING), reason=f"to build a C++ program there is no {', '.join(MISSING)}")
def test_the_program_of_the_guide_is_built_as_it_says_and_answers_as_the_artifact(
    artifact: Path, tmp_path: Path
) -> None:
    files, commands = of_guide()
    for name, content in files.items():
        (tmp_path / name).write_text(content)
    (tmp_path / "student-onnx").symlink_to(artifact)
    path = (
        f"{Path(sys.executable).parent}{os.pathsep}{os.environ['PATH']}"  # the python that it asks for torch
    )
    done = subprocess.run(
        ["nice", "-n", "10", "bash", "-e", "-c", commands], cwd=tmp_path, env={**os.environ, "PATH": path},
        capture_output=True, text=True, check=False,
    )  # fmt: skip
    assert done.returncode == 0, done.stdout + done.stderr
    lines = [line.split("\t") for line in done.stdout.splitlines() if re.match(r"\d+\t", line)]
    rows = np.array([list(map(int, re.findall(r"\d+", commands.split("aot.pt2")[1])))])
    expected = opened(artifact, "aot").run(rows, rows)
    assert [int(row) for row, _ in lines] == expected.items[0].tolist()
    np.testing.assert_allclose([float(score) for _, score in lines], expected.scores[0], rtol=1e-4)
    program = tmp_path / "build" / "recommend"
    assert subprocess.run([program], capture_output=True, check=False).returncode == 2  # tells its usage


COPIED = """
import sys
sys.path[:0] = [sys.argv[1]]
import runtime
code = runtime.main(["--history", "i3,i4", "-k", "4", "--variant", sys.argv[2], "--json"])
ours = {"export", "recommender", "recpress", "transformers", "polars", "pydantic"} & set(sys.modules)
sys.exit(f"imported {ours}" if ours else code)
"""


def copied(folder: Path, name: str) -> "subprocess.CompletedProcess[str]":
    site = f"import sys; sys.path.append({str(Path(np.__file__).parents[1])!r})"
    command = [sys.executable, "-I", "-S", "-c", f"{site}{COPIED}", str(folder), name]
    return subprocess.run(command, capture_output=True, text=True, check=False)


def test_the_copied_runtime_opens_them_with_numpy_onnxruntime_and_torch(artifact: Path) -> None:
    done = copied(artifact, "aot")
    assert done.returncode == 0, done.stderr
    answer = json.loads(done.stdout.splitlines()[-1])["recommendations"]
    assert [each["item_id"] for each in answer] == [
        each["item_id"] for each in Artifact(artifact).recommend(["i3", "i4"], 4)
    ]


@pytest.mark.gpu
@pytest.mark.skipif(not torch.cuda.is_available(), reason="needs a CUDA device: torch sees none")
def test_a_package_for_a_gpu_replays_graphs_and_answers_alike(
    tmp_path: Path, sasrec: SequentialRecommender, prepared: Prepared
) -> None:
    folder = make_artifact(
        sasrec, tmp_path / "artifact", prepared, variants=("aot", "aot-bf16"),
        aot=AotConfig(device="cuda", cuda_graph_batches=(1, 8)),
    )  # fmt: skip
    for users, length in [(1, 1), (1, MAX_LENGTH), (3, 7), (8, 7), (32, MAX_LENGTH), (1, 1)]:
        items, seen = left_padded(users, length), left_padded(users, 4, seed=2)
        exact = opened(folder, "fp32").run(items, seen)
        same, half = (opened(folder, name).run(items, seen) for name in ("aot", "aot-bf16"))
        np.testing.assert_array_equal(same.items, exact.items)
        np.testing.assert_allclose(same.scores, exact.scores, rtol=1e-3, atol=1e-5)
        assert np.abs(half.scores - exact.scores).max() < 0.03 * np.abs(exact.scores).max()
