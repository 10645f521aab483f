"""What the weights of a pruned body start from, and where there is nothing to start from."""

from typing import Literal

from recommender.models.config import LlmConfig, ModelConfig

Init = Literal["teacher", "base", "fresh"]
CUT_DEPTH_FIRST = "use init: teacher, or cut the depth before the width"


def start_problem(init: Init, model: ModelConfig | None, narrowed: bool) -> str | None:
    """What is wrong with a start of a body that `prune-width` has cut, or None.

    Its base is unknown: which neurons, heads and channels of it would have stayed was decided by the trained
    weights. Built anew from its sizes it can be, from the config of a wider `backbone` not.
    """
    pretrained = isinstance(model, LlmConfig) and model.backbone is not None
    if narrowed and (init == "base" or (init == "fresh" and pretrained)):
        return f"prune-width has cut this body, so there is none to take with init: {init}; {CUT_DEPTH_FIRST}"
    return None
