"""The stub of TensorRT: it accepts what is right, finds what is not, and names only what there is."""

import ast
import importlib
import subprocess
import sys
from pathlib import Path

import pytest

TYPINGS = Path(__file__).parents[2] / "typings"
STUB = TYPINGS / "tensorrt" / "__init__.pyi"


def findings(file: str, cache: Path) -> list[str]:
    """What mypy --strict says of a file against the stub."""
    done = subprocess.run(
        [sys.executable, "-m", "mypy", "--strict", "--config-file=", f"--cache-dir={cache}", file],
        cwd=TYPINGS / "typings_check", env={"MYPYPATH": str(TYPINGS)}, capture_output=True, text=True,
    )  # fmt: skip
    assert done.returncode in (0, 1), done.stderr
    return [line for line in done.stdout.splitlines() if ": error:" in line]


@pytest.mark.slow
def test_the_stub_accepts_the_good_file_and_finds_the_five_faults_of_the_bad_one(tmp_path: Path) -> None:
    assert findings("good.py", tmp_path) == []
    wrong = findings("bad.py", tmp_path)
    assert len(wrong) == 5
    for name in ("EXPLICIT_BATCH", "FP16", "max_workspace_size", "IHostMemory | None", "execute_async_v2"):
        assert sum(name in line for line in wrong) == 1, name


def declared() -> list[tuple[str, str | None]]:
    """(name, None) of the module and (class, member) of its classes, nested ones by their dotted name."""
    found: list[tuple[str, str | None]] = []

    def members(cls: ast.ClassDef, dotted: str) -> None:
        found.append((dotted, None))
        for node in cls.body:
            if isinstance(node, ast.ClassDef):
                members(node, f"{dotted}.{node.name}")
            elif isinstance(node, ast.FunctionDef) and not node.name.startswith("__"):
                found.append((dotted, node.name))
            elif isinstance(node, ast.Assign | ast.AnnAssign):
                target = node.targets[0] if isinstance(node, ast.Assign) else node.target
                assert isinstance(target, ast.Name)
                found.append((dotted, target.id))

    for node in ast.parse(STUB.read_text()).body:
        if isinstance(node, ast.ClassDef):
            members(node, node.name)
        elif isinstance(node, ast.AnnAssign) and isinstance(node.target, ast.Name):
            found.append((node.target.id, None))
    return [(name, member) for name, member in found if not name.startswith("_") or name == "__version__"]


def test_the_stub_declares_what_the_builder_and_the_runner_call() -> None:
    found = set(declared())
    assert len(found) > 100
    assert {("Refitter", "refit_cuda_engine"), ("IExecutionContext", "execute_async_v3")} <= found
    assert ("ILogger.Severity", "WARNING") in found and ("__version__", None) in found


def test_every_name_of_the_stub_exists_in_the_real_package() -> None:
    try:
        real = importlib.import_module("tensorrt")
    except Exception as error:
        pytest.skip(f"tensorrt cannot be imported here: {error}")
    for name, member in declared():
        holder = real
        for part in name.split("."):
            holder = getattr(holder, part)
        assert member is None or hasattr(holder, member), f"{name}.{member}"
