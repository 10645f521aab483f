"""The weight matrices of a model, as methods that change weights see them: named, [out, in]."""

from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from typing import NamedTuple

from torch import Tensor, nn
from transformers.pytorch_utils import Conv1D

from recommender.models.interface import Body, SequentialRecommender

PROJECTIONS: Mapping[str, int] = {"input_projection": -1, "output_projection": 1 << 30}
"""Between the item space and a body, which models over item vectors have: before and behind all blocks."""


class Linear(NamedTuple):
    """One matrix product of a model: its module and how its weight lies."""

    name: str  # below the list of blocks: "3.mlp.down_proj"; or one of PROJECTIONS
    module: nn.Module  # with the parameter `weight`
    transposed: bool  # GPT-2 stores [in, out]

    @property
    def block(self) -> int:
        """The block that it stands in; -1 before the first, a large number behind the last."""
        return PROJECTIONS[self.name] if self.name in PROJECTIONS else int(self.name.partition(".")[0])

    def matrix(self) -> Tensor:
        """[out, in], a view of the weight: what is written into it is in the model."""
        weight = self.module.weight
        assert isinstance(weight, Tensor)
        return weight.detach().T if self.transposed else weight.detach()


def body_linears(body: Body) -> Mapping[str, Linear]:
    """Every matrix of the body's blocks by name, first block first; norms and biases are not in it."""
    found = {}
    for name, module in body.blocks.named_modules():
        if isinstance(module, nn.Linear | Conv1D):
            found[name] = Linear(name, module, isinstance(module, Conv1D))
    return found


def quantizable(model: SequentialRecommender) -> Mapping[str, Linear]:
    """The matrices of the user body, and the projections that the model has around it, in order of use."""
    around = {name: getattr(model, name, None) for name in PROJECTIONS}
    found = {**body_linears(model.bodies()["user"])}
    found |= {name: Linear(name, module, False) for name, module in around.items() if module is not None}
    return dict(sorted(found.items(), key=lambda each: each[1].block))


@contextmanager
def watched(linears: Mapping[str, Linear], see: Callable[[Linear, Tensor], None]) -> Iterator[None]:
    """While open, every call of a matrix shows its input: `see(linear, input [..., in])`, before it runs."""

    def hook_of(linear: Linear) -> Callable[[nn.Module, tuple[Tensor, ...]], None]:
        def hook(module: nn.Module, args: tuple[Tensor, ...]) -> None:
            see(linear, args[0].detach())

        return hook

    handles = [each.module.register_forward_pre_hook(hook_of(each)) for each in linears.values()]
    try:
        yield
    finally:
        for handle in handles:
            handle.remove()
