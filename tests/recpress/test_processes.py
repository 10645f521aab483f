"""Two processes, as `accelerate launch` starts them: one writes, both train, and a failure hangs nobody."""

import os
import socket
import subprocess
import sys
from pathlib import Path

import pytest

from recommender.files import read_json
from tests.recpress.fakes import RECIPE

ROOT = Path(__file__).parents[2]

SCRIPT = """
import os, sys
from pathlib import Path
from recpress.cli.app import main
from recpress.stages import STAGES
from tests.recpress import fakes
STAGES.clear(); STAGES.update(fakes.FAKES)
real = fakes.grow
def grow(config, inputs, context):
    Path(f"{config.as_}-rank{os.environ['RANK']}").write_text(str(context.folder))
    if os.environ["RANK"] == os.environ.get("FAILS"):
        raise OSError(28, "No space left on device", "weights")
    return real(config, inputs, context)
fakes.grow = grow
sys.exit(main(["run", "fake.yaml", "--device", "cpu", "--out", "run", *sys.argv[1:]]))
"""


def launch(folder: Path, *arguments: str, fails: str = "") -> list[tuple[int, str]]:
    """(exit code, stderr) of both processes; the launcher's part is played with its environment variables."""
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        port = probe.getsockname()[1]
    common = {
        **os.environ,
        "PYTHONPATH": str(ROOT),
        "WORLD_SIZE": "2",
        "MASTER_ADDR": "127.0.0.1",
        "MASTER_PORT": str(port),
        "ACCELERATE_USE_CPU": "true",
        "FAILS": fails,
    }
    running = [
        subprocess.Popen(
            [sys.executable, "-c", SCRIPT, *arguments],
            cwd=folder,
            env={**common, "RANK": str(rank), "LOCAL_RANK": str(rank), "LOCAL_WORLD_SIZE": "2"},
            stdout=subprocess.PIPE,
            stderr=subprocess.PIPE,
            text=True,
        )
        for rank in range(2)
    ]
    try:
        answers = [process.communicate(timeout=180) for process in running]
    finally:
        for process in running:
            process.kill()
    return [(process.returncode, answer[1]) for process, answer in zip(running, answers, strict=True)]


@pytest.mark.slow
def test_the_first_process_writes_and_both_run_the_distributed_stage(tmp_path: Path) -> None:
    (tmp_path / "fake.yaml").write_text(RECIPE)
    first, second = launch(tmp_path)
    assert (first[0], second[0]) == (0, 0), first[1] + second[1]
    assert read_json(tmp_path / "run/report.json")["recipe"] == "fake"
    folders = [Path((tmp_path / f"big-rank{rank}").read_text()) for rank in range(2)]
    assert folders[0].is_relative_to(tmp_path / "run")
    assert not folders[1].is_relative_to(tmp_path) and not folders[1].exists()
    assert "01-small" in first[1] and "01-small" not in second[1]


@pytest.mark.slow
@pytest.mark.parametrize(
    ("arguments", "code", "message"),
    [
        (["--set", "stages.small.keep=9"], 2, "cannot keep 9 of 4"),
        (["--set", "stages.3=null"], 2, "stages.3"),
    ],
)
def test_a_failure_of_the_first_process_ends_the_other(
    tmp_path: Path, arguments: list[str], code: int, message: str
) -> None:
    (tmp_path / "fake.yaml").write_text(RECIPE)
    first, second = launch(tmp_path, *arguments)
    assert first[0] == code and message in first[1]
    assert second[0] == 0, second[1]
    assert not (tmp_path / "run").exists()


@pytest.mark.slow
def test_a_failure_between_stages_keeps_what_is_finished(tmp_path: Path) -> None:
    (tmp_path / "fake.yaml").write_text(RECIPE + "  - {stage: grow, as: late, fails: gate}\n")
    first, _ = launch(tmp_path)
    assert first[0] == 1 and "the fake's gate is shut" in first[1]
    assert (tmp_path / "run/stages/03-weigh/stage.json").exists()


@pytest.mark.slow
@pytest.mark.parametrize("fails", ["0", "1"])
def test_a_failure_of_one_process_inside_a_common_stage_hangs_nobody(tmp_path: Path, fails: str) -> None:
    (tmp_path / "fake.yaml").write_text(RECIPE)
    both = launch(tmp_path, fails=fails)
    assert [code for code, _ in both] == [1, 1]
    assert "disk is full" in both[int(fails)][1]
    assert not list((tmp_path / "run/stages").glob("*/stage.json"))
