"""Relative paths in a recipe: relative to the folder of the recipe, or of the `--set` that wrote them."""

import copy
import os
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any

from pydantic import BaseModel

from recpress.places import Place, Source


def anchored(source: Source, section: BaseModel, place: Place) -> Any:
    """The data that stands at `place`, with every relative path in it made absolute.

    `section` is what was validated from it. A section may read the files that absolute paths name when it is
    validated again, which relative ones do not allow yet.
    """
    data = copy.deepcopy(source.at(place))
    for below, path in paths_in(section, ()):
        inner: Any = data
        for part in below[:-1]:
            inner = inner.get(part) if isinstance(inner, dict) else inner[part]
            if inner is None:  # a default that the file does not mention
                break
        if inner is None or (isinstance(inner, dict) and inner.get(below[-1]) is None):
            continue
        absolute = os.path.abspath(source.base((*place, *below)) / path.expanduser())
        if below[-1] != "backbone" or os.path.isdir(absolute):  # else: the name of a model on the hub
            inner[below[-1]] = absolute
    return data


def paths_in(value: Any, place: Place) -> Iterator[tuple[Place, Path]]:
    """Every path in a recipe with its place; `backbone` may be one."""
    if isinstance(value, Path) or (isinstance(value, str) and place[-1] == "backbone"):
        yield place, Path(value)
    elif isinstance(value, BaseModel):
        for name, field in type(value).model_fields.items():
            yield from paths_in(getattr(value, name), (*place, field.alias or name))
    elif isinstance(value, Mapping):
        for key, entry in value.items():
            yield from paths_in(entry, (*place, key))
    elif isinstance(value, tuple | list):
        for index, entry in enumerate(value):
            yield from paths_in(entry, (*place, index))
