"""Checks across stages: names, kinds, and what the stages themselves can tell before anything runs."""

import re
from collections.abc import Iterator
from dataclasses import replace
from typing import Any

from pydantic import ValidationError

from recommender.data.config import EvaluationConfig
from recommender.errors import InputError, nearest
from recommender.stage import Shape, StageConfig
from recpress.anchoring import anchored
from recpress.folders import SEED, SEEDS, of_seed
from recpress.given import a_kind, shape_of
from recpress.messages import NAME, Problem, name_problem
from recpress.places import Place, Source
from recpress.stages import StageTable


def cross_checks(source: Source, stages: StageTable) -> list[Problem]:
    """All that is wrong between the stages of a recipe; stages broken by themselves are passed over."""
    problems: list[Problem] = []
    known = _given_shapes(source, problems)
    entries = source.data.get("stages")
    evaluation = _evaluation(source)
    longest = _longest_list(evaluation)
    every = {str(e["as"]) for e in entries or [] if isinstance(e, dict) and "as" in e}
    for index, entry in enumerate(entries if isinstance(entries, list) else []):
        place: Place = ("stages", index)
        config = _config(source, place, stages)
        if config is not None:
            problems += _check_stage(config, entry, place, known, every, longest)
        name = entry.get("as") if isinstance(entry, dict) else None
        if isinstance(name, str):
            problems += _check_name(name, (*place, "as"), known)
            shape = config.shape(known) if config is not None and _all_known(config, known) else None
            known[name] = _with_metrics(shape or Shape("checkpoint"), evaluation)
    for name in _mapping(source.data.get("variants")):
        problems += _check_spelling(str(name), ("variants", str(name)))
    return problems


def _given_shapes(source: Source, problems: list[Problem]) -> dict[str, Shape]:
    known: dict[str, Shape] = {}
    for name, folder in _mapping(source.data.get("inputs")).items():
        place: Place = ("inputs", str(name))
        problems += _check_spelling(str(name), place)
        if not isinstance(folder, str):
            continue
        seeds = source.data.get("seeds", SEEDS) if SEED in folder else (None,)
        for seed in seeds if isinstance(seeds, list | tuple) else ():
            one = of_seed(source.base(place) / folder, seed)
            try:
                known[str(name)] = shape_of(one)
            except InputError as error:
                mend = f"; to mend it, {error.fix}" if error.fix else ""
                problems.append(Problem(place, f"{one}: {error.what}{mend}"))
                known[str(name)] = Shape("checkpoint")
    return known


def _check_stage(
    config: StageConfig,
    entry: dict[str, Any],
    place: Place,
    known: dict[str, Shape],
    every: set[str],
    longest: int,
) -> Iterator[Problem]:
    for name in dict.fromkeys(config.consumes):
        at = (*place, *_written_at(entry, name))
        if name not in known:
            later = name in every
            hint = "; it is bound by a later stage, move that up" if later else nearest(name, known)
            yield Problem(at, f"no earlier stage binds the name {name!r}{hint}")
        elif known[name].kind not in config.accepts:
            wanted = " or ".join(config.accepts)
            yield Problem(at, f"{name!r} is {a_kind(known[name].kind)}, but this stage needs a {wanted}")
    yield from _short_lists(config, entry, place, known, longest)
    if _all_known(config, known):
        for field, message in config.problems(known):
            yield Problem((*place, *(int(p) if p.isdecimal() else p for p in field.split("."))), message)


def _short_lists(
    config: StageConfig, entry: dict[str, Any], place: Place, known: dict[str, Shape], longest: int
) -> Iterator[Problem]:
    """Artifacts whose lists end before the last place that the evaluation asks for."""
    for name in config.consumes if config.pools_seeds else ():
        depth = known[name].top_k if name in known else None
        if longest == SAMPLED and name in known and known[name].kind == "artifact":
            message = (
                f"{name!r} gives only its best items, but evaluation.sampled_negatives needs exact ranks"
            )
            yield Problem((*place, *_written_at(entry, name)), message)
        if depth is not None and depth < longest:
            message = f"{name!r} answers {depth} items, but evaluation.ks asks for {longest}: raise its top_k"
            yield Problem((*place, *_written_at(entry, name)), message)


SAMPLED = -1
"""In place of the longest list: ranks are asked for among sampled items, which no list can tell."""


def _evaluation(source: Source) -> EvaluationConfig | None:
    """The evaluation; None where it is wrong, which is told elsewhere."""
    try:
        return EvaluationConfig.model_validate(source.data.get("evaluation") or {})
    except ValidationError:
        return None


def _longest_list(evaluation: EvaluationConfig | None) -> int:
    """The largest K of the evaluation; 0 where it is wrong; or SAMPLED."""
    if evaluation is None:
        return 0
    return max(evaluation.ks) if evaluation.sampled_negatives is None else SAMPLED


def _with_metrics(shape: Shape, evaluation: EvaluationConfig | None) -> Shape:
    """The shape of a bench with the cut-offs that it will measure at, which the bench itself does not say."""
    if shape.measures is None or evaluation is None:
        return shape
    return replace(shape, measures=replace(shape.measures, ks=tuple(evaluation.ks)))


def _all_known(config: StageConfig, known: dict[str, Shape]) -> bool:
    return all(name in known and known[name].kind in config.accepts for name in config.consumes)


def _check_name(name: str, place: Place, known: dict[str, Shape]) -> Iterator[Problem]:
    yield from _check_spelling(name, place)
    if name in known:
        yield Problem(place, f"the name {name!r} is already bound; a name is bound once")


def _check_spelling(name: str, place: Place) -> Iterator[Problem]:
    if not re.match(NAME, name):
        yield Problem(place, name_problem(name))


def _config(source: Source, place: Place, stages: StageTable) -> StageConfig | None:
    """The config of one stage with the files that it names read, where it names them; None when it is broken
    (which is reported elsewhere).
    """
    entry = source.at(place)
    kind = stages.get(str(entry.get("stage"))) if isinstance(entry, dict) else None
    if kind is None:
        return None
    try:
        config = kind.config_class().model_validate(entry)
        return kind.config_class().model_validate(anchored(source, config, place))
    except ValidationError:
        return None


def _written_at(value: Any, name: str) -> Place:
    """Where inside a stage a name is used; () when it stands in a default."""
    if not isinstance(value, dict | list):
        return ()
    for key, entry in value.items() if isinstance(value, dict) else enumerate(value):
        if key in ("as", "stage"):
            continue
        if entry == name:
            return (key,)
        if below := _written_at(entry, name):
            return (key, *below)
    return ()


def _mapping(value: Any) -> dict[Any, Any]:
    return value if isinstance(value, dict) else {}
