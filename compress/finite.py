"""Is there anything in a model that is no number?"""

import torch

from recommender.errors import InputError
from recommender.models.interface import SequentialRecommender

SHOWN = 3  # weights that are named


def check_finite(model: SequentialRecommender, name: str, *, where: str) -> None:
    """Raise InputError naming the weights (norms, biases and tables too) that hold NaN or infinity."""
    bad = [key for key, value in model.state_dict().items() if not bool(torch.isfinite(value).all())]
    if bad:
        raise InputError(
            f"the weights of {name!r} hold NaN or infinite numbers: {', '.join(bad[:SHOWN])}",
            where=where,
            fix="train it again with a smaller learning rate",
        )
