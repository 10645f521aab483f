"""Prune the matrices of a body one block after the other."""

from collections.abc import Mapping

from torch import Tensor, nn

from compress.block_inputs import Call, calls_of, input_hessian, input_norms, output_errors
from compress.calibration import Calibration
from compress.sparsity import Method, Pattern, magnitude, sparsegpt, wanda
from recommender.errors import StageError
from recommender.models.interface import SequentialRecommender
from recommender.models.linears import Linear
from recommender.stage import Progress, silent


def sparsify(
    model: SequentialRecommender,
    linears: Mapping[str, Linear],
    calibration: Calibration,
    *,
    method: Method,
    sparsity: float,
    pattern: Pattern,
    progress: Progress = silent,
) -> dict[str, float]:
    """Prune these matrices of the user body in place; each one's relative error on the calibration histories.

    What flows into a block comes from the pruned blocks before it; inside a block all matrices are pruned by
    what flows through the block as it was (as in the authors' code of Wanda and SparseGPT). Memory beside
    the model: the inputs of one block, its pruned weights, and one Hessian. Raises InputError for inputs
    that are not finite.
    """
    errors: dict[str, float] = {}
    by_block: dict[int, dict[str, Linear]] = {}
    for name, each in linears.items():
        by_block.setdefault(each.block, {})[name] = each
    for block in sorted(by_block):
        calls = calls_of(model, block, calibration)
        module, here = model.bodies()["user"].blocks[block], by_block[block]
        pruned = pruned_weights(module, calls, here, method=method, sparsity=sparsity, pattern=pattern)
        found = output_errors(module, calls, here, pruned)
        for name, each in here.items():
            each.matrix().copy_(pruned[name])
        errors |= found
        worst = max(found, key=lambda name: found[name])
        progress("note", {"pruned block": block, "largest error": f"{found[worst]:.3f} ({worst})"})
    return errors


def pruned_weights(
    block: nn.Module,
    calls: list[Call],
    linears: Mapping[str, Linear],
    *,
    method: Method,
    sparsity: float,
    pattern: Pattern,
) -> dict[str, Tensor]:
    """The new weight [out, in] of each matrix of one block, which itself stays as it is.

    Raises StageError where SparseGPT finds no factor of a Hessian.
    """
    if method == "magnitude":
        return {
            name: magnitude(each.matrix(), sparsity, pattern=pattern).weight for name, each in linears.items()
        }
    if method == "wanda":
        norms = input_norms(block, calls, linears)
        return {
            name: wanda(each.matrix(), norms[name], sparsity, pattern=pattern).weight
            for name, each in linears.items()
        }
    found = {}
    for name, each in linears.items():
        hessian = input_hessian(block, calls, each)
        try:
            found[name] = sparsegpt(each.matrix(), hessian, sparsity, pattern=pattern).weight
        except ValueError as error:
            fix = "more calibration_users, or method: wanda"
            raise StageError(f"{name}: {error}", where="sparsify", fix=fix) from error
    return found
