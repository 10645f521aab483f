"""Every decoder family can be narrowed: what goes is what zeros would be, and it comes back as it was."""

import copy
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path

import pytest
import torch
from torch import Tensor, nn
from transformers import AutoModel

from compress.narrowing.cut import Kept, layout_of, narrow, places, removed_parameters, widths_in
from compress.narrowing.layout import (
    LAYOUTS,
    Amount,
    Structure,
    Widths,
    aimed_at,
    targets_problem,
    with_widths,
)
from compress.narrowing.scores import keep_heads, keep_top
from recommender.checkpoint import load_checkpoint, save_checkpoint, stored_parameters
from recommender.data.prepared import Prepared
from recommender.models.build import build_model
from recommender.models.config import FAMILIES, HEADS_FILL_HIDDEN, LlmConfig
from recommender.models.interface import History
from recommender.models.linears import body_linears, watched
from recommender.models.llm import LlmRecommender

from ..test_families import histories
from ..test_families import loud as louder

GROUPED = [family for family in FAMILIES if family not in HEADS_FILL_HIDDEN]
families = pytest.mark.parametrize("family", FAMILIES)
grouped = pytest.mark.parametrize("family", GROUPED)


def config_of(family: str) -> LlmConfig:
    kv_heads = 2 if family in GROUPED else None
    sizes = {"layers": 2, "hidden": 24, "heads": 4, "kv_heads": kv_heads, "ffn": 20, "item_dim": 8}
    return LlmConfig.model_validate({"family": family, "dropout": 0.0, **sizes})


def built(family: str, *, loud: bool = True) -> LlmRecommender:
    model = build_model(config_of(family), n_items=40, max_length=10, seed=1)
    assert isinstance(model, LlmRecommender)
    with torch.no_grad():
        for parameter in model.parameters():  # biases and norms start as zeros and ones, which hides mistakes
            parameter.add_(torch.randn(parameter.shape, generator=torch.Generator().manual_seed(2)) * 0.1)
    return louder(model) if loud else model.eval()


def drawn(model: LlmRecommender, targets: Mapping[str, Amount], seed: int = 0) -> tuple[Kept, Widths]:
    """Random members, other ones in each block."""
    before = widths_in(model.body.config)
    after = aimed_at(before, targets)
    assert targets_problem(before, after, model.body.config.model_type) is None
    chance = torch.Generator().manual_seed(seed)
    blocks: list[dict[Structure, Tensor]] = []
    for _ in model.body.blocks:
        heads, groups = (torch.rand(size, generator=chance) for size in (before.heads, before.kv_heads))
        kept, kv = keep_heads(heads, groups, keep_heads=after.heads, keep_groups=after.kv_heads)
        ffn = keep_top(torch.rand(before.ffn, generator=chance), after.ffn)
        blocks.append({"ffn": ffn, "heads": kept, "kv": kv})
    return Kept(keep_top(torch.rand(before.hidden, generator=chance), after.hidden), blocks), after


@contextmanager
def silenced(model: LlmRecommender, kept: Kept, *structures: Structure) -> Iterator[None]:
    """While open, what goes is there and multiplied by zero on its way out."""
    layout, widths = layout_of(model.body.config), widths_in(model.body.config)
    masks: dict[str, Tensor] = {}
    for number, block in enumerate(kept.blocks):
        for structure in structures:
            axis = "ffn" if structure == "ffn" else "heads"
            size, each = (widths.ffn, 1) if axis == "ffn" else (widths.heads, widths.head_dim)
            mask = torch.zeros(size)
            mask[block[structure]] = 1
            masks[f"{number}.{layout.reading(axis)}"] = mask.repeat_interleave(each)
    linears = {name: linear for name, linear in body_linears(model.body).items() if name in masks}
    with watched(linears, lambda linear, values: values.mul_(masks[linear.name])):
        yield


def vectors(model: LlmRecommender) -> Tensor:
    """User vectors and the stream at all items, by the whole pass and by the one for the last position."""
    items = histories()
    with torch.inference_mode():
        states = model.hidden(History(items)).final[items != 0]
        return torch.cat((model.project(states), model.user_vector(History(items))))


@families
def test_removed_neurons_are_neurons_of_zero(family: str) -> None:
    model = built(family)
    kept, after = drawn(model, {"ffn": 9})
    whole = vectors(model)
    with silenced(model, kept, "ffn"):
        expected = vectors(model)
    narrow(model, kept, after)
    assert torch.allclose(vectors(model), expected, atol=1e-5, rtol=1e-5)
    assert (expected - whole).abs().max() > 0.01


@pytest.mark.parametrize("targets", [{"heads": 2}, {"kv_heads": 1}, {"kv_heads": 1, "heads": 1}])
@grouped
def test_removed_heads_are_heads_of_zero(family: str, targets: dict[str, Amount]) -> None:
    model = built(family)
    kept, after = drawn(model, targets)
    whole = vectors(model)
    with silenced(model, kept, "heads"):
        expected = vectors(model)
    narrow(model, kept, after)
    assert torch.allclose(vectors(model), expected, atol=1e-5, rtol=1e-5)
    assert (expected - whole).abs().max() > 0.01


@pytest.mark.parametrize("family", ["mistral", "qwen3", "phi3"])
def test_three_heads_of_four_stay_where_the_family_lets_them(family: str) -> None:
    config = config_of(family).model_copy(update={"kv_heads": None})
    model = build_model(config, n_items=40, max_length=10, seed=1).eval()
    assert isinstance(model, LlmRecommender)
    kept, after = drawn(model, {"heads": 3})
    with silenced(model, kept, "heads"):
        expected = vectors(model)
    narrow(model, kept, after)
    assert (after.heads, after.kv_heads, after.head_dim) == (3, 3, 6)
    assert torch.allclose(vectors(model), expected, atol=1e-5)


EVERYTHING: dict[str, Amount] = {"ffn": 12, "heads": 2, "hidden": 12}


@families
def test_what_was_cut_comes_back_and_plain_transformers_load_it(
    family: str, tmp_path: Path, prepared: Prepared
) -> None:
    model = built(family)
    kept, after = drawn(model, EVERYTHING)
    narrow(model, kept, after)
    config = with_widths(config_of(family), after)
    save_checkpoint(model, tmp_path / "checkpoint", prepared=prepared, model_config=config)
    loaded = load_checkpoint(tmp_path / "checkpoint", prepared=prepared)
    assert isinstance(loaded, LlmRecommender)
    assert same_weights(model, loaded) and widths_in(loaded.body.config) == after
    assert torch.equal(vectors(copy.deepcopy(loaded)), vectors(model))  # copied: files are mapped unaligned
    plain, report = AutoModel.from_pretrained(tmp_path / "checkpoint" / "backbone", output_loading_info=True)
    assert not report["missing_keys"] and not report["unexpected_keys"] and not report["mismatched_keys"]
    assert same_weights(model.body.backbone, plain) and widths_in(plain.config) == after
    rebuilt = build_model(config, n_items=40, max_length=10, seed=4)  # the sizes of the config are the truth
    assert shapes(rebuilt) == shapes(model)
    assert isinstance(rebuilt, LlmRecommender)
    mine, theirs = (attention_scale(each) for each in (rebuilt, model))
    assert mine == theirs == attention_scale(built(family))


def attention_scale(model: LlmRecommender) -> set[float]:
    """What scores of heads are multiplied by: it belongs to a head's width, which never changes."""
    return {
        module.scaling
        for module in model.body.modules()
        if isinstance(getattr(module, "scaling", None), float)
    }


def same_weights(a: nn.Module, b: nn.Module) -> bool:
    left, right = a.state_dict(), b.state_dict()
    return list(left) == list(right) and all(torch.equal(left[name], right[name]) for name in left)


def shapes(model: nn.Module) -> dict[str, torch.Size]:
    return {name: value.shape for name, value in model.state_dict().items()}


@families
def test_what_stays_is_bit_identical_and_all_that_goes_is_counted(family: str) -> None:
    model = built(family)
    before, sizes = {k: v.clone() for k, v in model.state_dict().items()}, stored_parameters(model)
    kept, after = drawn(model, EVERYTHING)
    removed = removed_parameters(model, kept)
    narrow(model, kept, after)
    assert sizes - stored_parameters(model) == removed > 0
    rows = before["input_projection.weight"][kept.hidden]
    assert torch.equal(model.input_projection.weight, rows)
    assert torch.equal(model.output_projection.weight, before["output_projection.weight"][:, kept.hidden])
    name = next(
        name
        for name in before
        if name.endswith(".1." + layout_of(model.body.config).reading("ffn") + ".weight")
    )
    down = before[name].T if family == "gpt2" else before[name]
    cut = model.state_dict()[name].T if family == "gpt2" else model.state_dict()[name]
    assert torch.equal(cut, down[kept.hidden][:, kept.blocks[1]["ffn"]])


@pytest.mark.parametrize("targets", [{"ffn": 12}, {"heads": 2}, EVERYTHING])
@pytest.mark.parametrize("family", ["llama", "qwen3"])
def test_the_count_of_parameters_is_that_of_the_formula(family: str, targets: dict[str, Amount]) -> None:
    model = built(family)
    kept, after = drawn(model, targets)
    narrow(model, kept, after)
    hidden, heads, kv, size, ffn = after
    attention = hidden * size * (2 * heads + 2 * kv) + (2 * size if family == "qwen3" else 0)
    block = attention + 3 * hidden * ffn + 2 * hidden
    around = 8 * hidden + hidden + 8 * hidden + 41 * 8
    assert stored_parameters(model) == 2 * block + hidden + around


@grouped
def test_every_key_value_head_serves_as_many_heads_as_the_others(family: str) -> None:
    model = built(family)
    kept, after = drawn(model, {"heads": 2})
    for block in kept.blocks:
        assert torch.bincount(block["heads"] // 2, minlength=2).tolist() == [1, 1]
        assert block["kv"].tolist() == [0, 1]
    narrow(model, kept, after)
    assert model.body.config.num_key_value_heads == 2 and model.body.config.head_dim == 6


def without_channels(model: LlmRecommender, kept: Kept) -> LlmRecommender:
    """A copy whose other channels of the stream are zero in every weight."""
    zeroed = copy.deepcopy(model)
    gone = torch.tensor(sorted(set(range(24)) - set(kept.hidden.tolist())))
    state = zeroed.state_dict()
    for name, place in places(zeroed, layout_of(zeroed.body.config)).items():
        for number, axis in enumerate(place.axes):
            if axis == "hidden":
                state[name].index_fill_(number, gone, 0)
    return zeroed


def without_norms(model: LlmRecommender) -> LlmRecommender:
    layout = layout_of(model.body.config)
    for block in model.body.blocks:
        for name in layout.norms:
            block.set_submodule(name, nn.Identity())
    owner = getattr(model.body.backbone, "decoder", model.body.backbone)
    (final,) = {"norm", "ln_f", "final_layer_norm"} & {name for name, _ in owner.named_children()}
    owner.set_submodule(final, nn.Identity())
    return model


@families
def test_all_that_goes_is_zeros_where_no_norm_averages_over_them(family: str) -> None:
    model = built(family, loud=False)
    kept, after = drawn(model, EVERYTHING)
    whole = vectors(without_norms(copy.deepcopy(model)))
    zeroed = without_norms(without_channels(model, kept))
    with silenced(zeroed, kept, "ffn", "heads"):
        expected = vectors(zeroed)
    narrow(model, kept, after)
    found = vectors(without_norms(model))
    assert (found - expected).abs().max() <= 1e-5 * expected.abs().max()
    assert (whole - expected).abs().max() > 0.1 * expected.abs().max()


@pytest.mark.parametrize("family", ["llama", "mistral", "qwen2", "phi3"])
def test_removed_channels_are_zeros_under_rescaled_norms(family: str) -> None:
    """An RMS norm over d' of d channels gives sqrt(d' / d) times what it gives over d with zeros."""
    model = built(family)
    kept, after = drawn(model, {"hidden": 12})
    zeroed = without_channels(model, kept)
    with torch.no_grad():
        for module in zeroed.body.modules():
            if type(module).__name__.endswith("RMSNorm"):
                module.weight.mul_((12 / 24) ** 0.5)
                module.variance_epsilon *= 12 / 24
    narrow(model, kept, after)
    assert torch.allclose(vectors(model), vectors(zeroed), atol=1e-4, rtol=1e-4)


def test_prompts_are_cut_with_the_stream() -> None:
    model = built("llama")
    model.prefix = torch.randn(3, 24, generator=torch.Generator().manual_seed(3))
    kept, after = drawn(model, {"hidden": 12})
    before = model.prefix
    narrow(model, kept, after)
    assert torch.equal(model.prefix, before[:, kept.hidden]) and model.suffix.shape == (0, 12)
    with torch.inference_mode():
        assert torch.isfinite(model.user_vector(History(histories()))).all()


def test_a_table_of_positions_loses_the_same_channels() -> None:
    model = built("gpt2")
    before = model.body.backbone.wpe.weight.clone()
    kept, after = drawn(model, {"hidden": 12, "heads": 2})
    narrow(model, kept, after)
    assert torch.equal(model.body.backbone.wpe.weight, before[:, kept.hidden])


def test_all_families_that_can_be_built_can_be_narrowed() -> None:
    assert set(LAYOUTS) == set(FAMILIES)
