"""Quality on the validation part, which chooses weights and decides when to stop."""

import numpy as np

from recommender.data.config import EvaluationConfig
from recommender.evaluate import quality
from recommender.models.interface import SequentialRecommender
from recommender.ranking import TorchScorer
from recommender.stage import Context


def validation_quality(
    model: SequentialRecommender, context: Context, users: int | None = None
) -> dict[str, float]:
    """HR@10, NDCG@10 and MRR on the validation part, of all users or of a seeded sample.

    Histories are cut as `bench` cuts them: a model with a longer window reads `data.max_length` items.
    """
    chosen, _ = context.split.targets("valid")
    if users is not None and users < len(chosen):
        chosen = np.random.default_rng(0).choice(chosen, users, replace=False)
    evaluation = EvaluationConfig(
        ks=(10,), mask_seen=context.evaluation.mask_seen, ties=context.evaluation.ties
    )
    training = model.training
    try:
        return quality(
            TorchScorer(model),
            context.prepared,
            context.split,
            "valid",
            evaluation,
            max_length=min(model.max_length, context.data.max_length),
            users=chosen,
        )
    finally:
        model.train(training)
