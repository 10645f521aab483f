"""The ways to run a checkpoint in torch; `eager` in float32 is the one that everything is compared with.

`compile-…` and `graphs-…` run one program per call, from item rows to lists (`recommender.program`): all
histories are padded to the full length. `eager`, `tf32` and `bf16` batch histories by length.
"""

from dataclasses import dataclass
from typing import Literal, get_args

from recommender.errors import InputError, nearest

Way = Literal["eager", "tf32", "bf16", "compile", "compile-bf16", "graphs", "graphs-bf16"]
Precision = Literal["fp32", "tf32", "bf16"]
EAGER: Way = "eager"


@dataclass(frozen=True)
class TorchWay:
    """How the operators are chosen, and what the products compute in."""

    precision: Precision
    compiled: bool
    graphs: bool  # CUDA graphs: one launch for a whole call, per shape

    @property
    def needs_cuda(self) -> bool:
        """Whether it is another way than its neighbours on a GPU only."""
        return self.graphs or self.precision == "tf32"


WAYS: dict[Way, TorchWay] = {
    "eager": TorchWay("fp32", compiled=False, graphs=False),
    "tf32": TorchWay("tf32", compiled=False, graphs=False),
    "bf16": TorchWay("bf16", compiled=False, graphs=False),
    "compile": TorchWay("fp32", compiled=True, graphs=False),
    "compile-bf16": TorchWay("bf16", compiled=True, graphs=False),
    "graphs": TorchWay("fp32", compiled=True, graphs=True),
    "graphs-bf16": TorchWay("bf16", compiled=True, graphs=True),
}
assert tuple(WAYS) == get_args(Way)


def check_way(way: str, device: str) -> TorchWay:
    """What a name stands for. Raises InputError for one that is not known, or that `device` cannot go."""
    found = {str(name): each for name, each in WAYS.items()}.get(way)
    if found is None:
        raise InputError(
            f"there is no way {way!r} to run a checkpoint{nearest(way, WAYS)}", where="bench.torch"
        )
    if found.needs_cuda and not device.startswith("cuda"):
        others = ", ".join(name for name, each in WAYS.items() if not each.needs_cuda)
        raise InputError(
            f"checkpoints cannot run as {way!r} on the device {device!r}: it needs CUDA",
            where="bench.torch",
            fix=f"run with --device cuda, or choose among {others}",
        )
    return found
