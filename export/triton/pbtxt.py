"""Protobuf text as the server's configurations need it: written, and read back for `recpress verify`.

Reading needs no protobuf classes, which come with the server's client only; tests hold both against those.
"""

import json
import re
from collections.abc import Iterator, Sequence
from typing import Any, NamedTuple, Union

from recommender.errors import InputError


class Word(NamedTuple):
    """A bare word: the name of an enum's value."""

    name: str


Value = Union[str, int, bool, Word, "Message", Sequence["Value"]]
Message = dict[str, Any]
"""Field -> Value; a list is a repeated field."""

TOKEN = re.compile(
    r'\s*(?:#[^\n]*\s*)*(?:("(?:[^"\\\n]|\\.)*")|([A-Za-z_][\w.]*)|(-?\d+(?:\.\d+)?)|([][{}:,;]))'
)


def write_pbtxt(message: Message) -> str:
    """A message as text, one field a line."""
    return "\n".join(_fields(message, "")) + "\n"


def _fields(message: Message, indent: str) -> Iterator[str]:
    for name, value in message.items():
        if isinstance(value, list) and value and isinstance(value[0], dict):
            yield f"{indent}{name} ["
            for number, each in enumerate(value):
                yield f"{indent}  {{"
                yield from _fields(each, indent + "    ")
                yield f"{indent}  }}{',' if number + 1 < len(value) else ''}"
            yield f"{indent}]"
        elif isinstance(value, dict):
            yield f"{indent}{name} {{"
            yield from _fields(value, indent + "  ")
            yield f"{indent}}}"
        else:
            yield f"{indent}{name}: {_scalar(value)}"


def _scalar(value: Any) -> str:
    if isinstance(value, list):
        return f"[ {', '.join(map(_scalar, value))} ]" if value else "[ ]"
    if isinstance(value, bool):
        return "true" if value else "false"
    if isinstance(value, Word):
        return value.name
    return json.dumps(value, ensure_ascii=False)


def read_pbtxt(text: str, where: str) -> Message:
    """Parse a message: every field a list of its values, in order. Raises InputError with the line."""
    tokens = list(_tokens(text, where))
    message, end = _message(tokens, 0, None, where)
    if end != len(tokens):
        raise InputError(f"line {tokens[end][1]}: what was closed never began", where=where)
    return message


def _tokens(text: str, where: str) -> Iterator[tuple[Any, int]]:
    place, stop = 0, len(re.sub(r"(\s|#[^\n]*(\n|$))+$", "", text))
    while place < stop:
        found = TOKEN.match(text, place)
        line = text.count("\n", 0, place if found is None else found.start(found.lastindex or 0)) + 1
        if found is None:
            raise InputError(f"line {line}: cannot be read", where=where, fix="write the repository again")
        quoted, word, number, sign = found.groups()
        if quoted is not None:
            yield _text(quoted, line, where), line
        elif number is not None:
            yield (float(number) if "." in number else int(number)), line
        elif word is not None:
            yield {"true": True, "false": False}.get(word, Word(word)), line
        else:
            yield Sign(sign), line
        place = found.end()


def _text(quoted: str, line: int, where: str) -> str:
    """A text without its quotes, which are as in JSON."""
    try:
        return str(json.loads(quoted))
    except ValueError as error:
        raise InputError(f"line {line}: {quoted} cannot be read: {error}", where=where) from error


class Sign(NamedTuple):
    """A bracket or a separator."""

    text: str


def _message(tokens: list[tuple[Any, int]], at: int, end: str | None, where: str) -> tuple[Message, int]:
    """Fields from a place on, up to the closing bracket (None: of the whole text)."""
    message: Message = {}
    while at < len(tokens) and tokens[at][0] != Sign(end or ""):
        name, line = tokens[at]
        if name in (Sign(","), Sign(";")):
            at += 1
            continue
        if not isinstance(name, Word):
            told = name.text if isinstance(name, Sign) else name
            raise InputError(f"line {line}: {told!r} where a field belongs", where=where)
        at += 1
        if at < len(tokens) and tokens[at][0] == Sign(":"):
            at += 1
        values, at = _values(tokens, at, where)
        message.setdefault(name.name, []).extend(values)
    if end is not None and at >= len(tokens):
        raise InputError(f"ends before a {end!r}", where=where)
    return message, at


def _values(tokens: list[tuple[Any, int]], at: int, where: str) -> tuple[list[Any], int]:
    """One value, or those of a list, from a place on."""
    if at >= len(tokens):
        raise InputError("ends where a value belongs", where=where)
    value, line = tokens[at]
    if value == Sign("{"):
        inner, at = _message(tokens, at + 1, "}", where)
        return [inner], at + 1
    if value != Sign("["):
        if isinstance(value, Sign):
            raise InputError(f"line {line}: {value.text!r} where a value belongs", where=where)
        return [value], at + 1
    found: list[Any] = []
    at += 1
    while at < len(tokens) and tokens[at][0] != Sign("]"):
        if tokens[at][0] == Sign(","):
            at += 1
            continue
        one, at = _values(tokens, at, where)
        found += one
    if at >= len(tokens):
        raise InputError("ends before a ']'", where=where)
    return found, at + 1
