"""Parts of a report that go load by load or slice by slice: the plot's points and the slices' ratios."""

from collections.abc import Iterator, Mapping, Sequence

from bench.candidates import Candidate
from bench.compare import Ratio, Resampled, resample
from bench.latency import Timed, latency, speed_interval
from bench.quality import Judged
from bench.report.parts import Pareto, ParetoPoint, QualityRatio, SliceRatio
from bench.slices import Float64, Members


def pareto(
    cells: Sequence[Timed], candidates: Sequence[Candidate], judged: Mapping[str, Judged],
    resampled: Resampled, key: str, *, draws: int, seed: int,
) -> Iterator[Pareto]:  # fmt: skip
    """Quality against speed at each load and batch size, of the candidates that have both."""
    for timed in cells:
        points = [
            ParetoPoint(
                candidate=each.name,
                kind=each.kind,
                quality=judged[each.name].quality[key],
                quality_ci95=resampled.interval(each.name, key),
                users_per_second=latency(timed, each.name).users_per_second,
                users_per_second_ci95=speed_interval(timed, each.name, draws=draws, seed=seed),
            )
            for each in candidates
            if each.name in timed.seconds and each.name in judged and key in judged[each.name].per_user
        ]
        if points:
            yield Pareto(
                metric=key,
                load=timed.load.name,
                batch=timed.load.batch,
                threads=timed.threads,
                points=points,
            )


def slice_ratios(
    metrics: Mapping[str, Mapping[str, Float64]], against: str, slices: Sequence[Members], key: str,
    *, draws: int, seed: int,
) -> list[SliceRatio]:  # fmt: skip
    """One metric of each slice, candidate / against."""
    only_key = {name: {key: values[key]} for name, values in metrics.items() if key in values}
    if against not in only_key:
        return []
    found: list[SliceRatio] = []
    for part in slices:
        resampled = resample(only_key, draws=draws, seed=seed, rows=part.rows)
        for name in only_key:
            ratio = resampled.ratio(name, against, key)
            if name != against and ratio is not None:
                found.append(
                    SliceRatio(
                        candidate=name,
                        against=against,
                        by=part.by,
                        bin=part.bin,
                        metric=key,
                        users=len(part.rows),
                        ratio=quality_ratio(ratio),
                    )
                )
    return found


def quality_ratio(found: Ratio, aa_half_width: float | None = None) -> QualityRatio:
    """A ratio as the report has it."""
    return QualityRatio(
        ratio=found.ratio, ci95=found.ci95, p_value=found.p_value, aa_half_width=aa_half_width
    )
