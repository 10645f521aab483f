"""The copied runtime needs numpy and onnxruntime, and nothing of ours."""

import json
import os
import subprocess
import sys
import venv
from pathlib import Path

import numpy as np
import onnxruntime
import pytest

from export.runtime import Artifact

BLOCKER = """
import importlib, sys

sys.dont_write_bytecode = True

ALLOWED = {"numpy", "onnxruntime", "runtime"}
BEFORE = set(sys.modules)


class Blocker:
    '''Only the standard library and what is allowed may be imported.'''

    def find_spec(self, name, path=None, target=None):
        top = name.partition(".")[0]
        if top in ALLOWED or top in sys.stdlib_module_names or top.startswith("_"):
            return None
        raise ModuleNotFoundError(f"blocked: {name}", name=name)


sys.meta_path.insert(0, Blocker())
folder, site = sys.argv[1:3]
sys.path[:0] = [folder, site]
sys.argv = ["runtime.py", "--history", sys.argv[3], "-k", "4", "--json"]
import runtime

assert runtime.__file__.startswith(folder), runtime.__file__
code = runtime.main()
foreign = {"torch", "onnx", "polars", "pydantic", "recommender", "export", "transformers"} & set(sys.modules)
assert not foreign, foreign
try:
    importlib.import_module("polars")
except ModuleNotFoundError as error:
    assert "blocked" in str(error)
else:
    raise AssertionError("the blocker does not block")
sys.exit(code)
"""

HISTORY = "i3, i4,i5"


def expected(folder: Path) -> list[str]:
    return [item["item_id"] for item in Artifact(folder).recommend(["i3", "i4", "i5"], 4)]


def test_the_runtime_imports_numpy_onnxruntime_and_the_standard_library_only(exported: Path) -> None:
    site = Path(np.__file__).parents[1]
    assert Path(onnxruntime.__file__).parents[1] == site
    done = subprocess.run(
        [sys.executable, "-I", "-S", "-c", BLOCKER, str(exported), str(site), HISTORY],
        capture_output=True,
        text=True,
        check=False,
    )
    assert done.returncode == 0, done.stderr
    answer = json.loads(done.stdout.splitlines()[-1])
    assert [item["item_id"] for item in answer["recommendations"]] == expected(exported)
    assert answer["history"] == ["i3", "i4", "i5"]


def script(folder: Path, *arguments: str, python: str = sys.executable) -> subprocess.CompletedProcess[str]:
    environment = {name: value for name, value in os.environ.items() if name != "PYTHONPATH"}
    command = [python, str(folder / "runtime.py"), *arguments]
    return subprocess.run(
        command, capture_output=True, text=True, check=False, env=environment, cwd=folder.parent
    )


def test_the_script_prints_a_line_per_item_with_its_title(exported: Path) -> None:
    done = script(exported, "--history", HISTORY, "-k", "4", "--threads", "1")
    assert done.returncode == 0, done.stderr
    lines = [line.split(maxsplit=3) for line in done.stdout.splitlines()]
    assert [(place, item, title) for place, _, item, title in lines] == [
        (str(place), item, f"Item {item}") for place, item in enumerate(expected(exported), start=1)
    ]


def test_the_script_ends_with_2_and_one_line_for_an_unknown_item(exported: Path) -> None:
    done = script(exported, "--history", "i3,nonsense")
    assert done.returncode == 2
    assert done.stderr.startswith("error: unknown item 'nonsense'") and "Traceback" not in done.stderr
    assert not done.stdout


def test_the_script_refuses_an_altered_artifact(folder: Path) -> None:
    content = (folder / "catalogue-1/fp32.onnx").read_bytes()
    (folder / "catalogue-1/fp32.onnx").write_bytes(content[:-9] + b"\0" + content[-8:])
    done = script(folder, "--history", "i3")
    assert done.returncode == 2 and "fp32.onnx was altered" in done.stderr


@pytest.mark.slow
def test_the_artifact_runs_in_a_fresh_environment(exported: Path, tmp_path: Path) -> None:
    """Installs numpy and onnxruntime from the package index that pip is set up for."""
    venv.create(tmp_path / "venv", with_pip=True)
    python = tmp_path / "venv" / "bin" / "python"
    subprocess.run([python, "-m", "pip", "install", "-q", "numpy", "onnxruntime"], check=True)
    done = script(exported, "--history", HISTORY, "-k", "4", "--json", python=str(python))
    assert done.returncode == 0, done.stderr
    answer = json.loads(done.stdout)
    assert [item["item_id"] for item in answer["recommendations"]] == expected(exported)
