"""SASRec as github.com/pmixer/SASRec.pytorch saves it, the public implementation that most others copy.

Its state dict tells neither the number of heads nor which of its versions it is:

| version | norm | padding | positions |
|---|---|---|---|
| until 2023 (and kang205/SASRec, which it follows) | query | zeroed | rows 0..maxlen-1 |
| until spring 2025 | query | attended | rows 1..maxlen, row 0 is padding |
| since then, `--norm_first` | pre | attended | rows 1..maxlen |
| since then | post | attended | rows 1..maxlen |

All of them score the newest `maxlen` items in a window that is padded on the left, and let items attend to
the padding. The feed-forward's two convolutions have kernel 1, so they are linear layers. Not supported: the
earliest versions, which have no ReLU.
"""

import re
from collections.abc import Mapping
from pathlib import Path
from typing import Literal, NamedTuple

import torch
from torch import Tensor

from recommender.data.prepared import Prepared
from recommender.errors import InputError
from recommender.incoming.check import with_sizes
from recommender.incoming.items import Alignment, Missing, align, check_rows, gather, read_map
from recommender.incoming.tensors import check_names, check_shapes, read_tensors
from recommender.models.build import build_model
from recommender.models.config import Norm, Padding, SasrecConfig
from recommender.models.interface import SequentialRecommender

NORM_EPS = 1e-8
"""The public code's; it is not in the state dict."""

FORM = "give the state dict of a SASRec as pmixer/SASRec.pytorch saves it, as safetensors"


class ImportedSasrec(NamedTuple):
    """The model, its config, and which items it knew."""

    model: SequentialRecommender
    config: SasrecConfig
    items: Alignment


def import_sasrec(
    file: Path,
    items: Path,
    prepared: Prepared,
    *,
    max_length: int,
    heads: int,
    norm: Norm,
    padding: Literal["auto", "zeroed", "attended"],
    dropout: float,
    missing: Missing,
    seed: int,
) -> ImportedSasrec:
    """Our SASRec with the weights of a public one; it scores as that one did.

    It reads as many items as it was trained for, at least `max_length`. Raises InputError for a file of
    another form, sizes that do not fit, NaN, and ids that do not match.
    """
    weights = _plain_names(read_tensors(file))
    layers, hidden = _check(weights, file)
    if hidden % heads:
        raise InputError(f"{heads} heads do not divide its width {hidden}", where=str(file), fix="set heads")
    positions, table = weights["pos_emb.weight"], weights["item_emb.weight"]
    chosen = _padding(positions, norm, padding, max_length, file)
    window = _window(positions, chosen, max_length, file)
    aligned = _match(items, len(table), prepared, missing)
    sizes = {"layers": layers, "hidden": hidden, "heads": heads, "dropout": dropout}
    form = {"norm": norm, "padding": chosen, "norm_eps": NORM_EPS}
    config = with_sizes(SasrecConfig, {**sizes, **form}, file)
    model = build_model(config, n_items=prepared.n_items, max_length=window, seed=seed)
    vectors = gather(table, aligned, missing=missing, seed=seed)
    model.load_state_dict({**_ours(weights, layers, chosen), "items.weight": vectors})
    return ImportedSasrec(model.eval(), config, aligned)


def _match(items: Path, size: int, prepared: Prepared, missing: Missing) -> Alignment:
    numbers = read_map(items)
    check_rows(numbers["index"], size, items, "item_emb.weight", first=1)
    ids, rows = numbers["item_id"].to_list(), numbers["index"].to_numpy()
    return align(ids, rows, prepared, missing=missing, where=items)


def _plain_names(weights: Mapping[str, Tensor]) -> dict[str, Tensor]:
    """Names without what a wrapper (DataParallel, Lightning) put in front of all of them."""
    for prefix in ("module.", "model."):
        if weights and all(name.startswith(prefix) for name in weights):
            return {name.removeprefix(prefix): tensor for name, tensor in weights.items()}
    return dict(weights)


def _check(weights: Mapping[str, Tensor], file: Path) -> tuple[int, int]:
    """(blocks, width), after all names and shapes were found to be right."""
    numbers = [int(m[1]) for name in weights if (m := re.match(r"attention_layers\.(\d+)\.", name))]
    layers = max(numbers, default=0) + 1
    names = {name: () for name in ("item_emb.weight", "pos_emb.weight")}
    check_names(weights, names | _shapes(layers, 0), file, fix=FORM)
    table, positions = weights["item_emb.weight"], weights["pos_emb.weight"]
    if table.dim() != 2 or len(table) < 2:
        raise InputError(f"item_emb.weight has the shape {list(table.shape)}", where=str(file), fix=FORM)
    hidden = table.shape[1]
    check_shapes(weights, {"pos_emb.weight": (len(positions), hidden), **_shapes(layers, hidden)}, file)
    return layers, hidden


def _shapes(layers: int, hidden: int) -> dict[str, tuple[int, ...]]:
    """Name and shape of everything but the two tables."""
    vector, square = (hidden,), (hidden, hidden)
    block = {
        "attention_layernorms.{}.weight": vector,
        "attention_layernorms.{}.bias": vector,
        "attention_layers.{}.in_proj_weight": (3 * hidden, hidden),
        "attention_layers.{}.in_proj_bias": (3 * hidden,),
        "attention_layers.{}.out_proj.weight": square,
        "attention_layers.{}.out_proj.bias": vector,
        "forward_layernorms.{}.weight": vector,
        "forward_layernorms.{}.bias": vector,
        "forward_layers.{}.conv1.weight": (hidden, hidden, 1),
        "forward_layers.{}.conv1.bias": vector,
        "forward_layers.{}.conv2.weight": (hidden, hidden, 1),
        "forward_layers.{}.conv2.bias": vector,
    }
    blocks = {name.format(n): shape for n in range(layers) for name, shape in block.items()}
    return {**blocks, "last_layernorm.weight": vector, "last_layernorm.bias": vector}


def _padding(
    positions: Tensor, norm: Norm, asked: Literal["auto", "zeroed", "attended"], max_length: int, file: Path
) -> Padding:
    """What the version does with padding; a first position of zeros belongs to padding.

    Any other first position tells nothing: padding's row was not zero in every version. Only where the data
    needs all positions for items is there none left for padding.
    """
    if asked != "auto":
        return asked
    if norm != "query" or not positions[0].any():
        return "attended"
    count = len(positions)
    if count > max_length:
        raise InputError(
            f"the first of its {count} positions may be that of padding, or not",
            where=str(file),
            fix=f"say which: padding: attended (its maxlen was {count - 1}), or zeroed ({count})",
        )
    return "zeroed"


def _window(positions: Tensor, padding: Padding, max_length: int, file: Path) -> int:
    """How many items it reads. Raises InputError when that is less than `max_length`."""
    window = len(positions) - (padding == "attended")
    if window < max_length:
        fix = f"set data.max_length to {window} or less"
        if len(positions) == max_length:
            fix += "; or padding: zeroed, if its first position is not that of padding"
        wrong = f"it has positions for {window} items, but data.max_length is {max_length}"
        raise InputError(wrong, where=str(file), fix=fix)
    return window


def _positions(weights: Mapping[str, Tensor], padding: Padding) -> Tensor:
    """Our positions: first the padding token's whole embedding, then one row per place."""
    positions, table = weights["pos_emb.weight"], weights["item_emb.weight"]
    if padding == "zeroed":
        return torch.cat((torch.zeros_like(positions[:1]), positions))
    token = table[:1] * table.shape[1] ** 0.5 + positions[:1]
    return torch.cat((token, positions[1:]))


def _ours(weights: Mapping[str, Tensor], layers: int, padding: Padding) -> dict[str, Tensor]:
    """All but the items under our names; a convolution [H, H, 1] is a linear layer [H, H]."""
    hidden = weights["item_emb.weight"].shape[1]
    ours = {
        "positions.weight": _positions(weights, padding),
        "final_norm.weight": weights["last_layernorm.weight"],
        "final_norm.bias": weights["last_layernorm.bias"],
    }
    for n in range(layers):
        for kind in ("weight", "bias"):
            joined = weights[f"attention_layers.{n}.in_proj_{kind}"]
            block = {
                "query": joined[:hidden],
                "key_value": joined[hidden:],
                "out": weights[f"attention_layers.{n}.out_proj.{kind}"],
                "up": weights[f"forward_layers.{n}.conv1.{kind}"],
                "down": weights[f"forward_layers.{n}.conv2.{kind}"],
                "attention_norm": weights[f"attention_layernorms.{n}.{kind}"],
                "feed_norm": weights[f"forward_layernorms.{n}.{kind}"],
            }
            ours |= {
                f"body.blocks.{n}.{name}.{kind}": part.flatten(1) if part.dim() > 2 else part
                for name, part in block.items()
            }
    return ours
