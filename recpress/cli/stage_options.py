"""What a stage can be told: a row for each option, in the words of a recipe."""

import json
from collections.abc import Iterable, Iterator, Mapping
from pathlib import Path
from typing import Annotated, Any, Literal, get_args, get_origin

from annotated_types import Ge, Gt, Le, Lt
from pydantic import BaseModel
from pydantic.fields import FieldInfo

from recpress.messages import branches

Row = tuple[str, str, str, str | None]

SIGNS = ((Ge, "ge", ">="), (Gt, "gt", ">"), (Le, "le", "<="), (Lt, "lt", "<"))
WORDS: Mapping[Any, str] = {type(None): "null", Path: "path"}


def option_rows(config: type[BaseModel], before: str = "") -> Iterator[Row]:
    """(key, type, default, what it is) of all fields; those of a section stand below it as `section.key`.

    Where a section may be of several kinds, as `section(kind).key`; in a map, as `map.NAME.key`.
    """
    for key, field in config.model_fields.items():
        if key == "stage" or (key == "kind" and _tag(config)):
            continue
        path, shown = before + (field.alias or key), _bounded(_type_of(field.annotation), field.metadata)
        yield path, shown, _default(field), field.description
        yield from _below(path, branches(field.annotation))


def _below(path: str, found: list[Any]) -> Iterator[Row]:
    sections = [each for each in found if _is_section(each)]
    for section in sections:
        yield from option_rows(section, f"{path}({_tag(section)})." if len(sections) > 1 else f"{path}.")
    for each in found:
        if get_origin(each) is dict:
            yield from _below(f"{path}.NAME", branches(get_args(each)[1]))


def _type_of(annotation: Any) -> str:
    """As a recipe has it: `int >= 1 | null`, `list of str`, `[int, int, int]`, `first | greedy`."""
    origin, inner = get_origin(annotation), get_args(annotation)
    if origin is Annotated:
        return _bounded(_type_of(inner[0]), inner[1:])
    if origin is Literal:
        return " | ".join(str(value) for value in inner)
    if origin is dict:
        return f"map of {_type_of(inner[1])}"
    if origin is tuple and inner[-1] is Ellipsis:
        of = _type_of(inner[0])
        return f"list of ({of})" if " | " in of else f"list of {of}"
    if origin is tuple:
        return f"[{', '.join(_type_of(each) for each in inner)}]"
    if inner:
        return " | ".join(dict.fromkeys(_type_of(each) for each in inner))
    if _is_section(annotation):
        return _tag(annotation) or "section"
    return WORDS.get(annotation, annotation.__name__)


def _bounded(shown: str, notes: Iterable[Any]) -> str:
    """`float > 0, <= 1`, `int >= 1 | null`; limits of length are left to the error message."""
    stated = [each for note in notes for each in (note.metadata if isinstance(note, FieldInfo) else [note])]
    bounds = [
        f"{sign} {getattr(each, name)}" for each in stated for kind, name, sign in SIGNS if type(each) is kind
    ]
    kept = shown.removesuffix(" | null")
    return " ".join([kept, ", ".join(bounds)]) + shown[len(kept) :] if bounds else shown


def _default(field: FieldInfo) -> str:
    if field.is_required():
        return "required"
    value = field.get_default(call_default_factory=True)
    if isinstance(value, BaseModel):
        return ""  # its options say so
    return str(value) if isinstance(value, str | Path) else json.dumps(value)


def _is_section(annotation: Any) -> bool:
    return isinstance(annotation, type) and issubclass(annotation, BaseModel)


def _tag(section: type[BaseModel]) -> str | None:
    """The only `kind` that it can have, which tells it from others; None where it has none."""
    kinds = get_args(section.model_fields["kind"].annotation) if "kind" in section.model_fields else ()
    return str(kinds[0]) if len(kinds) == 1 else None
