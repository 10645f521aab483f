"""The `data:` and `evaluation:` sections of a recipe."""

from pathlib import Path
from typing import Annotated, Literal, Self, get_args

from pydantic import BaseModel, ConfigDict, Field, model_validator


class Section(BaseModel):
    """Base of every recipe section: frozen, and an unknown key is an error."""

    model_config = ConfigDict(frozen=True, extra="forbid")

    @model_validator(mode="before")
    @classmethod
    def _no_truth_for_a_number(cls, given: object) -> object:
        """YAML's `yes` and `true` are no numbers, though Python would count them as 1."""
        for name, field in cls.model_fields.items():
            value = given.get(field.alias or name) if isinstance(given, dict) else None
            wanted = {field.annotation, *get_args(field.annotation)}
            if isinstance(value, bool) and wanted & {int, float} and bool not in wanted:
                raise ValueError(f"{name} must be a number, not {str(value).lower()}")
        return given


class Columns(Section):
    """Which column of the interaction log is what; names are matched exactly."""

    user: str = Field("user_id", description="column with the user's id")
    item: str = Field("item_id", description="column with the item's id")
    time: str | None = Field(
        "timestamp",
        description="column with unix time (see time_unit); used when present",
    )
    position: str | None = Field(
        "position",
        description="column with the chronological rank within a user; used when present",
    )
    time_unit: Literal["s", "ms", "us", "ns"] = Field("s", description="what the numbers in `time` count")
    rating: str | None = Field("rating", description="column with the rating; read when min_rating is given")
    item_key: str = Field("item_id", description="the id column of the item file")
    title: str = Field("title", description="the column of the item file that is shown to people")
    text: tuple[str, ...] = Field((), description="further text columns to keep; empty keeps all")


class SyntheticLog(Section):
    """Size and seed of the embedded synthetic log."""

    users: int = Field(3000, ge=10, description="number of users")
    items: int = Field(480, ge=20, description="number of items before filtering")
    mean_length: float = Field(12.0, ge=4, description="mean interactions of a user")
    seed: int = Field(7, ge=0, description="seed of the log itself")


class DataConfig(Section):
    """Where the interaction log comes from and how it becomes histories."""

    source: str | None = Field(
        None,
        description="a named source: `synthetic`, `ml-1m`, a folder below root, ...",
    )
    interactions: Path | None = Field(
        None,
        description="an interaction log of your own: CSV(.gz), TSV, JSON lines, Parquet, or a folder of them",
    )
    items: Path | None = Field(None, description="your item file (id, title, further text)")
    root: Path | None = Field(None, description="folder of named sources; default: $RECPRESS_DATA")
    columns: Columns = Field(Columns(), description="column mapping")
    order_by: Literal["auto", "time", "position", "file"] = Field(
        "auto",
        description="what orders a history; auto: time, else position, else file order",
    )
    shuffle_ties: int | None = Field(
        None,
        ge=0,
        description="seed to shuffle interactions of equal time; null keeps file order (stable)",
    )
    time_resolution: int | None = Field(
        None,
        ge=1,
        description="round times down to so many seconds (86400: days, UTC), as if the log knew no more; "
        "null: as they are",
    )
    duplicates: Literal["keep", "first", "last"] = Field(
        "first",
        description="repeated items of one user: keep all, or only the first or last",
    )
    min_user: int = Field(5, ge=1, description="k-core: least interactions of a user (iterated)")
    min_item: int = Field(5, ge=1, description="k-core: least interactions of an item (iterated)")
    min_rating: float | None = Field(None, description="drop interactions with a lower rating")
    catalogue: Literal["log", "all"] = Field(
        "log",
        description="log: items of the filtered log; all: adds the rest of the item file",
    )
    max_length: int = Field(50, ge=1, description="longest history that a model reads")
    item_seed: int = Field(0, ge=0, description="seed of the row permutation (rows carry no order)")
    synthetic: SyntheticLog = Field(SyntheticLog(), description="for `source: synthetic`")

    @model_validator(mode="after")
    def _one_origin(self) -> Self:
        if (self.source is None) == (self.interactions is None):
            raise ValueError("give exactly one of `source` and `interactions`")
        if self.items is not None and self.interactions is None:
            raise ValueError("`items` goes with `interactions`; a named source brings its own")
        return self


class TemporalSplit(Section):
    """Global temporal split: train on the first part of all interactions, test on the rest."""

    temporal: float = Field(
        gt=0,
        lt=1,
        description="share of interactions (by time) to train on; the rest is halved into "
        "validation and test",
    )


SplitConfig = Literal["leave-one-out"] | TemporalSplit


class EvaluationConfig(Section):
    """How ranking quality is measured."""

    split: SplitConfig = Field("leave-one-out", description="what is held out")
    ks: tuple[Annotated[int, Field(ge=1)], ...] = Field(
        (1, 5, 10, 20), min_length=1, description="cut-offs of HR@K and NDCG@K"
    )
    mask_seen: bool = Field(True, description="never recommend what the history holds")
    ties: Literal["pessimistic", "by-row"] = Field(
        "pessimistic",
        description="equal scores count against the target, or are ordered by row",
    )
    sampled_negatives: int | None = Field(
        None,
        ge=1,
        description="rank among this many sampled items instead of the whole catalogue (labelled)",
    )
