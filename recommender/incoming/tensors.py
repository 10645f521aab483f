"""Weights from files of others: safetensors only, every number finite, every size as it must be."""

from collections.abc import Iterable, Mapping
from pathlib import Path

import torch
from safetensors import SafetensorError, safe_open
from torch import Tensor

from recommender.errors import InputError

PICKLED = (".pt", ".pth", ".bin", ".ckpt", ".pkl", ".pickle", ".tar")
"""Endings of pickled weights: to read one is to run what its author put in."""

TO_SAFETENSORS = """write them as safetensors, where you trust the file, in Python:
    state = torch.load({name!r}, map_location="cpu", weights_only=True)
    safetensors.torch.save_file({{k: v.contiguous() for k, v in state.items()}}, {saved!r})"""


def read_tensors(file: Path) -> dict[str, Tensor]:
    """{name: float32 tensor} of a safetensors file.

    Raises InputError as `tensors_of`, and where it holds integers, NaN or inf.
    """
    return {name: finite(tensor, name, file) for name, tensor in tensors_of(file).items()}


def tensors_of(file: Path) -> dict[str, Tensor]:
    """{name: tensor} of a safetensors file, whatever they hold.

    Raises InputError for a file that is not there, is pickled, or is no safetensors file.
    """
    refuse_pickle(file)
    try:
        with safe_open(file, framework="pt") as store:
            return {name: store.get_tensor(name) for name in store.keys()}  # noqa: SIM118 - not a dict
    except FileNotFoundError as error:
        raise InputError("file not found", where=str(file)) from error
    except (OSError, SafetensorError) as error:
        raise InputError(
            f"cannot be read as safetensors: {error}",
            where=str(file),
            fix="give a file that safetensors' save_file has written",
        ) from error


def refuse_pickle(file: Path) -> None:
    """Raise InputError, with the two lines that convert it, for a file of pickled weights."""
    if file.suffix.lower() in PICKLED:
        raise InputError(
            "holds pickled weights, which are never loaded here: unpickling can run any code",
            where=str(file),
            fix=TO_SAFETENSORS.format(name=file.name, saved=f"{file.stem}.safetensors"),
        )


def finite(tensor: Tensor, name: str, file: Path) -> Tensor:
    """The tensor as float32. Raises InputError where it holds no numbers, NaN or inf."""
    if not tensor.is_floating_point():
        raise InputError(f"{name} holds {tensor.dtype}, not numbers with a fraction", where=str(file))
    tensor = tensor.float()
    broken = int((~torch.isfinite(tensor)).sum())
    if broken:
        raise InputError(
            f"{name} holds {broken:,} values of {tensor.numel():,} that are NaN or infinite",
            where=str(file),
            fix="take an earlier state of the training: this one has diverged",
        )
    return tensor


def check_names(found: Iterable[str], wanted: Iterable[str], file: Path, *, fix: str) -> None:
    """Raise InputError unless the names are exactly the wanted ones."""
    have, want = set(found), set(wanted)
    wrong = [
        f"{what} {_some(names)}"
        for what, names in (("lacks", want - have), ("has in excess", have - want))
        if names
    ]
    if wrong:
        raise InputError(f"the file {', and '.join(wrong)}", where=str(file), fix=fix)


def check_shapes(weights: Mapping[str, Tensor], wanted: Mapping[str, tuple[int, ...]], file: Path) -> None:
    """Raise InputError, with the first that differs, unless every tensor has the wanted shape."""
    for name, shape in wanted.items():
        if tuple(weights[name].shape) != shape:
            raise InputError(f"{name} is {_size(weights[name].shape)}, not {_size(shape)}", where=str(file))


def _some(names: Iterable[str], most: int = 5) -> str:
    ordered = sorted(names)
    more = f" and {len(ordered) - most} more" if len(ordered) > most else ""
    return ", ".join(ordered[:most]) + more


def _size(shape: Iterable[int]) -> str:
    return " x ".join(map(str, shape)) or "a single number"
