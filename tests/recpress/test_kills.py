"""A run that is killed again and again ends like one that was left alone."""

import os
import random
import signal
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest

from recommender.files import read_json

ROOT = Path(__file__).parents[2]

RECIPE = """
name: tiny
data: {source: synthetic, synthetic: {users: 120, items: 60}, max_length: 8}
evaluation: {ks: [1, 5, 10]}
stages:
  - stage: train
    as: teacher
    model: {kind: llm, layers: 2, hidden: 16, heads: 2, item_dim: 16}
    epochs: 3
    batch_size: 32
    save_every_seconds: 0
  - {stage: prune-depth, of: teacher, as: pruned, keep: 1}
  - stage: distill
    of: pruned
    teacher: teacher
    as: student
    blocks: 1
    weights: {ms: 0}
    epochs: 3
    batch_size: 32
    save_every_seconds: 0
  - {stage: export, of: student, as: student-onnx, variants: [], top_k: 10, parity: {users: 16}}
  - stage: bench
    compare: [teacher, student, student-onnx]
    batch_sizes: [1]
    rounds: 2
    latency_seconds: 1
    draws: 200
    threads: 1
"""

RUN = """
import os, signal, sys
left = int(sys.argv[1])
def count(real):
    def counted(*arguments, **more):
        global left
        left -= 1
        if left == 0:
            os.kill(os.getpid(), signal.SIGKILL)
        return real(*arguments, **more)
    return counted
import recommender.files, recpress.runner
os.replace = count(os.replace)                      # before any folder or file gets its final name
os.mkdir = count(os.mkdir)
from recpress.cli.progress import Display
Display.__call__ = count(Display.__call__)          # at every step, epoch, note and stage
from recpress.cli.app import main
sys.exit(main(["run", "tiny.yaml", "--device", "cpu", "--out", sys.argv[2]]))
"""


def attempt(folder: Path, moment: int, out: str) -> int:
    """One run of the recipe that kills itself at a moment (0: never)."""
    environment = {**os.environ, "PYTHONPATH": str(ROOT), "OMP_NUM_THREADS": "1"}
    command = [sys.executable, "-c", RUN, str(moment), out]
    return subprocess.run(command, cwd=folder, env=environment, capture_output=True).returncode


def qualities(run: Path) -> dict[str, Any]:
    return {each["name"]: each["quality"] for each in read_json(run / "report.json")["candidates"]}


@pytest.mark.slow
def test_twenty_kills_leave_the_quality_of_an_undisturbed_run(tmp_path: Path) -> None:
    (tmp_path / "tiny.yaml").write_text(RECIPE)
    assert attempt(tmp_path, 0, "calm") == 0
    draw = random.Random(7)
    kills, moments = 0, []
    while kills < 20:
        moments.append(draw.randint(1, 25))
        code = attempt(tmp_path, moments[-1], "killed")
        if code == 0:  # finished before its moment came: begin a new run for the kills that are left
            assert qualities(tmp_path / "killed") == qualities(tmp_path / "calm")
            (tmp_path / "killed").rename(tmp_path / f"finished{len(moments)}")
            continue
        assert code == -signal.SIGKILL, moments
        kills += 1
    assert attempt(tmp_path, 0, "killed") == 0
    assert qualities(tmp_path / "killed") == qualities(tmp_path / "calm")
