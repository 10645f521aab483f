"""Where the candidates come from: data, parents as a tree, digests, machine and versions."""

from collections.abc import Mapping, Sequence

from bench.report import wording
from bench.report.blocks import Block, Facts, Tree
from bench.report.schema import Environment, Report
from bench.report.table import Table, row

DIGITS = 16
"""Digits of a digest that are shown; the whole one stands in report.json."""
DEEPEST = 12
"""Lines of a tree are not moved further in than this."""


def origin_blocks(report: Report) -> list[Block]:
    """Data digest, tree and digests; none without provenance."""
    found = report.sections.provenance
    if found is None:
        return []
    note = f"The first {DIGITS} digits of SHA-256 digests; report.json has all of them."
    rows = [row(name, digest[:DIGITS]) for name, digest in found.digests.items()]
    return [
        Facts("", [("data digest", found.data_digest[:DIGITS])]),
        Tree("What was made from what", "", family(found.parents)),
        Table("Digests", note, ("name", "stage or manifest"), rows),
    ]


def family(parents: Mapping[str, Sequence[str]]) -> list[tuple[int, str]]:
    """(depth, name) of everything, each below its first parent; further parents are named beside it.

    Names that are their own ancestors stand at the left, so no wrong record makes a line disappear.
    """
    names = list(dict.fromkeys([name for one in parents.values() for name in one] + list(parents)))
    children: dict[str, list[str]] = {name: [] for name in names}
    for name in names:
        if first := list(parents.get(name, ()))[:1]:
            children[first[0]].append(name)
    lines: list[tuple[int, str]] = []
    told: set[str] = set()
    roots = [name for name in names if not parents.get(name)]
    for root in [*roots, *names]:
        waiting = [(0, root)]
        while waiting:
            depth, name = waiting.pop()
            if name in told:
                continue
            told.add(name)
            lines.append((min(depth, DEEPEST), _with_others(name, parents.get(name, ()), depth)))
            waiting += [(depth + 1, child) for child in reversed(children[name])]
    return lines


def _with_others(name: str, parents: Sequence[str], depth: int) -> str:
    others = parents[1:] if depth else parents
    return f"{name} (with {', '.join(others)})" if others else name


def environment_facts(environment: Environment) -> list[tuple[str, str]]:
    """What is known of the machine, as (name, text)."""
    known = environment.model_dump(exclude_none=True)
    if "memory_bytes" in known:
        known["memory"] = wording.size(known.pop("memory_bytes"))
    return [(key, " ".join(value) if isinstance(value, list) else str(value)) for key, value in known.items()]
