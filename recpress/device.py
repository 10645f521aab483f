"""Where to compute."""

from recommender.errors import InputError


def resolve_device(wanted: str) -> str:
    """cpu or cuda for auto, cpu or cuda. Raises InputError when CUDA is asked for and there is none."""
    if wanted == "cpu":
        return "cpu"
    import torch

    if torch.cuda.is_available():
        return "cuda"
    if wanted == "cuda":
        raise InputError(
            f"torch {torch.__version__} sees no CUDA device",
            where="device cuda",
            fix="use the device cpu, or see: recpress doctor",
        )
    return "cpu"
