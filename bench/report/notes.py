"""How to read the numbers of a report, in sentences: what always holds, and what held this time."""

from collections.abc import Iterable, Iterator, Mapping

from bench.compare import median_ratio
from bench.report import wording
from bench.timing import Timings

ALWAYS = (
    "Each candidate lived in one process of its own; rounds were interleaved in an order drawn anew, only "
    "one process worked at a time, and each timed its own call.",
    "A latency is one call: padded histories in, the best items out. Opening a model and warming it up are "
    "not in it.",
    "Quality ratios: the same users, drawn with replacement; metrics of a user are averaged over seeds "
    "first.",
    "Head, middle and tail are the most popular 20%, the next 30% and the other half of the items that occur "
    "in training; cold items never occur there.",
)

QUIET = 0.02
"""Time without a core per time of timed calls above which the machine was too busy."""


def notes(timings: Timings, failed: Mapping[str, str], against: str, *, draws: int, seed: int) -> list[str]:
    """Every sentence, in reading order."""
    return [
        ALWAYS[0],
        _where(timings),
        *_in_a_row(timings),
        *ALWAYS[1:],
        *_same_against_same(timings, against, draws=draws, seed=seed),
        *_failures(failed, against),
        *_apart(timings),
        *_disturbed(timings),
        *timings.notes,
    ]


def _where(timings: Timings) -> str:
    threads = f"{timings.threads} thread{'s' if timings.threads > 1 else ''} each"
    if timings.cores is None:
        return f"This system pins no process to cores: candidates ran with {threads} wherever it put them."
    cores = ", ".join(map(str, timings.cores))
    few = " There are more threads than cores." if timings.threads > len(timings.cores) else ""
    return f"All were pinned to the same cores ({cores}), with {threads}; threads that wait do not spin.{few}"


def _in_a_row(timings: Timings) -> Iterator[str]:
    """How many calls a turn had, where it is more than the one that is timed."""
    for calls in {timed.in_a_row for timed in timings.cells} - {1}:
        yield (
            f"Each turn had {calls} calls, of which the last was timed: caches are its own, as in "
            "a service that is busy. With one call a turn they are as the other candidates left them."
        )


def _same_against_same(timings: Timings, against: str, *, draws: int, seed: int) -> Iterator[str]:
    """What the reference in a second process came to, cell by cell."""
    if timings.twin_failed is not None:
        yield f"No A/A floor where the second process of {against} failed: it {timings.twin_failed.text}"
    cells = [timed for timed in timings.cells if timed.twin is not None and against in timed.seconds]
    if not cells:
        yield "No A/A floor was measured: what no difference looks like on this machine is not known."
        return
    said = []
    for timed in cells:
        assert timed.twin is not None
        ratio, ci95, _ = median_ratio(timed.seconds[against], timed.twin, draws=draws, seed=seed)
        said.append(f"{timed.load.name} {timed.load.batch}: {wording.percent(ratio, ci95)}")
    yield (
        f"A/A: {against} in one process against itself in another, in the same rounds (ratio of medians, 95% "
        f"interval), by load and batch: {'; '.join(said)}. A speed-up within this is no difference."
    )


def _failures(failed: Mapping[str, str], against: str) -> Iterator[str]:
    for name, text in failed.items():
        yield f"{name} failed: it {text}. What had been measured until then stands."
    if against in failed:
        yield f"{against} is what ratios refer to: without its numbers the others stand alone."


def _apart(timings: Timings) -> Iterator[str]:
    """What is kept out of the latencies."""
    opened = _list((name, wording.duration(value)) for name, value in timings.opening_seconds.items())
    warmed = _list((name, wording.duration(value)) for name, value in timings.warming_seconds.items())
    if opened:
        yield f"Opening took {opened}."
    if warmed:
        yield f"Calls that warm up, for all loads and batch sizes, took {warmed}."
    device = _list((name, wording.size(value)) for name, (_, value) in timings.peaks.items() if value)
    if device:
        yield f"Peak memory on the GPU, as torch counts it: {device}. It is not part of the peak memory."


def _disturbed(timings: Timings) -> Iterator[str]:
    """What kept the cores from belonging to one candidate at a time."""
    restless = _list((name, wording.count(value)) for name, value in timings.restless.items() if value)
    if restless:
        yield (
            "Threads still ran when the call had ended, and may have slowed the next candidate (calls): "
            f"{restless}."
        )
    called, waited = sum(timings.called_ns.values()), sum(timings.waited_ns.values())
    if called and waited / called > QUIET:
        yield (
            "This machine was not quiet: for every second of timed calls, threads were kept from a core for "
            f"{wording.significant(waited / called)} s by other programs. Small differences mean nothing, "
            "and a narrow A/A does not mend that: measure again when nothing else runs."
        )


def _list(pairs: Iterable[tuple[str, str]]) -> str:
    return ", ".join(f"{name} {value}" for name, value in pairs)
