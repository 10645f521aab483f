"""The stage depth-profile under two processes: the first one measures, both train, nobody waits for ever."""

import os
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest

from recommender.data.prepared import Prepared
from recommender.files import read_json
from recommender.stage import Bound

from .test_depth_profile import config_for

LAUNCHED = """
import json, os, sys
from dataclasses import replace
from pathlib import Path
from accelerate import PartialState
from compress.depth_profile import DepthProfileConfig, run
from recommender.data.prepared import Prepared
from tests.compress.conftest import bound, context_in
data, source, out = map(Path, sys.argv[1:4])
PartialState(cpu=True)  # as the runner meets the other processes
context = context_in(out / os.environ["RANK"], Prepared(data))
shared = out / "scratch"  # of the run folder, seen by all
shared.mkdir(exist_ok=True)
config = DepthProfileConfig.model_validate(json.loads(sys.argv[4]))
run(config, {"source": bound("source", source)}, replace(context, scratch=shared))
PartialState().wait_for_everyone()
PartialState().destroy_process_group()  # gloo's threads abort a process that leaves without it
"""


@pytest.mark.slow
def test_two_processes_make_the_same_profile_as_one(
    tmp_path: Path, teacher: Bound, prepared: Prepared
) -> None:
    exact = {"optimizer": "sgd", "learning_rate": 0.1, "precision": "fp64"}
    config = config_for(keep=[1, 2], retrain=True, **exact).model_dump_json(by_alias=True)
    script = tmp_path / "launched.py"
    script.write_text(LAUNCHED)
    found: list[dict[str, Any]] = []
    for processes in (1, 2):
        out = tmp_path / str(processes)
        out.mkdir()
        launch = [sys.executable, "-m", "torch.distributed.run", "--standalone", "--nproc_per_node"]
        given = [str(prepared.path), str(teacher.stage_folder), str(out), config]
        env = {**os.environ, "PYTHONPATH": os.getcwd(), "OMP_NUM_THREADS": "1"}
        done = subprocess.run(
            [*launch, str(processes), str(script), *given], env=env, capture_output=True, text=True
        )
        assert done.returncode == 0, done.stderr[-3000:]
        assert sorted(path.name for path in (out / "scratch").iterdir()) == [
            "depth-1.json", "depth-2.json", "measured.json",
        ]  # fmt: skip
        found += [read_json(out / str(rank) / "profile" / "profile.json") for rank in range(processes)]
    one, first, second = found
    for key in ("block_influence", "cuts", "greedy"):
        assert first[key] == second[key]
    for each, other in zip(one["depths"], first["depths"], strict=True):
        assert other["kept"] == each["kept"]
        assert other["quality"] == pytest.approx(each["quality"], abs=1e-3)
