"""What pydantic says about a recipe, in our words: the place, what is wrong, the nearest valid spelling."""

import re
import types
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from typing import Any, Literal, Union, get_args, get_origin

from pydantic import BaseModel, ValidationError
from pydantic_core import ErrorDetails

from recommender.errors import InputError, nearest
from recpress.places import Place, Source

NAME = r"^[A-Za-z0-9][A-Za-z0-9._-]*$"
"""Names become folders: letters, digits, dot, dash and underscore, and no dot in front."""


@dataclass(frozen=True)
class Problem:
    """One thing that is wrong with a recipe."""

    place: Place
    message: str


class RecipeError(InputError):
    """Everything that is wrong with a recipe, at once. Exit code 2."""

    def __init__(self, source: Source, problems: Iterable[Problem]) -> None:
        lines = dict.fromkeys(f"{source.where(p.place)}: {p.message}" for p in problems)
        self.problems = tuple(lines)
        super().__init__("\n".join(lines))


def name_problem(name: str) -> str:
    """What is wrong with a name that does not match NAME."""
    return f"{name!r} cannot be a name: use letters, digits, '-', '_' and '.', and no '.' in front"


def problems_of(error: ValidationError, model: type[BaseModel], data: Any) -> list[Problem]:
    """The problems behind a validation error of `data` against `model`; branches of one union are joined."""
    found: dict[Place, list[str]] = {}
    for detail in error.errors(include_url=False):
        if detail["type"] == "too_short" and len(detail["input"]) >= detail["ctx"]["min_length"]:
            continue  # only because its entries are wrong, which is told by itself
        problem = _problem(detail, model, data)
        messages = found.setdefault(problem.place, [])
        if problem.message not in messages:
            messages.append(problem.message)
    return [Problem(place, ", or ".join(messages)) for place, messages in found.items()]


def _problem(detail: ErrorDetails, model: type[BaseModel], data: Any) -> Problem:
    place, types_here = _resolve(detail["loc"], model, data, missing=detail["type"] == "missing")
    context = detail.get("ctx", {})
    given = detail.get("input")
    match detail["type"]:
        case "extra_forbidden":
            return Problem(place, f"unknown key{nearest(str(place[-1]), _keys(types_here))}")
        case "missing":
            return Problem(place, "this key is required")
        case "union_tag_not_found":
            key = str(context["discriminator"]).strip("'")
            return Problem((*place, key), "this key is required")
        case "union_tag_invalid":
            key = str(context["discriminator"]).strip("'")
            tags = re.findall(r"'([^']*)'", str(context["expected_tags"]))
            return Problem((*place, key), f"unknown {key} {context['tag']!r}{nearest(context['tag'], tags)}")
        case "literal_error":
            expected = str(context["expected"])
            options = re.findall(r"'([^']*)'", expected) or re.split(", | or ", expected)
            hint = nearest(given, options) if isinstance(given, str) else f" (valid: {', '.join(options)})"
            return Problem(place, f"cannot be {given!r}{hint}")
        case "value_error":
            return Problem(place, str(context["error"]))
        case "model_type" | "model_attributes_type" | "dict_type":
            return Problem(place, f"must be a mapping (key: value), not {given!r}")
        case "string_pattern_mismatch" if context["pattern"] == NAME:
            return Problem(place, name_problem(str(given)))
    text = detail["msg"][:1].lower() + detail["msg"][1:].replace("Input should", "should")
    shown = "" if isinstance(given, dict | list) or given is None else f", not {given!r}"
    return Problem(place, text.replace("input should", "should") + shown)


def _resolve(
    loc: Sequence[int | str], model: type[BaseModel], data: Any, *, missing: bool
) -> tuple[Place, list[Any]]:
    """The place without pydantic's union tags, and the types that the last part was looked up in."""
    place: Place = ()
    candidates: list[Any] = [model]
    parents = candidates
    for number, part in enumerate(loc):
        last = number == len(loc) - 1
        inside = (isinstance(data, dict) and part in data) or (
            isinstance(data, list) and isinstance(part, int) and part < len(data)
        )
        if inside or (last and missing):
            parents = _narrowed(candidates, data)
            candidates = [t for parent in parents for t in _inside(parent, part)]
            data = data[part] if inside else None
            place = (*place, part)
        else:  # a union's tag: no step into the data, but it says which branch is meant
            candidates = [t for t in candidates if _is_branch(t, part)] or candidates
    return place, parents


def _narrowed(candidates: list[Any], data: Any) -> list[Any]:
    """Of several models those whose Literal fields agree with the data."""
    if not isinstance(data, dict):
        return candidates
    agreeing = [
        t for t in candidates
        if isinstance(t, type) and issubclass(t, BaseModel)
        and all(data.get(k, v[0]) in v for k, v in _literals(t).items())
    ]  # fmt: skip
    return agreeing or candidates


def _literals(model: type[BaseModel]) -> dict[str, tuple[Any, ...]]:
    return {
        name: get_args(field.annotation)
        for name, field in model.model_fields.items()
        if name in ("stage", "kind") and get_origin(field.annotation) is Literal
    }


def _is_branch(candidate: Any, tag: int | str) -> bool:
    if not (isinstance(candidate, type) and issubclass(candidate, BaseModel)):
        return False
    return candidate.__name__ == tag or any(tag in values for values in _literals(candidate).values())


def _inside(parent: Any, part: int | str) -> list[Any]:
    """The types that `parent` may hold at `part`."""
    if isinstance(parent, type) and issubclass(parent, BaseModel):
        for name, field in parent.model_fields.items():
            if part in (name, field.alias):
                return branches(field.annotation)
        return []
    arguments = get_args(parent)
    if get_origin(parent) in (tuple, list):
        return branches(arguments[0])
    if get_origin(parent) is dict:
        return branches(arguments[1])
    return []


def branches(annotation: Any) -> list[Any]:
    """A type with Annotated and unions taken apart."""
    if hasattr(annotation, "__metadata__"):
        return branches(annotation.__origin__)
    if get_origin(annotation) in (Union, types.UnionType):
        return [t for branch in get_args(annotation) for t in branches(branch)]
    return [annotation]


def _keys(types_here: Iterable[Any]) -> set[str]:
    return {
        field.alias or name
        for t in types_here
        if isinstance(t, type) and issubclass(t, BaseModel)
        for name, field in t.model_fields.items()
    }
