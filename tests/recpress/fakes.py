"""Stages that take no time and whose results are known: what the runner does with them is what is tested."""

import errno
import os
import signal
from collections.abc import Mapping
from pathlib import Path
from typing import Any, ClassVar, Literal

from pydantic import Field

from recommender.data.config import Section
from recommender.errors import GateError, InputError
from recommender.files import read_json, write_json, write_text
from recommender.stage import Bound, Context, Kind, OneSourceConfig, Outputs, Shape, StageConfig
from recpress.stages import StageKind, StageTable

HERE = "tests.recpress.fakes"


class Body(Section):
    """A section inside a stage."""

    layers: int = Field(4, ge=1)
    source: str | None = None


class GrowConfig(StageConfig):
    """Makes a checkpoint that says what it was made from."""

    distributed: ClassVar[bool] = True

    stage: Literal["grow"]
    as_: str = Field(alias="as")
    body: Body = Body()
    size: int = Field(1, ge=1, description="how large it grows")
    steps: int = Field(1, ge=1)
    fails: Literal["input", "gate", "disk", "interrupt", "crash", "rust disk"] | None = None
    kill_at: int | None = Field(None, description="SIGKILL at this step, the first time")
    marker: str | None = Field(
        None, description="file, written by the stage, that remembers what happened outside of the run"
    )

    @property
    def consumes(self) -> tuple[str, ...]:
        return (self.body.source,) if self.body.source else ()

    @property
    def produces(self) -> str:
        return self.as_

    def shape(self, known: Mapping[str, Shape]) -> Shape:
        return Shape("checkpoint", layers=self.body.layers)


def grow(config: GrowConfig, inputs: Mapping[str, Bound], context: Context) -> Outputs:
    """Counts its steps in scratch, so that a killed run can go on."""
    _fail(config.fails)
    file = context.scratch / "steps.json"
    done = read_json(file)["done"] if file.exists() else 0
    context.progress("start", {"total": config.steps, "done": done})
    for step in range(done, config.steps):
        if config.kill_at == step and config.marker is not None and not Path(config.marker).exists():
            Path(config.marker).touch()
            os.kill(os.getpid(), signal.SIGKILL)
        write_json(file, {"done": step + 1})
        context.progress("step", {"step": step + 1, "total": config.steps, "loss": 1.0, "seconds_left": 0.0})
    content = {
        "seed": context.seed,
        "size": config.size,
        "of": {name: read_json(bound.path / "config.json")["size"] for name, bound in inputs.items()},
        "resumed_at": done,
        "data": context.prepared.digest,
    }
    (context.folder / "checkpoint").mkdir()
    write_json(context.folder / "checkpoint" / "config.json", content)
    context.progress("epoch", {"epoch": 1, "loss": 1.0, "seconds": 0.1})
    return Outputs({"size": config.size, "resumed_at": done, "seed": context.seed})


def _fail(how: str | None) -> None:
    match how:
        case "input":
            raise InputError("the fake was told to refuse", where="grow.fails", fix="leave it out")
        case "gate":
            raise GateError("the fake's gate is shut")
        case "disk":
            raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC), "weights")
        case "rust disk":
            raise RuntimeError("Error while serializing: I/O error: No space left on device (os error 28)")
        case "interrupt":
            raise KeyboardInterrupt
        case "crash":
            raise ZeroDivisionError("a bug")


class CutConfig(OneSourceConfig):
    """Cuts a checkpoint."""

    stage: Literal["cut"]
    keep: int = Field(ge=1)
    method: Literal["first", "last"] = "first"

    def problems(self, known: Mapping[str, Shape]) -> list[tuple[str, str]]:
        layers = known[self.of].layers
        return [("keep", f"cannot keep {self.keep} of {layers}")] if layers and self.keep > layers else []

    def shape(self, known: Mapping[str, Shape]) -> Shape:
        return Shape("checkpoint", layers=self.keep)


def cut(config: CutConfig, inputs: Mapping[str, Bound], context: Context) -> Outputs:
    """A checkpoint that remembers its parent."""
    parent = read_json(inputs[config.of].path / "config.json")
    (context.folder / "checkpoint").mkdir()
    write_json(
        context.folder / "checkpoint" / "config.json",
        {**parent, "size": config.keep, "method": config.method},
    )
    return Outputs({"size": config.keep})


class PackConfig(OneSourceConfig):
    """Makes an artifact."""

    stage: Literal["pack"]
    top_k: int = 20

    def shape(self, known: Mapping[str, Shape]) -> Shape:
        return Shape("artifact", top_k=self.top_k)


def pack(config: PackConfig, inputs: Mapping[str, Bound], context: Context) -> Outputs:
    """An artifact folder with a manifest."""
    manifest: dict[str, Any] = {
        "name": config.as_,
        "variants": [{"name": "fp32"}, {"name": "int8"}],
        "data": {"catalogue_digest": context.prepared.catalogue_digest},
        "parent": read_json(inputs[config.of].path / "config.json"),
        "recipe": context.recipe["name"],
        "files": {"graph.onnx": {"size_bytes": len("graph")}},
    }
    (context.folder / "artifact").mkdir()
    write_json(context.folder / "artifact" / "manifest.json", manifest)
    write_text(context.folder / "artifact" / "graph.onnx", "graph")
    return Outputs({})


class WeighConfig(StageConfig):
    """Reports the sizes of everything, over all seeds."""

    pools_seeds: ClassVar[bool] = True
    accepts: ClassVar[tuple[Kind, ...]] = ("checkpoint", "artifact")

    stage: Literal["weigh"]
    compare: tuple[str, ...] = Field(min_length=1)
    rounds: int = 1

    @property
    def consumes(self) -> tuple[str, ...]:
        return self.compare


def weigh(config: WeighConfig, inputs: Mapping[str, Bound], context: Context) -> Outputs:
    """Writes a report, and a card into artifacts, as the bench does."""
    sizes = {
        str(seed): {name: [ref.opener for ref in bound.scorers] for name, bound in bounds.items()}
        for seed, bounds in context.by_seed.items()
    }
    for bound in inputs.values():
        if bound.kind == "artifact":
            write_text(bound.path / "card.md", f"measured in {config.rounds} rounds")
    report = {
        "recipe": context.recipe["name"],
        "variant": context.variant,
        "dataset": {"name": "synthetic"},
        "evaluation": {"split": "leave-one-out"},
        "candidates": [
            {
                "name": name,
                "quality": {"ndcg@10": 0.5},
                "latency": [{"load": "real", "batch": 1, "p50_ms": 1.0}],
            }
            for name in inputs
        ],
        "seen": sizes,
        "rounds": config.rounds,
    }
    write_json(context.folder / "report.json", report)
    write_text(context.folder / "report.md", "# report")
    write_text(context.folder / "report.html", "<h1>report</h1>")
    return Outputs({"seeds": list(context.by_seed)})


FAKES: StageTable = {
    "grow": StageKind("grow", f"{HERE}:GrowConfig", f"{HERE}:grow", ("numpy",)),
    "cut": StageKind("cut", f"{HERE}:CutConfig", f"{HERE}:cut", ("numpy",)),
    "pack": StageKind("pack", f"{HERE}:PackConfig", f"{HERE}:pack", ("numpy",)),
    "weigh": StageKind("weigh", f"{HERE}:WeighConfig", f"{HERE}:weigh", ("numpy",), measures=True),
}

RECIPE = """
name: fake
data: {source: synthetic, synthetic: {users: 80, items: 40}, max_length: 8}
stages:
  - {stage: grow, as: big, body: {layers: 4}, size: 8}
  - {stage: cut, of: big, as: small, keep: 2}
  - {stage: pack, of: small, as: packed}
  - {stage: weigh, compare: [big, small, packed]}
"""
