"""What the intervals of one comparison allow to say, in a few words."""

from collections.abc import Sequence
from typing import NamedTuple

from bench.report import wording
from bench.report.parts import QualityRatio
from bench.report.schema import Comparison, Report, Speedup
from bench.report.table import key_name

NON_INFERIOR = 0.97
"""Share of the reference's quality whose lower bound counts as `not worse` (as in `bench.findings`)."""


class Verdict(NamedTuple):
    """`kind`: holds (not worse for sure), fails (not shown to be so, or slower everywhere), open."""

    kind: str
    text: str


def verdict(report: Report, comparison: Comparison) -> Verdict:
    """Quality and speed together; what was not measured decides nothing."""
    quality, kept = of_quality(comparison.quality.get(key_name(report)))
    speed, faster = of_speed(main_load(comparison.speedup))
    text = f"{quality}; {speed}" if speed else quality
    if kept is False or faster is False:
        return Verdict("fails", text)
    return Verdict("holds" if kept and faster is not None else "open", text)


def of_quality(found: QualityRatio | None) -> tuple[str, bool | None]:
    """In words, and whether quality is kept (None: there is no interval to tell)."""
    if found is None:
        return "quality not measured", None
    if found.ci95 is None:
        return "quality without an interval", None
    low, high = found.ci95
    if low > 1:
        return "better quality", True
    if low > NON_INFERIOR:
        return f"not worse (within {1 - NON_INFERIOR:.0%})", True
    return ("worse quality" if high < NON_INFERIOR else f"not shown to keep {NON_INFERIOR:.0%}"), False


def of_speed(found: Sequence[Speedup]) -> tuple[str, bool | None]:
    """In words, and whether it is faster somewhere (True) or slower everywhere (False)."""
    tones = {each.batch: wording.speed_tone(each) for each in found}
    if not tones:
        return "", None
    faster = [batch for batch, tone in tones.items() if tone == "better"]
    slower = [batch for batch, tone in tones.items() if tone == "worse"]
    if len(faster) == len(tones):
        return "faster", True
    if len(slower) == len(tones):
        return "slower", False
    said = [
        f"{word} at batch {_listed(some)}" for word, some in (("faster", faster), ("slower", slower)) if some
    ]
    return ", ".join(said) or "no clear difference in speed", bool(faster) or None


def main_load(found: Sequence[Speedup]) -> list[Speedup]:
    """Those of the load that comes nearest to real traffic, by batch size."""
    for load in ("real", "full", "open-loop"):
        if some := sorted((each for each in found if each.load == load), key=lambda each: each.batch):
            return some
    return []


def _listed(batches: Sequence[int]) -> str:
    return ", ".join(map(str, batches))
