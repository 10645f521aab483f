"""The terms of SLMRec as a module: states of both sides after aligned blocks, and auxiliary heads."""

from torch import Tensor, nn

from compress.distill.objective import CatalogueLoss, Side
from compress.distill.slmrec import Form, NormKind, aligned_blocks, cosine_term, norm_term, supervision_term


class BlockMatching(nn.Module):
    """{"cos", "norm", "ms"} of two sides; a term with weight 0 is left out.

    States are compared after each of `blocks` equal parts: raw streams inside, the normed one at the end,
    on both sides. Multi-supervision reads the catalogue off every inner part through a linear head of its
    own ([H] -> [D], no bias), which nobody keeps after training. Raises InputError when `blocks` does not
    divide the layers.
    """

    def __init__(
        self,
        *,
        student_layers: int,
        teacher_layers: int,
        blocks: int,
        hidden: int,
        item_dim: int,
        form: Form,
        norm: NormKind | None,
        weights: dict[str, float],
        loss: CatalogueLoss,
    ) -> None:
        super().__init__()
        self.student_at = aligned_blocks(student_layers, blocks)
        self.teacher_at = aligned_blocks(teacher_layers, blocks)
        self.form, self.norm, self.weights, self.loss = form, norm, weights, loss
        inner = blocks - 1 if weights["ms"] > 0 else 0
        self.heads = nn.ModuleList([nn.Linear(hidden, item_dim, bias=False) for _ in range(inner)])

    def forward(self, student: Side, teacher: Side) -> dict[str, Tensor]:
        """Sums over the positions of the batch."""
        ours = [student.after(layers) for layers in self.student_at]
        theirs = [teacher.after(layers) for layers in self.teacher_at]
        terms: dict[str, Tensor] = {}
        if self.weights["cos"] > 0:
            terms["cos"] = cosine_term(ours, theirs, self.form)
        if self.weights["norm"] > 0:
            terms["norm"] = norm_term(ours, theirs, self.form, self.norm)
        if self.heads:
            losses = [
                self.loss(head(states), student.table, student.targets)
                for head, states in zip(self.heads, ours[:-1], strict=True)
            ]
            terms["ms"] = supervision_term(losses, self.form)
        return terms
