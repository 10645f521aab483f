"""What `recpress STAGE --options` lists."""

from pathlib import Path
from typing import Annotated, Literal

import pytest
from pydantic import Field

from recommender.data.config import Section
from recpress.cli.stage_options import option_rows
from recpress.stages import STAGES


class Inner(Section):
    kind: Literal["cpu", "gpu"] = "cpu"
    share: float = Field(0.5, gt=0, le=1, description="of all")


class Red(Section):
    kind: Literal["red"] = "red"
    depth: int = 1


class Blue(Section):
    kind: Literal["blue"] = "blue"
    depth: int = 2


class Options(Section):
    stage: Literal["paint"] = "paint"
    as_: str = Field(alias="as")
    at_most: Annotated[int, Field(ge=1)] | None = None
    below: int | None = Field(None, ge=1, lt=9)
    sizes: tuple[Annotated[int, Field(ge=0)], ...] = (1, 2)
    profile: tuple[int, int, int] = (1, 2, 3)
    words: tuple[Literal["a", "b"], ...] | None = None
    place: Path | Literal["here"] = "here"
    opset: Literal[23] = 23
    inner: Inner = Field(default_factory=Inner)
    colour: Annotated[Red | Blue, Field(discriminator="kind")] | None = None
    table: dict[str, Inner] = Field(default_factory=dict)


def test_types_bounds_and_defaults_are_told_in_the_words_of_a_recipe() -> None:
    rows = {key: (shown, default) for key, shown, default, _ in option_rows(Options)}
    assert rows == {
        "as": ("str", "required"),
        "at_most": ("int >= 1 | null", "null"),
        "below": ("int >= 1, < 9 | null", "null"),
        "sizes": ("list of int >= 0", "[1, 2]"),
        "profile": ("[int, int, int]", "[1, 2, 3]"),
        "words": ("list of (a | b) | null", "null"),
        "place": ("path | here", "here"),
        "opset": ("23", "23"),
        "inner": ("section", ""),
        "inner.kind": ("cpu | gpu", "cpu"),
        "inner.share": ("float > 0, <= 1", "0.5"),
        "colour": ("red | blue | null", "null"),
        "colour(red).depth": ("int", "1"),
        "colour(blue).depth": ("int", "2"),
        "table": ("map of section", "{}"),
        "table.NAME.kind": ("cpu | gpu", "cpu"),
        "table.NAME.share": ("float > 0, <= 1", "0.5"),
    }


@pytest.mark.parametrize("name", sorted(STAGES))
def test_every_option_of_every_stage_has_a_type_a_default_and_says_what_it_is(name: str) -> None:
    rows = list(option_rows(STAGES[name].config_class()))
    for key, shown, default, about in rows:
        assert shown and "NoneType" not in shown and "  " not in shown and not shown.startswith("|"), key
        assert about, key
        assert default or shown in ("section", "str"), (key, shown)
    assert len({key for key, *_ in rows}) == len(rows)


def test_the_options_of_models_are_listed_by_kind() -> None:
    rows = {key: shown for key, shown, *_ in option_rows(STAGES["train"].config_class())}
    assert rows["model"] == "llm | sasrec | popularity | item-vectors | null"
    assert rows["model(llm).layers"] == "int >= 1 | null" and rows["model(sasrec).layers"] == "int >= 1"
    assert rows["model(llm).lora.r"] == "int >= 1"
