"""YAML documents that remember where each value was written, and values replaced by `--set`."""

import copy
from collections.abc import Mapping
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import yaml

from recommender.errors import InputError, nearest

Place = tuple[str | int, ...]

PLAIN_TAGS = ("tag:yaml.org,2002:map", "tag:yaml.org,2002:seq")

MOST_NODES = 100_000
"""A document that expands to more is an alias bomb, not a recipe."""


@dataclass(frozen=True)
class Override:
    """A value that did not come from the file: what to call its place, and what its paths are relative to."""

    label: str
    folder: Path


@dataclass(frozen=True)
class Source:
    """Plain data together with the place of each value."""

    name: str  # shown before the line number
    folder: Path  # what relative paths in the file are relative to
    data: dict[str, Any]
    lines: Mapping[Place, int]
    overrides: Mapping[Place, Override]

    def where(self, place: Place) -> str:
        """`recipe.yaml:12 stages.2.keep` for a place, or the `--set` that wrote it."""
        for end in range(len(place), -1, -1):
            if override := self.overrides.get(place[:end]):
                return f"{override.label}: {dotted(place)}" if place else override.label
            if line := self.lines.get(place[:end]):
                return f"{self.name}:{line} {dotted(place)}".rstrip()
        return f"{self.name} {dotted(place)}".rstrip()

    def base(self, place: Place) -> Path:
        """The folder that a relative path at this place is relative to."""
        for end in range(len(place), -1, -1):
            if override := self.overrides.get(place[:end]):
                return override.folder
        return self.folder

    def at(self, place: Place) -> Any:
        """The value at a place; None where there is none."""
        value: Any = self.data
        for part in place:
            if isinstance(value, dict):
                value = value.get(part)
            elif isinstance(value, list) and isinstance(part, int) and part < len(value):
                value = value[part]
            else:
                return None
        return value

    def with_value(self, key: str, value: Any, override: Override) -> "Source":
        """The same document with one value (or whole section) replaced.

        `key` is dotted; a stage is found by its index, its `as` name, or its kind where only one has it.
        Raises InputError when the key leads through something that is neither a section nor a list.
        """
        data = copy.deepcopy(self.data)
        place = _put(data, key.split("."), value, override)
        lines = {at: line for at, line in self.lines.items() if at[: len(place)] != place}
        return replace(self, data=data, lines=lines, overrides={**self.overrides, place: override})


def read_source(path: Path) -> Source:
    """Read a YAML file whose top is a mapping. Raises InputError with the line of any defect."""
    try:
        text = path.read_text(encoding="utf-8")
    except FileNotFoundError as error:
        raise InputError("file not found", where=str(path)) from error
    except OSError as error:
        raise InputError(f"cannot be read: {error.strerror}", where=str(path)) from error
    except UnicodeDecodeError as error:
        raise InputError("is not UTF-8 text", where=str(path)) from error
    data, lines = parse(text, str(path))
    return source_of(data, name=str(path), folder=path.resolve().parent, lines=lines)


def source_of(data: Any, *, name: str, folder: Path, lines: Mapping[Place, int] | None = None) -> Source:
    """A source from data that is already plain. Raises InputError when its top is no mapping."""
    if not isinstance(data, dict):
        kind = "empty" if data is None else f"a {type(data).__name__}"
        raise InputError(
            f"is {kind}; a recipe is a mapping (name, data, stages, ...)",
            where=name,
            fix="start from a built-in one: recpress recipes copy quickstart",
        )
    return Source(name, folder, data, lines or {}, {})


def parse(text: str, name: str) -> tuple[Any, dict[Place, int]]:
    """YAML text -> plain data and the line of every value. Raises InputError where it is not YAML."""
    loader = yaml.SafeLoader(text)
    try:
        node = loader.get_single_node()
        reader = _Reader(loader, name)
        data = None if node is None else reader.plain(node, ())
    except yaml.YAMLError as error:
        mark = getattr(error, "problem_mark", None)
        where = f"{name}:{mark.line + 1}" if mark else name
        problem = getattr(error, "problem", None) or str(error)
        raise InputError(f"is not valid YAML: {problem}", where=where) from error
    finally:
        loader.dispose()
    return data, reader.lines


def parse_value(text: str, name: str) -> Any:
    """The VALUE of a `--set`, as YAML."""
    return parse(text, name)[0]


def dotted(place: Place) -> str:
    """`stages.2.keep`."""
    return ".".join(str(part) for part in place)


class _Reader:
    """Turns YAML nodes into plain data and notes their lines."""

    def __init__(self, loader: yaml.SafeLoader, name: str) -> None:
        self.loader, self.name = loader, name
        self.lines: dict[Place, int] = {}
        self.open: list[yaml.Node] = []
        self.flattened: list[yaml.Node] = []

    def plain(self, node: yaml.Node, place: Place) -> Any:
        line = node.start_mark.line + 1
        self.lines.setdefault(place, line)
        if any(node is other for other in self.open):
            raise InputError("holds itself", where=f"{self.name}:{line} {dotted(place)}")
        if len(self.lines) > MOST_NODES:
            raise InputError(f"expands to more than {MOST_NODES} values", where=f"{self.name}:{line}")
        self.open.append(node)
        value = self._inside(node, place)
        self.open.pop()
        return value

    def _inside(self, node: yaml.Node, place: Place) -> Any:
        if isinstance(node, yaml.CollectionNode) and node.tag not in PLAIN_TAGS:
            where = f"{self.name}:{node.start_mark.line + 1} {dotted(place)}"
            raise InputError(f"the tag {node.tag} is not allowed in a recipe", where=where)
        if isinstance(node, yaml.SequenceNode):
            return [self.plain(child, (*place, index)) for index, child in enumerate(node.value)]
        if not isinstance(node, yaml.MappingNode):
            return self.loader.construct_object(node)
        if not any(node is other for other in self.flattened):
            self._refuse_double_keys(node, place)
            self.flattened.append(node)
            self.loader.flatten_mapping(node)  # resolves `<<`: merged keys first, own keys win
        data: dict[str, Any] = {}
        for key_node, child in node.value:
            key = str(key_node.value)
            self.lines[*place, key] = key_node.start_mark.line + 1
            data[key] = self.plain(child, (*place, key))
        return data

    def _refuse_double_keys(self, node: yaml.MappingNode, place: Place) -> None:
        keys: set[str] = set()
        for key_node, _ in node.value:
            key, line = str(key_node.value), key_node.start_mark.line + 1
            if key in keys:  # YAML itself would silently keep the last one
                where = f"{self.name}:{line} {dotted((*place, key))}"
                raise InputError("this key is given twice", where=where)
            keys.add(key)


def _put(data: dict[str, Any], parts: list[str], value: Any, override: Override) -> Place:
    place: Place = ()
    here: Any = data
    for depth, part in enumerate(parts):
        last = depth == len(parts) - 1
        if isinstance(here, list):
            index = _index(here, part, place, override)
            place = (*place, index)
            if last:
                here[index] = value
            here = here[index]
        elif isinstance(here, dict):
            place = (*place, part)
            if last:
                here[part] = value
            elif here.get(part) is None:
                here[part] = {}
            here = here[part]
        else:
            raise InputError(
                f"{dotted(place)} is {here!r}, so it has no {part!r} inside", where=override.label
            )
    return place


def _index(entries: list[Any], part: str, place: Place, override: Override) -> int:
    if part.isdecimal() and int(part) < len(entries):
        return int(part)
    if part.isdecimal():
        raise InputError(f"{dotted(place)} has only {len(entries)} entries", where=override.label)
    named = [e if isinstance(e, dict) else {} for e in entries]
    for key in ("as", "stage"):
        found = [index for index, entry in enumerate(named) if entry.get(key) == part]
        if len(found) == 1:
            return found[0]
        if found:
            raise InputError(f"{len(found)} stages are called {part!r}; use the index", where=override.label)
    names = {str(entry[key]) for entry in named for key in ("as", "stage") if key in entry}
    raise InputError(f"no stage is called {part!r}{nearest(part, names)}", where=override.label)
