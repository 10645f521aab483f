"""The state to resume a training from, as safetensors and JSON; written in one step, never half."""

import json
import shutil
from collections.abc import Mapping
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any

import torch
from safetensors.torch import load_file, save_file
from torch import Tensor, nn
from torch.optim import Optimizer

from recommender.files import complete_folder

PREFIX = (
    "training-"  # + step: a new state stands beside the old one before that goes, so a kill loses neither
)


@dataclass
class Counters:
    """Where a training stands. The sampler and every random draw are functions of (seed, step), so no more
    is needed.
    """

    step: int = 0  # optimizer steps done
    epoch: int = 0  # epochs completed
    step_in_epoch: int = 0
    best: float | None = None  # best validation NDCG@10
    best_epoch: int = 0
    bad_rounds: int = 0  # validations since the best
    stopped: bool = False
    seconds: float = 0.0  # spent in training steps
    validation_seconds: float = 0.0
    sums: dict[str, float] = field(default_factory=dict)  # terms summed over the running epoch
    positions: int = 0  # real positions of the running epoch
    history: list[dict[str, Any]] = field(default_factory=list)  # one entry per epoch
    first: dict[str, float] = field(default_factory=dict)  # per-position means of the first step


def trainable(module: nn.Module) -> dict[str, Tensor]:
    """The weights that training changes, by name."""
    return {name: tensor for name, tensor in module.named_parameters() if tensor.requires_grad}


def save_state(
    folder: Path, objective: nn.Module, optimizer: Optimizer, best: Mapping[str, Tensor], counters: Counters
) -> None:
    """Write weights, optimizer state, best weights and counters."""
    tensors = {f"weights.{name}": tensor.detach() for name, tensor in trainable(objective).items()}
    tensors |= {f"best.{name}": tensor for name, tensor in best.items()}
    for index, entries in optimizer.state_dict()["state"].items():
        tensors |= {f"optimizer.{index}.{key}": torch.as_tensor(value) for key, value in entries.items()}
    older = saved_states(folder)
    place = folder / f"{PREFIX}{counters.step:09d}-{counters.epoch:06d}"
    with complete_folder(place) as temporary:
        save_file(
            {name: tensor.cpu().contiguous() for name, tensor in tensors.items()},
            temporary / "state.safetensors",
        )
        (temporary / "state.json").write_text(json.dumps(asdict(counters)))
    for path in older:
        if path != place:
            shutil.rmtree(path, ignore_errors=True)


def saved_states(folder: Path) -> list[Path]:
    """Complete states in a folder, oldest first."""
    return sorted(folder.glob(f"{PREFIX}*"))


def load_state(
    folder: Path, objective: nn.Module, optimizer: Optimizer
) -> tuple[Counters, dict[str, Tensor]] | None:
    """Put a saved state back into objective and optimizer; (counters, best weights), or None where there is
    none.
    """
    for left in folder.glob(f".{PREFIX}*"):  # of a kill while writing
        shutil.rmtree(left, ignore_errors=True)
    found = saved_states(folder)
    if not found:
        return None
    tensors = load_file(found[-1] / "state.safetensors")
    with torch.no_grad():
        for name, tensor in trainable(objective).items():
            tensor.copy_(tensors[f"weights.{name}"])
    state: dict[int, dict[str, Tensor]] = {}
    for name, tensor in tensors.items():
        if name.startswith("optimizer."):
            _, index, key = name.split(".")
            state.setdefault(int(index), {})[key] = tensor
    optimizer.load_state_dict({"state": state, "param_groups": optimizer.state_dict()["param_groups"]})
    best = {
        name.removeprefix("best."): tensor for name, tensor in tensors.items() if name.startswith("best.")
    }
    return Counters(**json.loads((found[-1] / "state.json").read_text())), best
