"""Why is it not faster: a row of the roofline in words, by rules.

By share of the bound: above 1 a call is faster than memory or peak allow (caches); from `NEAR` on it is at
the bound; from `FAR` on it is on the way. Below that, it is the overhead of calls and operators where at
least `FIXED` of what lies above the bound is what a small batch spends outside of matrix products, scoring
and top-k (`fixed_ms`); else the operators are slow.
"""

from collections.abc import Callable, Sequence
from typing import Literal

from bench.report import wording
from bench.report.roofline_parts import CallPart, PartOfCall, RooflineRow

NEAR, FAR = 0.7, 0.3
SMALL = 8
"""Largest batch whose time above its bound counts as what every call costs."""
FIXED = 0.5
CATALOGUE = ("scoring", "top_k")
TOLD = 0.05
"""Parts with a smaller share of the time are not told of."""

Verdict = Literal["beyond", "near", "partly", "far"]

NAMES = {
    "embedding": "the embedding", "blocks": "the blocks", "head": "the head", "scoring": "scoring",
    "top_k": "top-k", "copies": "copies", "other": "the host (batches, copies, calls)",
}  # fmt: skip


def verdict(share_of_bound: float) -> Verdict:
    """How near a call comes to what the machine allows."""
    if share_of_bound > 1:
        return "beyond"
    return "near" if share_of_bound >= NEAR else "partly" if share_of_bound >= FAR else "far"


def reason(rows: Sequence[RooflineRow]) -> str:
    """Sentences on one candidate, at its smallest and its largest batch of the load that is most even.

    Full histories, where they were timed: they hold no padding. Empty where nothing is known.
    """
    if not rows:
        return ""
    loads = {row.load for row in rows}
    load = "full" if "full" in loads else "real"
    batches = sorted((row for row in rows if row.load == load), key=lambda row: row.batch)
    ends = [batches[0], batches[-1]] if len(batches) > 1 else batches
    return " ".join(sentence(row, fixed_ms=fixed_ms(batches)) for row in ends)


def fixed_ms(batches: Sequence[RooflineRow]) -> float | None:
    """What a call costs above its bound, whatever its batch: told by the smallest one, where it is small.

    The host, copies, and what the blocks do besides matrix products: a product that is slow is a slow
    operator at every batch. Scoring and top-k grow with the catalogue, so what they lose is not the call's.
    Where no profile tells of products (checkpoints), it is what the blocks need whatever the batch; where
    nothing was taken apart, what the whole call does. None: nothing tells.
    """
    least = batches[0]
    if least.batch > SMALL or least.bound_ms is None:
        return None
    if all(part.time_ms is None for part in least.parts):
        same = _same_ms(batches, lambda row: row.time_ms)
        return None if same is None else max(0.0, same - least.bound_ms)
    return _part_ms(least, "other") + _part_ms(least, "copies") + _besides_products(batches)


def _besides_products(batches: Sequence[RooflineRow]) -> float:
    """Milliseconds that the blocks spend on other things at the smallest batch."""
    least = batches[0]
    blocks = _part_ms(least, "blocks")
    if least.products is not None:
        return max(0.0, blocks - least.products.share * least.time_ms)
    same = _same_ms(batches, lambda row: _part_ms(row, "blocks"))
    bound = next((part.bound_ms for part in least.parts if part.part == "blocks"), None)
    return 0.0 if same is None else max(0.0, same - (bound or 0.0))


def _same_ms(batches: Sequence[RooflineRow], of: Callable[[RooflineRow], float]) -> float | None:
    """What is left of a time at a batch of none, on a line through the smallest and the largest batch."""
    known = [row for row in batches if of(row) > 0]
    if len(known) < 2 or known[0] is not batches[0]:
        return None
    least, most = known[0], known[-1]
    slope = (of(most) - of(least)) / (most.batch - least.batch)
    return max(0.0, min(of(least), of(least) - slope * least.batch))


def _part_ms(row: RooflineRow, name: PartOfCall) -> float:
    return sum(part.time_ms or 0.0 for part in row.parts if part.part == name)


def sentence(row: RooflineRow, *, fixed_ms: float | None = None) -> str:
    """What holds one call up; `fixed_ms` of it every call costs."""
    said = [_bound(row, fixed_ms)]
    if shares := _shares(row.parts):
        said.append(shares)
    if row.share_of_bound is not None and verdict(row.share_of_bound) in ("partly", "far"):
        said += _lost(row.parts)
    if row.products is not None:
        said.append(_products(row))
    if row.without_peak:
        *names, last = (NAMES[part] for part in row.without_peak)
        told = f"{', '.join(names)} and {last}" if names else last
        why = "are not in fp32" if row.device is None else "are in a precision without a peak"
        said.append(f"the products of {told} {why} and not in this bound")
    return "; ".join(said) + "."


def _bound(row: RooflineRow, fixed_ms: float | None) -> str:
    where = f"At batch {row.batch} ({wording.load(row.load)})"
    time = f"{wording.significant(row.time_ms)} ms"
    if row.share_of_bound is None or row.bound_ms is None:
        return f"{where} a call takes {time}"
    by = {"compute": "compute", "memory": "memory"}[row.bound_by or "compute"]
    share = f"{row.share_of_bound:.0%}"
    least = f"{wording.significant(row.bound_ms)} ms"
    numbers = f"the machine could read the weights and compute in {least}, the call takes {time}"
    match verdict(row.share_of_bound):
        case "beyond" if by == "memory":
            return f"{where} it is faster than memory, so its weights stay in caches: {numbers}"
        case "beyond":
            return (
                f"{where} it is faster than the peak that was measured, on a machine that was busy: {numbers}"
            )
        case "near":
            less = "FLOPs or a lower precision" if by == "compute" else "bytes"
            return f"{where} it runs at the {by} bound ({share}), and only fewer {less} would help: {numbers}"
        case "partly":
            return f"{where} it reaches {share} of the {by} bound: {numbers}"
        case "far":
            cause = _held_up(row.time_ms - row.bound_ms, fixed_ms)
            return f"{where} it is {cause} ({share} of the {by} bound): {numbers}"


def _held_up(above_ms: float, fixed_ms: float | None) -> str:
    if fixed_ms is not None and fixed_ms >= FIXED * above_ms:
        return "bound by the overhead of calls and operators"
    return "far from both bounds, as its operators are slower than arithmetic and memory are"


def _shares(parts: Sequence[CallPart]) -> str:
    """The parts with most of the time, largest first."""
    known = sorted((part for part in parts if (part.share or 0) >= TOLD), key=lambda part: -(part.share or 0))
    told = [f"{part.share:.0%} is in {NAMES[part.part]}" for part in known if part.share is not None]
    return ", ".join(told)


def _above(parts: Sequence[CallPart]) -> dict[PartOfCall, float]:
    """Milliseconds of each timed part beyond its own bound."""
    return {part.part: part.time_ms - (part.bound_ms or 0.0) for part in parts if part.time_ms is not None}


def _lost(parts: Sequence[CallPart]) -> list[str]:
    """The part with most time beyond its own bound, where that is known."""
    over = _above(parts)
    if not over:
        return []
    worst = max(over, key=lambda name: over[name])
    if over[worst] <= 0:
        return []
    return [f"most is lost in {NAMES[worst]} ({wording.significant(over[worst])} ms more than its bound)"]


def _products(row: RooflineRow) -> str:
    products = row.products
    assert products is not None
    rate = f"{wording.significant(products.flops_per_second / 1e9)} GFLOP/s"
    of_peak = ""
    if products.share_of_peak is not None:
        of_peak = f", {products.share_of_peak:.0%} of their GEMM peak at the rows of the largest call"
    return (
        f"the matrix products of the blocks run at {rate}{of_peak}, and take {products.share:.0%} of the time"
    )
