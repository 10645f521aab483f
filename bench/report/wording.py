"""Numbers and names as people read them; what is absent is a dash."""

import re

from bench.report.parts import Interval, QualityRatio
from bench.report.schema import Evaluation, Speedup

ABSENT = "–"  # noqa: RUF001 - an en dash is what stands for "no number" in print


def quality(value: float | None) -> str:
    """0.0512."""
    return ABSENT if value is None else f"{value:.4f}"


def count(value: float | None) -> str:
    """12,101, 3.4M, 6.7B."""
    if value is None:
        return ABSENT
    for size, unit in ((1e9, "B"), (1e6, "M")):
        if value >= size:
            return f"{value / size:.3g}{unit}"
    return f"{value:,.0f}"


def size(value: int | None) -> str:
    """1.2 MB (decimal units)."""
    if value is None:
        return ABSENT
    for unit_size, unit in ((1e9, "GB"), (1e6, "MB"), (1e3, "kB")):
        if value >= unit_size:
            return f"{value / unit_size:.3g} {unit}"
    return f"{value} B"


def significant(value: float | None) -> str:
    """Three significant digits, no exponent: 0.0123, 4.56, 789, 12,345."""
    if value is None:
        return ABSENT
    return f"{value:,.0f}" if value >= 100 else f"{value:#.3g}".rstrip(".")


def duration(value: float | None) -> str:
    """4.2 s, 3 min 20 s, 2 h 5 min."""
    if value is None:
        return ABSENT
    if value < 60:
        return f"{value:.3g} s"
    minutes, seconds = divmod(round(value), 60)
    if minutes < 60:
        return f"{minutes} min {seconds} s"
    return f"{minutes // 60} h {minutes % 60} min"


def times(value: float | None, ci95: Interval | None = None) -> str:
    """5.21x (4.90 to 5.60)."""
    if value is None:
        return ABSENT
    spread = f" ({decimals(ci95[0])} to {decimals(ci95[1])})" if ci95 else ""
    return f"{decimals(value)}x{spread}"


def decimals(value: float) -> str:
    """Two decimals, none from 100 on, and two significant digits below 0.1."""
    if value >= 100:
        return f"{value:,.0f}"
    return f"{value:.2f}" if value >= 0.1 or value == 0 else f"{value:.2g}"


def percent(value: float | None, ci95: Interval | None = None) -> str:
    """98.2% (96.1 to 100.3)."""
    if value is None:
        return ABSENT
    spread = f" ({ci95[0] * 100:.1f} to {ci95[1] * 100:.1f})" if ci95 else ""
    return f"{value * 100:.1f}%{spread}"


def spread(ci95: Interval) -> str:
    """96.1 to 100.3%."""
    return f"{ci95[0] * 100:.1f} to {ci95[1] * 100:.1f}%"


def moment(created: str) -> str:
    """2026-01-02 03:04 UTC; anything else as it is."""
    found = re.fullmatch(r"(\d{4}-\d\d-\d\d)T(\d\d:\d\d)(?::[\d.]+)?(?:\+00:00|Z)", created)
    return f"{found[1]} {found[2]} UTC" if found else created


def threads(count: int) -> str:
    """1 thread, 4 threads."""
    return f"{count} thread{'' if count == 1 else 's'}"


def p_value(value: float | None) -> str:
    """0.034, < 0.001."""
    if value is None:
        return ABSENT
    return "< 0.001" if value < 0.001 else f"{value:.3f}"


def metric(name: str, evaluation: Evaluation) -> str:
    """HR@10; a metric among sampled negatives says so wherever it is shown."""
    label = name.upper()
    sampled = evaluation.sampled_negatives
    return label if sampled is None else f"{label} (among {sampled} sampled)"


def tone(found: QualityRatio) -> str:
    """`worse` or `better` where the whole interval lies on one side of 1, else nothing."""
    if found.ci95 is None:
        return ""
    low, high = found.ci95
    return "worse" if high < 1 else "better" if low > 1 else ""


def speed_tone(found: Speedup) -> str:
    """The same of a speed-up, whose interval has to lie beyond what two equal processes differ by."""
    if found.ci95 is None:
        return ""
    low, high = found.ci95
    floor = found.noise or 0.0
    return "better" if low > 1 + floor else "worse" if high < 1 / (1 + floor) else ""


def half_width(value: float | None) -> str:
    """±1.2%."""
    return ABSENT if value is None else f"±{value * 100:.1f}%"


def quotient(above: float | None, below: float | None) -> float | None:
    """above / below where both are known and not 0."""
    return above / below if above and below else None


LOADS = {"full": "full histories", "real": "real histories", "open-loop": "open loop"}


def load(name: str) -> str:
    """A load in words."""
    return LOADS.get(name, name)
