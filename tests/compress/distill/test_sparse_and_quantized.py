"""Zeros and a grid at once: rounding keeps the zeros, and so does training through the rounding."""

import pytest

from compress.quantize import QuantizeConfig
from recommender.checkpoint import read_info
from recommender.errors import InputError
from recommender.models.zeros import HeldZeros
from recommender.sparsity import Zeros, noted
from recommender.stage import Bound, Shape

from ..conftest import MakeContext
from ..sparse import matrices, sparsify
from .runs import distill
from .test_fake_quantization import on_its_grid, quantized


@pytest.fixture
def sparse(pruned: Bound, make_context: MakeContext) -> Bound:
    return sparsify(pruned, make_context, pattern="2:4")[0]


def filled(before: Bound, after: Bound) -> bool:
    new = matrices(after)
    return any(bool(new[name][old == 0].any()) for name, old in matrices(before).items())


@pytest.mark.parametrize("scheme", ["int8-dynamic", "int4"])
def test_rounding_keeps_every_zero_and_the_note(
    scheme: str, sparse: Bound, make_context: MakeContext
) -> None:
    small = quantized(sparse, make_context, scheme)
    assert not filled(sparse, small)
    before, after = (noted(read_info(each.path).about, each.name) for each in (sparse, small))
    assert before is not None and after is not None and after.pattern == before.pattern == "2:4"
    assert after.zeros == sum(int((matrix == 0).sum()) for matrix in matrices(small).values()) >= before.zeros


def test_gptq_which_would_fill_zeros_is_refused_before_and_while_running(
    sparse: Bound, make_context: MakeContext
) -> None:
    known = {"sparse": Shape("checkpoint", sparsity=Zeros("2:4", 0.5))}
    own = {"matrices": {"*": {"weights": "int4"}}, "method": "gptq"}
    for asked in ({"scheme": "int4", "method": "gptq"}, {"scheme": own}):
        config = QuantizeConfig.model_validate({"of": "sparse", "as": "small", **asked})
        ((place, told),) = config.problems(known)
        assert place == "method" and "would fill them" in told
    with pytest.raises(InputError, match="would fill them"):
        quantized(sparse, make_context, "int4", method="gptq")


def test_a_sparse_student_is_trained_through_the_rounding_with_its_zeros(
    sparse: Bound, teacher: Bound, make_context: MakeContext
) -> None:
    small = quantized(sparse, make_context)
    trained, _ = distill(small, teacher, make_context("trained"), method="logits")
    assert on_its_grid(trained) and not filled(sparse, trained)
    assert any(
        (new != old).any()
        for new, old in zip(matrices(trained).values(), matrices(small).values(), strict=True)
    )


def test_without_holding_them_training_would_fill_zeros(
    sparse: Bound, teacher: Bound, make_context: MakeContext, monkeypatch: pytest.MonkeyPatch
) -> None:
    small = quantized(sparse, make_context, "int8-dynamic")
    monkeypatch.setattr(HeldZeros, "mask_gradients", lambda self: None)
    monkeypatch.setattr(HeldZeros, "mask_weights", lambda self: None)
    trained, _ = distill(small, teacher, make_context("trained"), method="logits", learning_rate=0.02)
    assert filled(sparse, trained)
