"""What quantization does to a model's answers: the divergence of what it recommends from what it did before.

The Kullback-Leibler divergence over the catalogue needs no held-out item: every user counts with the whole
change of his distribution, it never is negative, and it is 0 only where nothing changed. The loss of held-out
items rises and falls by chance more than careful rounding moves it, and is told beside it.
"""

from typing import NamedTuple

import torch
from torch import Tensor

from compress.calibration import Calibration, device_of
from recommender.evaluate import rank_users
from recommender.metrics import Float64, per_user
from recommender.models.interface import SequentialRecommender
from recommender.ranking import TorchScorer, score_product
from recommender.stage import Context

SCORES_AT_ONCE = 1 << 20  # in float64, several times over


class Answers(NamedTuple):
    """What a model answers to the calibration histories."""

    vectors: Tensor  # [n, D] of the last position of each history
    table: Tensor  # [n_items, D] that they are multiplied with, without padding


class Damage(NamedTuple):
    """Means over users with their standard errors, in nats; the errors are NaN for a single user."""

    kl: float  # divergence of the float model's distribution over the catalogue to the quantized model's
    kl_error: float
    loss_rise: float  # of the cross-entropy of the held-out items
    loss_rise_error: float

    def as_json(self) -> dict[str, float | None]:
        """Plain numbers; null in place of NaN."""
        return {name: value if value == value else None for name, value in self._asdict().items()}


def answers(model: SequentialRecommender, calibration: Calibration) -> Answers:
    """User vectors of all histories, in their order, and a copy of the table."""
    with torch.inference_mode():
        vectors = [model.user_vector(history) for history, _ in calibration.batches(device_of(model))]
        return Answers(torch.cat(vectors), model.item_table()[1:].clone())


def damage(before: Answers, after: Answers, calibration: Calibration) -> Damage:
    """What has changed from one model's answers to another's."""
    targets = torch.from_numpy(calibration.targets).to(before.table.device)
    divergences, rises = [], []
    at_once = max(1, SCORES_AT_ONCE // len(before.table))
    for start in range(0, len(targets), at_once):
        part = slice(start, start + at_once)
        was, now = (_log_probabilities(each.vectors[part], each.table) for each in (before, after))
        divergences.append((was.exp() * (was - now)).sum(dim=1).clamp(min=0))  # below 0 by rounding alone
        rises.append((was - now).gather(1, targets[part].unsqueeze(1) - 1).squeeze(1))
    return Damage(*_mean_and_error(torch.cat(divergences)), *_mean_and_error(torch.cat(rises)))


def ndcg(model: SequentialRecommender, calibration: Calibration, context: Context) -> Float64:
    """NDCG@10 [n] of the validation item of each drawn user, ranked as the evaluation says."""
    ranked = rank_users(
        TorchScorer(model), context.prepared, context.split, "valid", context.evaluation,
        max_length=model.max_length, users=calibration.users,
    )  # fmt: skip
    return per_user(ranked.ranks, (10,))["ndcg@10"]


def ndcg_change(before: Float64, after: Float64) -> dict[str, float | None]:
    """The mean before, and the paired change with its standard error (null for a single user)."""
    change, error = _mean_and_error(torch.from_numpy(after - before))
    return {
        "ndcg@10_before": float(before.mean()),
        "ndcg@10_change": change,
        "ndcg@10_change_error": error if error == error else None,
    }


def _log_probabilities(vectors: Tensor, table: Tensor) -> Tensor:
    """[b, n_items] in float64."""
    return score_product(vectors, table).double().log_softmax(dim=1)


def _mean_and_error(values: Tensor) -> tuple[float, float]:
    if len(values) < 2:
        return float(values.mean()), float("nan")
    return float(values.mean()), float(values.std() / len(values) ** 0.5)
