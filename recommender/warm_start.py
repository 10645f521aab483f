"""The stage `adapt`: carry a checkpoint over to a catalogue that has changed since it was trained."""

from collections.abc import Mapping
from pathlib import Path
from typing import TYPE_CHECKING, Literal

from pydantic import Field

from recommender.errors import InputError
from recommender.models.config import BODILESS
from recommender.quantization_scheme import LEAVES_GRID
from recommender.sparsity import noted
from recommender.stage import Bound, Context, Outputs, Shape, StageConfig

if TYPE_CHECKING:
    import polars as pl
    from torch import Tensor

    from recommender.incoming.items import Alignment
    from recommender.models.llm import LlmRecommender
    from recommender.models.sasrec import SasRec


class AdaptConfig(StageConfig):
    """Carry yesterday's checkpoint over to today's catalogue; nothing is trained.

    ```yaml
    - {stage: adapt, of: yesterday, as: start}
    - {stage: train, start_from: start, as: teacher, epochs: 3}
    ```
    """

    stage: Literal["adapt"]
    of: str = Field(description="the checkpoint to carry over; its catalogue may be another one")
    as_: str = Field(alias="as", description="name of the checkpoint for today's catalogue")
    new_items: Literal["mean", "fresh"] = Field(
        "mean",
        description="vectors of items that it does not know: the mean of those it knows, or a draw with "
        "their mean and spread",
    )
    items_from: str | None = Field(
        None,
        description="a checkpoint of today's catalogue that gives the new items' vectors instead: for a "
        "frozen table, which no training will move",
    )

    @property
    def consumes(self) -> tuple[str, ...]:
        """The checkpoint, and the one that new items come from."""
        return (self.of, self.items_from) if self.items_from else (self.of,)

    @property
    def foreign(self) -> tuple[str, ...]:
        """What may belong to another catalogue."""
        return (self.of,)

    @property
    def produces(self) -> str:
        """The checkpoint of today's catalogue."""
        return self.as_

    def problems(self, known: Mapping[str, Shape]) -> list[tuple[str, str]]:
        """Models that learn nothing from yesterday."""
        sides = (("of", self.of), ("items_from", self.items_from or ""))
        source = known.get(self.of)
        if source is not None and source.quantized is not None:
            return [("of", LEAVES_GRID.format(name=self.of, scheme=source.quantized))]
        return [
            (place, f"{name!r} {NOTHING}")
            for place, name in sides
            if name in known and isinstance(known[name].model, BODILESS)
        ]

    def shape(self, known: Mapping[str, Shape]) -> Shape:
        """The same model over other items."""
        return known.get(self.of, Shape("checkpoint"))


NOTHING = (
    "was not trained (popularity, or an imported table), so there is nothing to carry over: make it anew "
    "from today's data"
)


def run(config: AdaptConfig, inputs: Mapping[str, Bound], context: Context) -> Outputs:
    """Map rows by item id and write `checkpoint/`: known items keep their vectors, all else its weights.

    Metrics: how many items were kept, are new and have vanished, and the quality on today's validation part
    before any training. Raises InputError when no item is known, when widths differ, or when the source has
    not the zeros that it notes.
    """
    from recommender.checkpoint import load_checkpoint, read_info, save_checkpoint
    from recommender.incoming.check import note_window
    from recommender.incoming.items import align, gather
    from recommender.models.llm import LlmRecommender
    from recommender.models.sasrec import SasRec
    from recommender.models.zeros import check_zeros
    from recommender.training.validation import validation_quality

    folder = inputs[config.of].path
    info = read_info(folder)
    if isinstance(info.model_config, BODILESS):
        raise InputError(f"{config.of!r} {NOTHING}", where="adapt.of")
    if info.quantized is not None:
        raise InputError(LEAVES_GRID.format(name=config.of, scheme=info.quantized), where="adapt.of")
    model = load_checkpoint(folder)
    check_zeros(model, noted(info.about, str(folder)), str(folder))
    assert isinstance(model, LlmRecommender | SasRec)  # what is left without the bodiless ones
    yesterday = _items_of(folder, info.n_items)
    aligned = align(
        yesterday["item_id"].to_list(),
        yesterday["row"].to_numpy(),
        context.prepared,
        missing=config.new_items,
        where=folder,
    )
    old = model.items.weight.detach()
    table = gather(old, aligned, missing=config.new_items, seed=context.seed)
    table[0] = old[0]  # padding keeps what the model makes of it
    if config.items_from is not None:
        _take_new(table, aligned, inputs[config.items_from], context)
    with_items(model, table)
    model.to(context.device)
    note_window(model, context)
    quality = validation_quality(model, context)
    counts = {
        "items_kept": context.prepared.n_items - len(aligned.missing),
        "items_new": len(aligned.missing),
        "items_vanished": aligned.dropped,
    }
    context.progress("note", {**counts, "ndcg@10": quality["ndcg@10"]})
    save_checkpoint(
        model,
        context.folder / "checkpoint",
        prepared=context.prepared,
        model_config=info.model_config,
        split=context.evaluation.split,
        about={
            **info.about,
            "base_items": info.about.get("base_items", info.n_items),
            "stage": config.stage,
            "name": config.as_,
            "of": config.of,
            "best_ndcg": quality["ndcg@10"],
        },
    )
    return Outputs({**counts, **quality})


def _items_of(folder: Path, n_items: int) -> "pl.DataFrame":
    """Columns row and item_id of a checkpoint's catalogue. Raises InputError where it is not whole."""
    import polars as pl

    from recommender.data.readers import reading

    file = folder / "items.parquet"
    table = reading(file, lambda: pl.read_parquet(file, columns=["row", "item_id"], glob=False))
    if table["row"].sort().to_list() != list(range(1, n_items + 1)):
        raise InputError(
            f"is not the catalogue of the checkpoint, whose {n_items} items have the rows 1 to {n_items}",
            where=str(file),
            fix="give the checkpoint folder as its stage has written it",
        )
    return table


def _take_new(table: "Tensor", aligned: "Alignment", source: Bound, context: Context) -> None:
    """Fill the rows of new items from a checkpoint of today's catalogue."""
    import torch

    from recommender.checkpoint import load_checkpoint

    given = load_checkpoint(source.path, prepared=context.prepared).item_table().detach()
    if given.shape[1] != table.shape[1]:
        raise InputError(
            f"item vectors of {source.name!r} have the width {given.shape[1]}, not {table.shape[1]}",
            where="adapt.items_from",
        )
    new = torch.from_numpy(aligned.missing)
    table[new] = given[new]


def with_items(model: "LlmRecommender | SasRec", table: "Tensor") -> None:
    """Give a model another item table [n_items + 1, D]; it is trained or frozen as the old one was."""
    from torch import nn

    old = model.items
    model.items = nn.Embedding(len(table), table.shape[1], padding_idx=0, _weight=table)
    model.items.weight.requires_grad_(old.weight.requires_grad)
    model.n_items = len(table) - 1
