"""Run the parity comparison: real histories of several lengths, several batch sizes, served and padded."""

from collections.abc import Iterator
from typing import Any, NamedTuple

import numpy as np
import torch

from export.parity import Agreement, Float64, ParityConfig, compare, ndcg, ndcg_change, summary, top_rows
from export.runtime import Artifact
from recommender.data.prepared import Prepared, Split
from recommender.evaluate import histories
from recommender.models.interface import History, SequentialRecommender
from recommender.scoring import Float32, HistoryArrays, Int64, TopK

USERS_AT_ONCE = 64
SCORES_AT_ONCE = 32_000_000
AS_IS = "as-is"


class Sample(NamedTuple):
    """Some test users, their histories cut to one length class."""

    name: str
    histories: HistoryArrays
    targets: Int64  # [n] the held-out rows


def measure_parity(
    model: SequentialRecommender,
    artifact: Artifact,
    prepared: Prepared,
    split: Split,
    config: ParityConfig,
    *,
    mask_seen: bool,
    seed: int,
    lossy: bool = False,
) -> dict[str, Any]:
    """Numbers for `export.parity.gate`: over all users, and one short line per way of asking under `by`.

    Ways: each length class x each batch size through the served path (`top_k`: padding stripped, like lengths
    together), and `padded`, one raw call at full width. The reference is `model`, padded to full width.
    NDCG@10 is that of the users as they are, of a `lossy` one that of `quality_users` of them.
    """
    by: dict[str, list[Agreement]] = {}
    before: list[Float64] = []
    after: list[Float64] = []
    for sample in samples(prepared, split, model.max_length, config.users, mask_seen=mask_seen, seed=seed):
        for part, targets in _slices(sample, model.n_items):
            reference = reference_scores(model, part)
            answers = dict(_answers(artifact, part, model.max_length, config.batch_sizes))
            for way, answer in answers.items():
                by.setdefault(f"{sample.name}/{way}", []).append(compare(reference, answer, atol=config.atol))
            if sample.name == AS_IS:
                before.append(ndcg(top_rows(reference, min(10, artifact.limit)), targets))
                after.append(ndcg(answers[f"batch-{config.batch_sizes[-1]}"].items, targets))
    if lossy and config.quality_users > config.users:
        before, after = [], []
        *_, sample = samples(
            prepared, split, model.max_length, config.quality_users, mask_seen=mask_seen, seed=seed
        )
        for part, targets in _slices(sample, model.n_items):
            before.append(ndcg(top_rows(reference_scores(model, part), min(10, artifact.limit)), targets))
            after.append(ndcg(_served(artifact, part, config.batch_sizes[-1]).items, targets))
    return _numbers(by) | ndcg_change(np.concatenate(before), np.concatenate(after))


def _numbers(by: dict[str, list[Agreement]]) -> dict[str, Any]:
    """The summary of all ways together, a short one of each, and the name of the worst."""
    short = ("max_score_error", "top10_overlap", "top10_overlap_outside_margin", "first_agreement")
    ways = {}
    for way, agreements in by.items():
        whole = summary(agreements)
        ways[way] = {name: whole[name] for name in short}
    worst = min(
        ways, key=lambda way: (ways[way]["top10_overlap_outside_margin"], -ways[way]["max_score_error"])
    )
    everything = summary([one for agreements in by.values() for one in agreements])
    return everything | {"worst": worst, "by": ways}


def samples(
    prepared: Prepared, split: Split, max_length: int, users: int, *, mask_seen: bool, seed: int
) -> Iterator[Sample]:
    """Test users whose newest 1, short, medium and max_length interactions are read, and users as they are.

    Users with a long enough history are drawn first; where these are few, the longest of the others fill up.
    """
    rng = np.random.default_rng(seed)
    everyone, positions = split.targets("test")
    lengths = {
        "length-1": 1,
        "short": max(2, max_length // 8),
        "medium": max(2, max_length // 2),
        "full": max_length,
    }
    for name, length in [*lengths.items(), (AS_IS, 0)]:
        shuffled = rng.permutation(len(everyone))
        order = shuffled[np.argsort(-np.minimum(positions[shuffled], length), kind="stable")]
        chosen = order[:users]
        window = min(length or max_length, max_length)
        arrays = histories(prepared, everyone[chosen], positions[chosen], window, mask_seen=mask_seen)
        rows = np.asarray(prepared.items)[np.asarray(prepared.offsets)[everyone[chosen]] + positions[chosen]]
        yield Sample(name, arrays, rows.astype(np.int64))


def reference_scores(model: SequentialRecommender, history: HistoryArrays) -> Float32:
    """[B, n_items + 1] scores of the torch model on histories padded to max_length; masked rows are -inf."""
    items = torch.from_numpy(_padded(history.items, model.max_length))
    with torch.inference_mode():
        scores = (model.user_vector(History(items)).float() @ model.item_table().float().T).numpy()
    scores[:, 0] = -np.inf
    if history.seen is not None:
        np.put_along_axis(scores, history.seen, -np.inf, axis=1)
    return scores


def _padded(items: Int64, width: int) -> Int64:
    return np.pad(items, ((0, 0), (width - items.shape[1], 0)))


def _slices(sample: Sample, n_items: int) -> Iterator[tuple[HistoryArrays, Int64]]:
    size = max(1, min(USERS_AT_ONCE, SCORES_AT_ONCE // (n_items + 1)))
    for start in range(0, len(sample.targets), size):
        part = slice(start, start + size)
        seen = None if sample.histories.seen is None else sample.histories.seen[part]
        yield HistoryArrays(sample.histories.items[part], seen), sample.targets[part]


def _served(artifact: Artifact, part: HistoryArrays, size: int) -> TopK:
    """Lists of all users of a part, `size` in a call."""
    answers = [
        artifact.top_k(
            HistoryArrays(
                part.items[start : start + size],
                None if part.seen is None else part.seen[start : start + size],
            ),
            artifact.limit,
        )
        for start in range(0, len(part.items), size)
    ]
    return TopK(*(np.concatenate([getattr(one, name) for one in answers]) for name in ("items", "scores")))


def _answers(
    artifact: Artifact, part: HistoryArrays, max_length: int, batch_sizes: tuple[int, ...]
) -> Iterator[tuple[str, TopK]]:
    """Each way of asking for the same users; the last one is the raw call at full width."""
    for size in batch_sizes:
        yield f"batch-{size}", _served(artifact, part, size)
    if artifact.users_per_call is not None:
        return  # a raw call of all is not what is served
    seen = np.zeros((len(part.items), 1), np.int64) if part.seen is None else part.seen
    raw = artifact.run(_padded(part.items, max_length)[:, -artifact.max_length :], seen)
    yield "padded", TopK(raw.items, raw.scores)
