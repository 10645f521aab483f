"""Logit distillation: the student learns the teacher's scores of the whole catalogue (Hinton et al. 2015)."""

from torch import Tensor, nn

from compress.distill.objective import Side
from recommender.losses import kl_softmax


class LogitMatching(nn.Module):
    """{"kd": T^2 KL(teacher || student)} over all items at temperature T; no widths need to agree."""

    def __init__(self, *, temperature: float) -> None:
        super().__init__()
        self.temperature = temperature

    def forward(self, student: Side, teacher: Side) -> dict[str, Tensor]:
        """Sum over the positions of the batch."""
        kd = kl_softmax(student.vectors, student.table, teacher.vectors, teacher.table, self.temperature)
        return {"kd": kd}
