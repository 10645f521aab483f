"""Is there anything in a model that is no number?"""

import torch
from torch import Tensor

from recommender.errors import InputError
from recommender.models.interface import SequentialRecommender

SHOWN = 3  # weights that are named
SOUND = "train again from a checkpoint that is sound; with a lower learning_rate, if it grew"


def check_finite(model: SequentialRecommender, name: str, *, where: str) -> None:
    """Raise InputError naming the weights (norms, biases and tables too) that hold NaN or infinity."""
    bad = [key for key, value in model.state_dict().items() if not bool(torch.isfinite(value).all())]
    if bad:
        raise InputError(
            f"the weights of {name!r} hold NaN or infinite numbers: {', '.join(bad[:SHOWN])}",
            where=where,
            fix="train it again with a smaller learning rate",
        )


def check_seen(values: Tensor, what: str, *, where: str) -> None:
    """Raise InputError where something that a model made of the calibration histories is no number.

    Weights may all be finite and what they make may overflow.
    """
    if not bool(torch.isfinite(values).all()):
        raise InputError(
            f"{what} hold NaN or infinite numbers on the calibration histories", where=where, fix=SOUND
        )
