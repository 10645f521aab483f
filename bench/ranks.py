"""The ranks that benches left behind (`bench.quality.write_ranks`), joined by data set; opens no model."""

from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import polars as pl

from bench.quality import RANKS
from bench.report.files import read
from bench.report.schema import Report
from bench.slices import Float64, Int64
from recommender.errors import InputError, nearest
from recommender.metrics import per_user

BySeed = Mapping[int, Float64]
"""seed -> one value per user"""


@dataclass(frozen=True)
class Evaluated:
    """One metric of every candidate and seed on one data set; all arrays have the same users in order."""

    dataset: str
    metric: str
    evaluation: Mapping[str, Any]  # what has to agree, or values may not be compared
    users: Int64
    values: Mapping[str, BySeed]  # candidate -> seed -> [users]
    folders: tuple[Path, ...]

    def of(self, candidate: str) -> BySeed:
        """The values of a candidate by seed. Raises InputError for one that was not measured."""
        if candidate not in self.values:
            raise InputError(
                f"{self.metric} of {candidate!r} was not measured on {self.dataset}"
                f"{nearest(candidate, self.values)}",
                where=", ".join(map(str, self.folders)),
            )
        return self.values[candidate]

    def mean_of(self, candidate: str) -> Float64:
        """One value per user, averaged over the candidate's seeds."""
        return np.asarray(np.mean(list(self.of(candidate).values()), axis=0), dtype=np.float64)


def read_ranks(run: Path, metric: str, names: Mapping[str, str] | None = None) -> Evaluated:
    """One metric of every candidate that has it, from the ranks in a run folder (or a bench's own folder).

    `names` gives candidates other names. Raises InputError when the folder holds no ranks or those of several
    benches, when a name of `names` is not there or would be given twice, or nothing has the metric.
    """
    folder = _bench_folder(run)
    report, table = read(folder), pl.read_parquet(folder / RANKS).sort("user")
    known = {each.name: each for each in report.candidates}
    for name in names or {}:
        if name not in known:
            raise InputError(f"there is no candidate {name!r}{nearest(name, known)}", where=str(folder))
    having = [name for name, each in known.items() if metric in each.quality]
    if not having:
        measured = dict.fromkeys(name for each in known.values() for name in each.quality)
        raise InputError(f"{metric!r} was not measured{nearest(metric, measured)}", where=str(folder))
    renamed = [(names or {}).get(name, name) for name in having]
    if twice := [name for name in dict.fromkeys(renamed) if renamed.count(name) > 1]:
        raise InputError(
            f"two candidates would have the name {twice[0]!r}", where=str(folder),
            fix="rename one of them to a name that the run does not have",
        )  # fmt: skip
    values: dict[str, dict[int, Float64]] = {}
    for (name, seed), part in table.group_by("candidate", "seed", maintain_order=True):
        if name in having:
            by_seed = values.setdefault((names or {}).get(str(name), str(name)), {})
            by_seed[int(str(seed))] = _metric(part["rank"].to_numpy().astype(np.int64), metric)
    users = table["user"].unique(maintain_order=True).to_numpy().astype(np.int64)
    return Evaluated(report.dataset.name, metric, _evaluation(report), users, values, (folder,))


def join(runs: Iterable[Evaluated]) -> list[Evaluated]:
    """Runs on the same data set as one, in the order of the runs.

    Raises InputError where runs of one data set evaluated other users or in another way, or where two of them
    give the same name and seed to different models.
    """
    found: dict[str, Evaluated] = {}
    for run in runs:
        found[run.dataset] = _joined(found[run.dataset], run) if run.dataset in found else run
    return list(found.values())


def _joined(one: Evaluated, other: Evaluated) -> Evaluated:
    where = f"{', '.join(map(str, one.folders))} and {other.folders[0]}"
    differing = [key for key, value in one.evaluation.items() if other.evaluation[key] != value]
    if differing or not np.array_equal(one.users, other.users):
        raise InputError(
            f"both are on {one.dataset}, but differ in {', '.join(differing) or 'their users'}", where=where,
            fix="compare runs with the same data and evaluation sections",
        )  # fmt: skip
    values = {name: dict(by_seed) for name, by_seed in one.values.items()}
    for name, by_seed in other.values.items():
        mine = values.setdefault(name, {})
        for seed, array in by_seed.items():
            if seed in mine and not np.array_equal(mine[seed], array):
                raise InputError(
                    f"{name!r} with seed {seed} is another model in each of them", where=where,
                    fix=f"give it another name in one: RUN:{name}=OTHER-NAME",
                )  # fmt: skip
            mine[seed] = array
    return Evaluated(
        one.dataset, one.metric, one.evaluation, one.users, values, (*one.folders, *other.folders)
    )


def _bench_folder(run: Path) -> Path:
    """The folder that holds the ranks: the run's own, or that of its only bench."""
    found = [run / RANKS] if (run / RANKS).is_file() else sorted(run.glob(f"stages/*/{RANKS}"))
    if not found:
        raise InputError(
            f"holds no {RANKS}", where=str(run), fix="give the folder of a run that has finished its bench"
        )
    if len(found) > 1:
        raise InputError(
            f"holds the ranks of {len(found)} benches", where=str(run),
            fix=f"name the folder of one: {' or '.join(str(file.parent) for file in found)}",
        )  # fmt: skip
    return found[0].parent


def _evaluation(report: Report) -> dict[str, Any]:
    """What makes values comparable; the length that models read and the other cut-offs do not matter."""
    return {
        **report.dataset.model_dump(include={"users", "items", "interactions"}),
        **report.evaluation.model_dump(exclude={"ks", "users"}),
        "data digest": report.sections.provenance.data_digest if report.sections.provenance else None,
    }


def _metric(ranks: Int64, metric: str) -> Float64:
    """One value per user; the report said that the ranks reach far enough for it."""
    if metric == "mrr":
        return per_user(ranks, ())["mrr"]
    cut_off = int(metric.partition("@")[2])
    return per_user(ranks, (cut_off,), depth=cut_off)[metric]
