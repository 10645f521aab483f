"""Runs a recipe: every step that is not finished yet, in order, each one complete or not there at all."""

import shutil
import time
from collections.abc import Iterator, Mapping
from contextlib import contextmanager, suppress
from dataclasses import dataclass
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

import yaml

from recommender.data.prepared import Prepared
from recommender.errors import InputError, StageError, is_disk_full
from recommender.files import complete_folder, write_json, write_text
from recommender.lock import locked
from recommender.stage import Bound, Context, Outputs, Progress, silent
from recpress.folders import check_inputs_outside, check_run_folder
from recpress.given import bind, check_given, check_lists
from recpress.processes import ALONE, Crew, StageOrder
from recpress.recipe import Loaded, Recipe
from recpress.stages import STAGES, StageTable
from recpress.steps import Origin, Step, lay_out
from recpress.store import Finished, Store, drop_old_reports, publish, seal, sweep, wipe


@dataclass(frozen=True)
class StepResult:
    """What became of one step."""

    name: str
    stage: str
    variant: str | None
    seeds: tuple[int, ...]
    status: str  # cached | done
    why: str | None  # why it had to run
    seconds: float
    folder: Path
    metrics: Mapping[str, Any]


@dataclass(frozen=True)
class RunResult:
    """What a run came to."""

    folder: Path
    recipe: str
    steps: tuple[StepResult, ...]
    report: Path | None
    seconds: float

    def as_document(self) -> dict[str, Any]:
        """For `--json`."""
        return {
            "status": "done",
            "recipe": self.recipe,
            "run": str(self.folder),
            "report": str(self.report) if self.report else None,
            "seconds": round(self.seconds, 3),
            "stages": [
                {
                    "name": step.name,
                    "stage": step.stage,
                    "variant": step.variant,
                    "seeds": list(step.seeds),
                    "status": step.status,
                    "why": step.why,
                    "seconds": round(step.seconds, 3),
                    "folder": str(step.folder),
                }
                for step in self.steps
            ],
        }


@dataclass(frozen=True)
class Settings:
    """How to run, apart from what the recipe says."""

    device: str = "cpu"  # cpu | cuda, resolved
    fresh: bool = False
    cache: Path | None = None  # of prepared data; None: the user's
    progress: Progress = silent
    command: str = ""
    crew: Crew = ALONE


def run(loaded: Loaded, folder: Path, settings: Settings, *, stages: StageTable = STAGES) -> RunResult:
    """Run a recipe into a folder; finished stages are taken from there.

    Raises InputError (nothing written), StageError or GateError (finished stages stay), and whatever else a
    stage raises; the same call goes on where it stopped.
    """
    started = time.monotonic()
    folder = folder.resolve()
    check_run_folder(folder, loaded.recipe.name, fresh=settings.fresh)
    prepare = Preparer(settings.cache, settings.progress)
    for _, recipe in loaded.all():
        check_inputs_outside(folder, recipe.given())
        prepared = prepare(recipe)
        check_given(recipe, prepared)
        check_lists(recipe, prepared)
    steps = lay_out(loaded, prepare, device=settings.device, stages=stages)
    with _ours(folder), locked(folder):
        if settings.fresh:
            wipe(folder)
        sweep(folder)
        text = yaml.safe_dump(loaded.recipe.resolved(), sort_keys=False, allow_unicode=True)
        write_text(folder / "recipe.yaml", text)
        results = tuple(_Run(folder, steps, settings).results())
        drop_old_reports(folder, [result.folder for result in results], loaded.variants)
        shutil.rmtree(folder / ".scratch", ignore_errors=True)
    report = folder / "report.json"
    seconds = time.monotonic() - started
    return RunResult(folder, loaded.recipe.name, results, report if report.exists() else None, seconds)


class _Run:
    """One pass over the steps, with what each name stands for so far."""

    def __init__(self, folder: Path, steps: list[Step], settings: Settings) -> None:
        self.folder, self.steps, self.settings = folder, steps, settings
        self.store = Store(folder)
        self.bound: dict[str | None, dict[Origin, Bound]] = {}

    def results(self) -> Iterator[StepResult]:
        """Each step in turn: taken from the folder, or run."""
        for number, step in enumerate(self.steps):
            found = self.store.find(step)
            why = None if found else self.store.why_not(step)
            self.settings.progress(
                "stage",
                {
                    "name": step.name,
                    "stage": step.config.stage,
                    "why": why,
                    "index": number,
                    "of": len(self.steps),
                },
            )
            finished = found or self._run(step)
            if name := step.config.produces:
                self._bounds(step)[name, step.seed] = finished.bound(name, self.folder)
            publish(self.folder, step.variant, finished.folder)
            yield StepResult(
                name=step.name,
                stage=step.config.stage,
                variant=step.variant,
                seeds=step.seeds,
                status="cached" if found else "done",
                why=why,
                seconds=finished.seconds,
                folder=finished.folder,
                metrics=finished.document["metrics"],
            )

    def _run(self, step: Step) -> Finished:
        target = self.folder / step.folder
        scratch = self.folder / ".scratch" / step.fingerprint
        started, created = time.monotonic(), datetime.now(UTC).isoformat(timespec="seconds")
        with _told(step), complete_folder(target) as temporary:
            scratch.mkdir(parents=True, exist_ok=True)
            context = self._context(step, temporary, scratch)
            outputs = self._carry_out(step, context)
            facts = {
                "created": created,
                "seconds": time.monotonic() - started,
                "device": self.settings.device,
                "metrics": dict(outputs.metrics),
            }
            write_json(temporary / "stage.json", seal(temporary, step, self.folder, facts))
        shutil.rmtree(scratch, ignore_errors=True)
        return self.store.add(target)

    def _carry_out(self, step: Step, context: Context) -> Outputs:
        inputs = context.by_seed[context.seed]
        if not step.config.distributed:
            return step.kind.function()(step.config, inputs, context)
        with self.settings.crew.joined(StageOrder.of(step.kind, step.config, inputs, context)):
            return step.kind.function()(step.config, inputs, context)

    def _context(self, step: Step, folder: Path, scratch: Path) -> Context:
        bounds = self._bounds(step)
        by_seed = {
            seed: {name: bounds.get((name, seed)) or bounds[name, None] for name in step.config.consumes}
            for seed in step.seeds
        }
        return Context(
            prepared=step.prepared,
            data=step.recipe.data,
            evaluation=step.recipe.evaluation,
            seed=step.seeds[0],
            device=self.settings.device,
            folder=folder,
            scratch=scratch,
            progress=self.settings.progress,
            by_seed=by_seed,
            recipe=step.recipe.resolved(),
            variant=step.variant,
            command=self.settings.command,
        )

    def _bounds(self, step: Step) -> dict[Origin, Bound]:
        """What the names of the step's recipe stand for so far."""
        given: dict[Origin, Bound] = {
            (name, seed): bind(name, path) for (name, seed), path in step.recipe.given().items()
        }
        return self.bound.setdefault(step.variant, given)


class Preparer:
    """Prepares each different data section once."""

    def __init__(self, cache: Path | None, progress: Progress) -> None:
        self.cache, self.progress = cache, progress
        self.known: dict[str, Prepared] = {}

    def __call__(self, recipe: Recipe) -> Prepared:
        """The data of a recipe."""
        from recommender.data.prepare import prepare

        key = recipe.data.model_dump_json()
        if key not in self.known:
            name = recipe.data.source or recipe.data.interactions
            self.progress("note", {"text": f"preparing data: {name}"})
            self.known[key] = prepare(recipe.data, self.cache)
        return self.known[key]


@contextmanager
def _ours(folder: Path) -> Iterator[None]:
    """Make the run folder; remove it again when the input proves wrong before anything was finished in it."""
    new = [path for path in (folder, *folder.parents) if not path.exists()]
    folder.mkdir(parents=True, exist_ok=True)
    try:
        yield
    except InputError:
        if new and not any(folder.glob("stages/*/stage.json")):
            shutil.rmtree(folder, ignore_errors=True)
            with suppress(OSError):  # another run may have put something there meanwhile
                for parent in new[1:]:
                    parent.rmdir()
        raise


@contextmanager
def _told(step: Step) -> Iterator[None]:
    """Say in which stage an error happened; a full disk has many spellings, people get one."""
    try:
        yield
    except Exception as error:
        if is_disk_full(error):
            raise StageError(
                "the disk is full",
                where=f"stage {step.name}",
                fix="free some space; the same command goes on after the last finished stage",
            ) from error
        error.add_note(f"in stage {step.name}; finished stages are kept, the same command goes on from there")
        raise
