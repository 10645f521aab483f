"""From what a recipe asks for to a scheme that names every matrix."""

from collections.abc import Iterable, Mapping, Sequence
from fnmatch import fnmatchcase
from pathlib import Path
from typing import Any, Literal, get_args

import yaml

from recommender.errors import InputError, nearest
from recommender.quantization_scheme import Group, MatrixScheme, QuantizationScheme, Weights

Preset = Literal["int8-dynamic", "int8-static", "int4", "nf4", "llm-int8"]
PRESETS: tuple[str, ...] = get_args(Preset)
MIXED = "mixed"


def preset(name: Preset, group: Group | None) -> MatrixScheme:
    """What a preset does with every matrix; `group` is for int4."""
    match name:
        case "int8-dynamic":
            return MatrixScheme(weights="int8", activations="dynamic", narrow=True)
        case "int8-static":
            return MatrixScheme(weights="int8", activations="static")
        case "int4":
            return MatrixScheme(weights="int4", group=group)
    weights: Weights = name
    return MatrixScheme(weights=weights)


def options(group: Group | None) -> dict[str, MatrixScheme]:
    """What a mixed scheme chooses from, the smallest first."""
    kinds: tuple[Preset, ...] = ("int4", "int8-dynamic")
    return {kind: preset(kind, group) for kind in kinds} | {"fp32": MatrixScheme(weights="fp32")}


def resolved(
    asked: Mapping[str, MatrixScheme], names: Iterable[str], beside: Iterable[str] = ()
) -> dict[str, MatrixScheme]:
    """A scheme for matrices by name: patterns (`*.mlp.*`) are spelt out, the last that fits holds.

    `beside`: matrices that no pattern means, only their own names do. Raises InputError where one names no
    matrix at all.
    """
    patterned = list(names)
    every = [*patterned, *(name for name in beside if name not in patterned)]
    found: dict[str, MatrixScheme] = {}
    for pattern, scheme in asked.items():
        fitting = [name for name in patterned if fnmatchcase(name, pattern)]
        fitting = [pattern] if pattern in every else fitting
        if not fitting:
            raise InputError(
                f"the model has no matrix {pattern!r}{nearest(pattern, every)}",
                where="quantize.scheme.matrices",
            )
        found |= dict.fromkeys(fitting, scheme)
    return {name: found[name] for name in every if name in found}


def read_asked(value: Any) -> Any:
    """What a recipe says under `scheme`: a file is read, everything else left to pydantic.

    A relative path stays one, until the recipe has said what it is relative to. Raises ValueError for a name
    that is neither a preset nor a scheme file.
    """
    if not isinstance(value, str | Path) or value in (*PRESETS, MIXED):
        return value
    path = Path(value).expanduser()
    if path.suffix not in (".yaml", ".yml", ".json"):
        known = nearest(str(value), [*PRESETS, MIXED])
        raise ValueError(f"no scheme {str(value)!r}{known}; a scheme of your own is a .yaml or .json file")
    return read_file(path) if path.is_absolute() else path


def read_file(path: Path) -> Any:
    """What a scheme file holds. Raises ValueError when it cannot be read."""
    try:
        return yaml.safe_load(path.read_text(encoding="utf-8"))  # JSON is YAML
    except (OSError, UnicodeDecodeError, yaml.YAMLError) as error:
        raise ValueError(f"cannot read the scheme file {path}: {error}") from error


def scheme_text(scheme: QuantizationScheme, of: str, notes: Sequence[str] = ()) -> str:
    """A scheme as YAML to edit and to give back as `scheme: FILE`; `notes` become comments."""
    document = scheme.model_dump(mode="json", exclude_defaults=True) | {"method": scheme.method}
    head = [
        f"# Quantization scheme of {of}. Edit it and give it back: {{stage: quantize, scheme: FILE, ...}}",
        "# What is not named stays as it is; patterns like *.mlp.* name several, the last that fits holds.",
        *(f"# {note}" for note in notes),
    ]
    return "\n".join(head) + "\n" + yaml.safe_dump(document, sort_keys=False, default_flow_style=None)
