"""Compile the scoring graph for this machine: AOTInductor packages as variants of an artifact."""

import json
import os
import shutil
import signal
import subprocess
import sys
import tempfile
import time
from collections.abc import Mapping
from pathlib import Path
from typing import TYPE_CHECKING, Any, Literal

from pydantic import Field, PositiveInt

from export.variants import COMPILED, VariantName, sizes
from recommender.data.config import Section
from recommender.errors import InputError, StageError

if TYPE_CHECKING:
    from recommender.models.interface import SequentialRecommender

ENGINE = "runtime_aot.py"
TAIL_LINES = 15
NO_COMPILER = "apt-get install g++ (or your system's package of it), or name one: CXX=/path/to/g++"


class AotConfig(Section):
    """How the variants `aot` and `aot-bf16` are compiled, on the machine that they are for."""

    device: Literal["cpu", "cuda"] = Field("cpu", description="what they run on; it has to be here")
    cuda_graph_batches: tuple[PositiveInt, ...] = Field(
        (1, 32),
        description="cuda: calls of at most so many users are filled up to the next of these numbers and "
        "replayed as a CUDA graph, captured per shape when it first comes; larger calls, or all where the "
        "list is empty, are launched kernel by kernel",
    )
    freezing: bool = Field(True, description="weights are constants: packed and folded by the compiler")
    max_autotune: bool = Field(
        False, description="time several kernels for each product while compiling: minutes, for little"
    )
    timeout_seconds: PositiveInt = Field(1800, description="of one compilation, after which it is ended")

    def options(self) -> dict[str, Any]:
        """What inductor is told."""
        return {
            "freezing": self.freezing,
            "max_autotune": self.max_autotune,
            "cpp.dynamic_threads": True,  # else those of this process are written into the package
        }


def check_build(config: AotConfig) -> None:
    """Raise InputError unless this machine can compile and run what is asked for."""
    from export.aot import machine

    require_compiler()
    try:
        machine(config.device)
    except ValueError as error:
        raise InputError(
            f"{config.device} packages are compiled where they run: {error}",
            where="export.aot.device",
            fix="run the stage on a machine with such a GPU, or set aot.device: cpu",
        ) from error


def require_compiler() -> str:
    """Path of the C++ compiler that inductor calls. Raises InputError where there is none."""
    named = os.environ.get("CXX", "clang++" if sys.platform == "darwin" else "g++")
    found = shutil.which(named.split()[0]) if named.strip() else None
    if found is None:
        raise InputError(
            f"the variants {' and '.join(COMPILED)} are compiled with {named or 'CXX'}, which is not there",
            where="export.variants",
            fix=NO_COMPILER,
        )
    return found


def compiled_entry(
    name: VariantName,
    model: "SequentialRecommender",
    manifest: Mapping[str, Any],
    folder: Path,
    config: AotConfig,
) -> dict[str, Any]:
    """Compile a variant into the catalogue in use of the artifact in `folder`; its entry in the manifest.

    A copy of `export.aot`, which opens it, is written beside `runtime.py`. Raises StageError where torch
    cannot export the model, or the compiler fails or takes too long.
    """
    from export import aot

    same, told = sizes(manifest), manifest["catalogue"]
    del same["opset"]
    graph = f"{told['folder']}/{name}.pt2"
    started = time.perf_counter()
    metadata = build_package(model, folder / graph, name, top_k=same["top_k"], config=config)
    here = aot.machine(config.device)
    shutil.copyfile(aot.__file__, folder / ENGINE)
    graphs = {"cuda_graph_batches": list(config.cuda_graph_batches)} if config.device == "cuda" else {}
    return {
        "name": name,
        "about": COMPILED[name].about,
        "precision": COMPILED[name].precision,
        "graph": graph,
        "files": [graph, ENGINE],
        "runtime": "aot",
        "device": config.device,
        "on_cpu": config.device == "cpu",
        "runs_on": f"GPUs like {here['gpu']}" if config.device == "cuda" else "CPUs like that of its build",
        "compiled": {
            **here, **graphs, "options": config.options(), "metadata": metadata,
            "seconds": time.perf_counter() - started,
        },
        **same,
        "format": "pt2",
    }  # fmt: skip


def build_package(
    model: "SequentialRecommender", path: Path, name: VariantName, *, top_k: int, config: AotConfig
) -> dict[str, str]:
    """Write a package; what it says of itself (`AOTI_...`). Raises StageError."""
    import torch

    with tempfile.TemporaryDirectory(prefix="recpress-aot-") as scratch:
        job = Path(scratch)
        program = trace(model, top_k, half=COMPILED[name].half, device=config.device)
        save_program(program, job / "program.pt2")
        del program
        (job / "job.json").write_text(json.dumps(config.options()), encoding="utf-8")
        compile_apart(job, name, config.timeout_seconds)
        shutil.move(job / "package.pt2", path)
    found = torch._C._aoti.AOTIModelPackageLoader(str(path), "model", False, 1, -1).get_metadata()
    return {key: value for key, value in found.items() if value}


def trace(model: "SequentialRecommender", top_k: int, *, half: bool, device: str) -> Any:
    """The graph as torch exports it: any batch, length up to what the model reads, and width of `seen`.

    Raises StageError where torch cannot export the model.
    """
    import torch

    from export.aot_graph import CompiledGraph
    from export.contract import ScoringExporterConfig, ScoringSizes
    from export.onnx import TRACEABLE, reason

    contract = ScoringExporterConfig(ScoringSizes(model.n_items, model.max_length, top_k))
    dummies = contract.generate_dummy_inputs(framework="pt")
    # bfloat16 attention without matrix units for it is slower than float32, and less exact
    half_attention = device != "cpu" or torch.cpu._is_amx_tile_supported()
    graph = CompiledGraph(model.cpu(), top_k, half=half, half_attention=half_attention).eval()
    if device != "cpu":
        import copy

        graph = copy.deepcopy(graph).to(device)  # the caller's model stays where it is
    given = tuple(dummies[name].to(device) for name in contract.inputs)
    axes = tuple(contract.dynamic_shapes()[name] for name in contract.inputs)
    try:
        with torch.no_grad():
            return torch.export.export(graph, given, dynamic_shapes=axes, strict=False)
    except Exception as error:  # torch's own, and whatever a model raises when it is traced
        raise StageError(
            f"torch cannot export this {type(model).__name__} for AOTInductor: {reason(error)}",
            where="export", fix=TRACEABLE,
        ) from error  # fmt: skip


def save_program(program: Any, path: Path) -> None:
    """Write an exported program for the process that compiles it.

    `torch.export.save` (2.13) fails at an empty tensor with a storage that is not empty, as a file of weights
    gives it, and writes whole storages of views: each gets a storage of its own, the same ones the same.
    """
    import torch

    own: dict[Any, torch.Tensor] = {}
    for values in (program.state_dict, program.constants):
        for name, value in values.items():
            if not isinstance(value, torch.Tensor):
                continue
            same = (value.data_ptr(), value.dtype, value.shape, value.stride())
            if same not in own:
                own[same] = value.detach().clone()
            fresh = own[same]
            is_parameter = isinstance(value, torch.nn.Parameter)
            values[name] = torch.nn.Parameter(fresh, requires_grad=False) if is_parameter else fresh
    torch.export.save(program, path)


def compile_apart(job: Path, name: str, seconds: float) -> None:
    """Compile a job folder in a process of its own. Raises StageError with the end of what it said."""
    environment = {**os.environ, "PYTHONPATH": os.pathsep.join(place or os.getcwd() for place in sys.path)}
    command = [sys.executable, "-m", "export.aot_child", str(job)]
    with (job / "said.txt").open("w+b") as said:
        child = subprocess.Popen(
            command, stdin=subprocess.DEVNULL, stdout=said, stderr=said, env=environment, process_group=0
        )
        try:
            code = child.wait(seconds)
        except subprocess.TimeoutExpired:
            raise _failed(name, f"took longer than {seconds:g} s", said_in(job)) from None
        finally:
            if child.returncode is None:
                os.killpg(child.pid, signal.SIGKILL)  # with the compilers that it started
                child.wait()
    if code or not (job / "package.pt2").is_file():
        raise _failed(name, f"failed (exit code {code})", said_in(job))


def said_in(job: Path) -> str:
    """The last lines of what the compilation of a job folder printed."""
    text = (job / "said.txt").read_text(encoding="utf-8", errors="replace")
    return "\n".join(line for line in text.splitlines() if line.strip()).strip()[-4000:]


def _failed(name: str, how: str, said: str) -> StageError:
    tail = "\n    ".join(said.splitlines()[-TAIL_LINES:]) or "(nothing)"
    return StageError(
        f"compiling the variant {name} {how}; it said last:\n    {tail}",
        where="export.aot",
        fix="mend what the compiler says (recpress doctor shows which one is used), raise "
        f"aot.timeout_seconds, or leave {name} out of export.variants",
    )
