"""Scores a file of users with an artifact: streaming, in flat memory, and restartable at any moment.

First the whole input is looked through (`survey`); then batches of users are scored in the order of the
input, each into a part of its own (`parts`). A job that was killed goes on after its last part, with
the same batches, so its output is that of a job that was left alone.
"""

import time
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import asdict, dataclass, replace
from pathlib import Path
from typing import Any, Literal, cast, get_args

from export.score.answers import Answering, Form, answers, no_answers
from export.score.job import check_identity, check_job, check_place, identity_of, refuse_other, stats_of
from export.score.known import Batch, Catalogue, Duplicates, batches
from export.score.parts import Parts, fingerprint
from export.score.read import (
    Histories,
    Interactions,
    Layout,
    Lines,
    check_layout,
    histories,
    order_column,
)
from export.score.survey import Survey, refuse_unknown, survey
from recommender.data.readers import files_of
from recommender.errors import InputError, StageError
from recommender.stage import Progress, silent

LINES = Lines()


@dataclass(frozen=True)
class Options:
    """What is asked; None: as the artifact says."""

    layout: Layout = LINES
    k: int = 10
    mask_seen: bool | None = None  # never recommend what the history holds; None: as it was evaluated
    unknown: Literal["error", "skip"] = "error"  # items that the artifact does not know
    duplicates: Duplicates | None = None  # repeated items of a user; None: as in the data it was trained on
    lists: bool = False  # one row per user, in place of one per recommended item
    batch: int = 4096  # users; may change from start to start, unless the variant lets users share scales

    def settled(self, artifact: Answering, files: Sequence[Path]) -> "Options":
        """The same with nothing left open.

        Raises InputError when a log has no such order column, or when a column is to be two things.
        """
        layout = self.layout
        check_layout(layout)
        if isinstance(layout, Interactions):
            layout = replace(layout, order_by=order_column(files, layout.order_by))
        mask = bool(artifact.manifest["mask_seen"]) if self.mask_seen is None else self.mask_seen
        kept = self.duplicates or _duplicates_of(artifact.manifest)
        return replace(self, layout=layout, mask_seen=mask, duplicates=kept)

    def identity(self, artifact: Answering) -> dict[str, Any]:
        """What the output hangs on: the batch too where the answers of a user hang on who else is in a call.

        Elsewhere it changes scores in their last digit at most.
        """
        shared = artifact.users_per_call is not None and artifact.users_per_call > 1
        return self.as_json() | ({"batch": self.batch} if shared else {})

    def as_json(self) -> dict[str, Any]:
        """All but the batch, as plain data."""
        values = asdict(self)
        del values["batch"]
        return values | {"layout": {"kind": type(self.layout).__name__.lower(), **values["layout"]}}


AS_TRAINED = Options()


def _duplicates_of(manifest: Mapping[str, Any]) -> Duplicates:
    """What stayed of repeated items in training. Raises InputError for what this version does not know."""
    kept = ((manifest.get("recipe") or {}).get("data") or {}).get("duplicates") or "keep"
    if kept not in get_args(Duplicates):
        raise InputError(
            f"its recipe treats duplicates in an unknown way, {kept!r}",
            where="artifact",
            fix=f"say it with --duplicates {', '.join(get_args(Duplicates))}",
        )
    return cast(Duplicates, kept)


@dataclass(frozen=True)
class Scored:
    """A finished job."""

    output: Path
    options: Options
    survey: Survey
    resumed_after: int  # users who had been done by earlier starts
    seconds: float  # of this start

    @property
    def users_per_second(self) -> float | None:
        """Of this start, with all its reading and writing; None when nothing was left to score."""
        done = self.survey.users - self.resumed_after
        return done / self.seconds if done and self.seconds > 0 else None


@dataclass(frozen=True)
class _Work:
    """What one start works with."""

    artifact: Answering
    catalogue: Catalogue
    source: Path
    files: tuple[Path, ...]
    parts: Parts
    options: Options
    progress: Progress

    @property
    def form(self) -> Form:
        return Form(self.parts.kind, self.options.lists)

    def read(self) -> Iterator[Histories]:
        return histories(self.files, self.options.layout)


def score(
    artifact: Answering,
    source: Path,
    output: Path,
    options: Options = AS_TRAINED,
    *,
    fresh: bool = False,
    progress: Progress = silent,
) -> Scored:
    """Score all users of `source` (a file or a folder of files) into `output`; goes on after a kill.

    `fresh`: replace the output, and forget an earlier job of it; the same one, begun with `fresh`, goes on.
    Raises InputError (nothing is written) for whatever is wrong with the input, the output's place or the
    options, and when an earlier job of this output was another one; StageError when the disk is full.
    """
    started = time.monotonic()
    parts, files = Parts(output), files_of(source)
    check_job(artifact, source, output, Form(parts.kind, options.lists), options.k, options.batch)
    options = options.settled(artifact, files)
    work = _Work(artifact, Catalogue(artifact.item_ids), source, files, parts, options, progress)
    stats = stats_of(files)
    with parts.held():
        record = _begun(work, fresh) or _begin(work, fresh)
        found = Survey.from_json(record["survey"])
        if record["joined"] is not None and output.exists() and fingerprint(output) == record["joined"]:
            parts.drop()  # killed when all was done
            return Scored(output, options, found, found.users, time.monotonic() - started)
        check_place(output, record["replaces"])
        done = parts.sweep()
        if _score_rest(work, found, done) != found.users or stats_of(files) != stats:
            parts.drop()  # some of them are of the old content, some of the new one
            raise StageError(
                "the input changed while it was read", where=str(source), fix="give the same command again"
            )
        check_place(output, record["replaces"])
        progress("note", {"text": f"joining the parts into {output.name}"})
        parts.join(no_answers(work.form))
    progress("done", {})
    return Scored(output, options, found, done, time.monotonic() - started)


def _begun(work: _Work, fresh: bool) -> dict[str, Any] | None:
    """The record of this job, if it was begun; another job's is refused, or forgotten with `fresh`."""
    try:
        record = work.parts.read(_check)
        if record is not None:
            options = work.options.identity(work.artifact)
            refuse_other(record["identity"], work.artifact, work.files, options, work.parts.folder)
    except InputError:
        if not fresh:
            raise
        return None
    if record is None or not fresh:
        return record
    return work.parts.replacing(record) if record["fresh"] else None


def _check(record: Mapping[str, Any]) -> None:
    _ = Survey.from_json(record["survey"]).users + 0
    check_identity(record["identity"])


def _begin(work: _Work, fresh: bool) -> dict[str, Any]:
    """Look through the input and write down what the job is."""
    output, options = work.parts.output, work.options
    if not fresh:
        check_place(output, None)
    identity = identity_of(work.artifact, work.files, options.identity(work.artifact))
    work.progress("start", {"text": f"looking through {work.source.name}", "total": None})
    found = survey(work.read, work.catalogue, work.source, work.parts.folder, work.progress)
    if options.unknown == "error":
        refuse_unknown(found, work.artifact.item_ids, work.source)
    return work.parts.begin(identity, found.as_json(), fresh=fresh)


def _score_rest(work: _Work, found: Survey, done: int) -> int:
    """Score and store all users but the first `done`; gives how many there are with them."""
    options = work.options
    work.progress("note", {"text": _described(found, done)})
    work.progress("start", {"text": "scoring", "total": found.users, "done": done})
    started, at = time.monotonic(), done
    assert options.duplicates is not None and options.mask_seen is not None  # settled
    for batch in batches(_known(work), options.batch, skip=done):
        frame = answers(
            work.artifact, batch, work.catalogue.ids, options.k, work.form, mask_seen=options.mask_seen
        )
        work.parts.add(at, at + len(batch.users), frame)
        at += len(batch.users)
        rate = (at - done) / max(time.monotonic() - started, 1e-9)
        step = {"step": at, "total": found.users, "text": f"scoring, {rate:,.0f} users/s"}
        work.progress("step", step | {"seconds_left": (found.users - at) / rate})
    return at


def _known(work: _Work) -> Iterator[Batch]:
    assert work.options.duplicates is not None  # settled
    for some in work.read():
        yield work.catalogue.rows_of(some, work.options.duplicates)[0]


def _described(found: Survey, done: int) -> str:
    parts = [f"{found.users:,} users, {found.interactions:,} interactions"]
    if found.unknown_items:
        parts.append(f"{found.unknown_items:,} with unknown items left out ({found.unknown_users:,} users)")
    if found.missing_items:
        parts.append(f"{found.missing_items:,} rows name no item")
    if found.empty_users:
        parts.append(f"{found.empty_users:,} users without any history get no recommendations")
    if done:
        parts.append(f"{done:,} users are done already")
    return "; ".join(parts)
