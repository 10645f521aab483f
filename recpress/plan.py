"""What a run would do, without doing it: order, cached or why not, what is missing, time, memory and disk.

Nothing is written but a temporary folder, which is gone afterwards. Times come from an earlier run of the
same stage where there was one, else from a probe of a few real training steps; a stage that was neither
measured nor probed has no time.
"""

import tempfile
from collections.abc import Iterator
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

from recommender.data.prepare import find_prepared, prepare
from recommender.data.prepared import Prepared
from recommender.errors import RecpressError
from recommender.files import digest_of
from recommender.stage import Bound, Context, Progress, silent
from recpress.folders import check_inputs_outside, check_run_folder
from recpress.given import bind, check_given
from recpress.probe import UNKNOWN, Cost, is_training, probe, trial_folder
from recpress.recipe import Loaded, Recipe
from recpress.stages import STAGES, StageTable
from recpress.steps import Origin, Step, lay_out
from recpress.store import Finished, Store


@dataclass(frozen=True)
class PlannedStep:
    """One line of the plan."""

    name: str
    stage: str
    cached: bool
    why: str | None  # why it would run
    seconds: float | None = None
    memory_bytes: int | None = None
    disk_bytes: int | None = None
    basis: str = ""  # where the time comes from


@dataclass(frozen=True)
class Plan:
    """What a run would do."""

    recipe: str
    folder: Path
    device: str
    steps: tuple[PlannedStep, ...]
    notes: tuple[str, ...]
    missing: tuple[str, ...]

    def as_document(self) -> dict[str, Any]:
        """For `--json`."""
        return {"status": "planned", **asdict(self), "folder": str(self.folder)}


def plan(
    loaded: Loaded,
    folder: Path,
    *,
    device: str,
    fresh: bool = False,
    cache: Path | None = None,
    stages: StageTable = STAGES,
    progress: Progress = silent,
) -> Plan:
    """The plan of a run. Raises InputError for a folder that the run would refuse.

    `progress` hears of each step that is tried, before it is: with many, that takes minutes.
    """
    folder = folder.resolve()
    check_run_folder(folder, loaded.recipe.name, fresh=fresh)
    for _, recipe in loaded.all():
        check_inputs_outside(folder, recipe.given())
    with tempfile.TemporaryDirectory(prefix="recpress-plan-") as temporary:
        data = _Data(cache, Path(temporary) / "data")
        try:
            for _, recipe in loaded.all():
                check_given(recipe, data(recipe))
            steps = lay_out(loaded, data, device=device, stages=stages)
        except RecpressError as error:
            return _without_data(loaded, folder, device, error)
        planner = _Planner(folder, device, Path(temporary), fresh, progress)
        lines = tuple(planner.lines(steps))
    notes = (*data.notes, *_totals(lines))
    return Plan(loaded.recipe.name, folder, device, lines, notes, tuple(planner.missing))


class _Data:
    """Prepared data from the cache, else prepared in a temporary folder."""

    def __init__(self, cache: Path | None, temporary: Path) -> None:
        self.cache, self.temporary = cache, temporary
        self.known: dict[str, Prepared] = {}
        self.notes: list[str] = []

    def __call__(self, recipe: Recipe) -> Prepared:
        key = recipe.data.model_dump_json()
        if key not in self.known:
            found = find_prepared(recipe.data, self.cache)
            prepared = found or prepare(recipe.data, self.temporary)
            state = "prepared already" if found else "would be prepared first"
            numbers = (prepared.n_users, prepared.n_items, len(prepared.items))
            counts = "{:,} users, {:,} items, {:,} interactions".format(*numbers)
            self.notes.append(f"data: {prepared.meta['name']}, {counts} ({state})")
            self.known[key] = prepared
        return self.known[key]


class _Planner:
    """Goes through the steps as the runner would, with trials in place of results that are not there yet."""

    def __init__(self, folder: Path, device: str, temporary: Path, fresh: bool, progress: Progress) -> None:
        self.folder, self.device, self.temporary, self.fresh = folder, device, temporary, fresh
        self.progress = progress
        self.store = Store(folder)
        self.bound: dict[tuple[str | None, Origin], Bound] = {}
        self.missing: list[str] = []
        self.tried: dict[str, tuple[Cost, Path | None]] = {}

    def lines(self, steps: list[Step]) -> Iterator[PlannedStep]:
        """One line per step."""
        for number, step in enumerate(steps):
            found = None if self.fresh else self.store.find(step)
            if found is not None:
                if step.config.produces:
                    self._bind(step, found.bound(step.config.produces, self.folder))
                yield PlannedStep(step.name, step.config.stage, True, None, 0.0, None, _size(found))
                continue
            why = "--fresh" if self.fresh else self.store.why_not(step)
            if (lacking := step.config.lacking()) is not None:
                self.missing.append(f"{step.name}: {lacking}")
            cost, basis = self._cost(step, number)
            yield PlannedStep(
                step.name,
                step.config.stage,
                False,
                why,
                cost.seconds,
                cost.memory_bytes,
                cost.disk_bytes,
                basis,
            )

    def _cost(self, step: Step, number: int) -> tuple[Cost, str]:
        """What a step would cost, and how that is known."""
        tried = self._try(step, number)
        measured = self.store.earlier(step)
        if measured is not None:
            return Cost(measured.seconds, tried.memory_bytes, _size(measured)), "an earlier run"
        if tried.seconds is None:
            return tried, ""
        return tried, "probe of a few steps; at most" if tried.extrapolated else "trial"

    def _try(self, step: Step, number: int) -> Cost:
        """The cost by a trial; its checkpoint then stands in for the real one in later trials."""
        inputs = self._inputs(step)
        tries = step.kind.quick or (is_training(step.config) and step.kind.probed)
        if inputs is None or not tries:
            return UNKNOWN
        key = digest_of({**step.parts, "seed": None, "inputs": {n: str(b.path) for n, b in inputs.items()}})
        if key not in self.tried:
            self.progress("note", {"text": f"trying {step.name}"})
            self.tried[key] = self._trial(step, inputs, trial_folder(self.temporary, number))
        cost, made = self.tried[key]
        if made is not None and step.config.produces:
            self._bind(step, bind(step.config.produces, made))
        return cost

    def _trial(
        self, step: Step, inputs: dict[str, Bound], folders: tuple[Path, Path]
    ) -> tuple[Cost, Path | None]:
        context = Context(
            prepared=step.prepared,
            data=step.recipe.data,
            evaluation=step.recipe.evaluation,
            seed=step.seeds[0],
            device=self.device,
            folder=folders[0],
            scratch=folders[1],
            recipe=step.recipe.resolved(),
        )
        try:
            cost = probe(step.kind, step.config, inputs, context)
        except RecpressError as error:
            self.missing.append(f"{step.name}: {error}")
            return UNKNOWN, None
        made = folders[0] / "checkpoint"
        return cost, made if made.is_dir() else None

    def _inputs(self, step: Step) -> dict[str, Bound] | None:
        """What the step would read, as far as it is there or was tried; None when something is not."""
        found: dict[str, Bound] = {}
        for name in step.config.consumes:
            bound = self.bound.get((step.variant, (name, step.seed)))
            every = step.recipe.given()
            given = every.get((name, step.seed)) or every.get((name, None))
            if bound is None and given is None:
                return None
            found[name] = bound or bind(name, given)  # type: ignore[arg-type]  # one of them is there
        return found

    def _bind(self, step: Step, bound: Bound) -> None:
        self.bound[step.variant, (bound.name, step.seed)] = bound


def _size(found: Finished) -> int:
    return sum(found.document["files"].values())


def _without_data(loaded: Loaded, folder: Path, device: str, error: RecpressError) -> Plan:
    """All that can be said while the data, or a checkpoint that the recipe was given, is not there."""
    lines = [
        PlannedStep(
            f"{f'{variant}/' if variant else ''}{index:02d}-{config.produces or config.stage}",
            config.stage,
            cached=False,
            why="the data is not there",
        )
        for variant, recipe in loaded.all()
        for index, config in enumerate(recipe.stages)
    ]
    return Plan(loaded.recipe.name, folder, device, tuple(lines), (), (str(error),))


def _totals(lines: tuple[PlannedStep, ...]) -> Iterator[str]:
    """One sentence on what was estimated and what was not."""
    open_lines = [line for line in lines if not line.cached]
    unknown = [line.name for line in open_lines if line.seconds is None]
    if not open_lines:
        yield "everything is finished: a run would change nothing"
        return
    total = sum(line.seconds or 0.0 for line in open_lines)
    more = f", and what {', '.join(unknown)} takes, which was never measured here" if unknown else ""
    yield f"estimated: {total:.0f} s for {len(open_lines)} of {len(lines)} steps{more}"
