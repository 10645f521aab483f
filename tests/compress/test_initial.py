"""What a pruned student starts from: the trained weights, the body before training, or nothing."""

import shutil
from pathlib import Path
from typing import Any

import polars as pl
import pytest
import torch
from torch import nn
from transformers import AutoConfig, AutoModel

from compress.prune_depth import PruneDepthConfig, run
from recommender.checkpoint import load_checkpoint, read_info
from recommender.data.prepared import Prepared
from recommender.files import write_json
from recommender.models.build import build_model
from recommender.models.interface import SequentialRecommender
from recommender.models.llm import LlmRecommender
from recommender.stage import Bound
from recommender.warm_start import AdaptConfig
from recommender.warm_start import run as run_adapt

from .conftest import LLM, MakeContext, bound, train_tiny


def prune(source: Bound, make_context: MakeContext, name: str, **values: Any) -> Bound:
    context = make_context(name, **({"prepared": values.pop("prepared")} if "prepared" in values else {}))
    entries = {"stage": "prune-depth", "of": "source", "as": name, "keep": 2} | values
    run(PruneDepthConfig(**entries), {"source": source}, context)
    return bound(name, context.folder)


def model_of(checkpoint: Bound) -> LlmRecommender:
    model = load_checkpoint(checkpoint.path)
    assert isinstance(model, LlmRecommender)
    return model


def same(a: nn.Module, b: nn.Module) -> bool:
    """True when all weights are equal, False when no matrix is; anything between is an error."""
    pairs = [(x, y) for x, y in zip(a.parameters(), b.parameters(), strict=True) if x.ndim == 2]
    equal = {torch.equal(x, y) for x, y in pairs}
    assert len(equal) == 1
    return equal.pop()


def untrained(source: Bound) -> SequentialRecommender:
    """The model as the train stage built it."""
    info = read_info(source.path)
    return build_model(
        info.model_config, n_items=info.n_items, max_length=info.max_length, seed=info.about["seed"]
    )


def test_teacher_weights_are_kept(teacher: Bound, make_context: MakeContext) -> None:
    before, after = model_of(teacher), model_of(prune(teacher, make_context, "pruned", keep=(1, 2)))
    assert same(after.body.blocks[0], before.body.blocks[1]) and same(
        after.body.blocks[1], before.body.blocks[2]
    )
    assert same(after.input_projection, before.input_projection) and same(after.items, before.items)


def test_base_of_a_body_from_sizes_is_that_body_before_training(
    teacher: Bound, make_context: MakeContext
) -> None:
    trained, start = model_of(teacher), untrained(teacher)
    assert isinstance(start, LlmRecommender)
    base = model_of(prune(teacher, make_context, "base", keep=(1, 3), init="base"))
    for new, old in zip(base.body.blocks, (1, 3), strict=True):
        assert same(new, start.body.blocks[old]) and not same(new, trained.body.blocks[old])
    for other in (trained, start):
        assert not same(base.input_projection, other.input_projection)
        assert not same(base.output_projection, other.output_projection)
        assert not same(base.items, other.items)


def test_base_of_sasrec_is_its_blocks_before_training(sasrec: Bound, make_context: MakeContext) -> None:
    base = load_checkpoint(prune(sasrec, make_context, "base", keep=(2,), init="base").path)
    start = untrained(sasrec)
    assert same(base.bodies()["user"].blocks[0], start.bodies()["user"].blocks[2])
    assert not torch.equal(base.item_table(), start.item_table())


def test_pruning_twice_still_finds_the_blocks_of_the_base(teacher: Bound, make_context: MakeContext) -> None:
    once = prune(teacher, make_context, "once", keep=(1, 2, 3))
    twice = model_of(prune(once, make_context, "twice", keep=(0, 2), init="base"))
    start = untrained(teacher)
    assert isinstance(start, LlmRecommender)
    assert same(twice.body.blocks[0], start.body.blocks[1]) and same(
        twice.body.blocks[1], start.body.blocks[3]
    )


def test_base_of_a_carried_over_sasrec_is_that_of_yesterday(
    sasrec: Bound, prepared: Prepared, tmp_path: Path, make_context: MakeContext
) -> None:
    today = grown(prepared, tmp_path / "today")
    context = make_context("carried", prepared=today)
    run_adapt(AdaptConfig(stage="adapt", of="old", as_="carried"), {"old": sasrec}, context)
    carried, start = bound("carried", context.folder), untrained(sasrec).bodies()["user"]
    once = prune(carried, make_context, "once", keep=(0, 2), prepared=today)
    for source, kept in ((carried, 1), (once, 2)):
        name = f"base-{kept}"
        base = load_checkpoint(prune(source, make_context, name, keep=(1,), init="base", prepared=today).path)
        assert same(base.bodies()["user"].blocks[0], start.blocks[kept])
        assert base.n_items == today.n_items > prepared.n_items


def grown(prepared: Prepared, folder: Path) -> Prepared:
    """The same log over a catalogue with three more items."""
    shutil.copytree(prepared.path, folder)
    items = prepared.catalogue
    more = items[:3].with_columns(
        pl.col("row") + len(items), pl.lit("new").add(pl.col("item_id")).alias("item_id")
    )
    pl.concat([items, more]).write_parquet(folder / "items.parquet")
    meta = {**prepared.meta, "items": len(items) + 3, "catalogue_digest": "grown", "digest": "grown"}
    write_json(folder / "meta.json", meta)
    return Prepared(folder)


def test_fresh_shares_nothing_with_its_source(teacher: Bound, make_context: MakeContext) -> None:
    trained, start, fresh = (
        model_of(teacher),
        untrained(teacher),
        model_of(prune(teacher, make_context, "f", init="fresh")),
    )
    assert isinstance(start, LlmRecommender)
    for other in (trained, start):
        assert not any(same(fresh.body.blocks[0], block) for block in other.body.blocks)
        assert not same(fresh.input_projection, other.input_projection)
        assert not same(fresh.items, other.items)


@pytest.mark.parametrize("init", ["base", "fresh"])
def test_what_starts_anew_is_drawn_from_the_seed(
    init: str, teacher: Bound, make_context: MakeContext
) -> None:
    one, same_seed = (model_of(prune(teacher, make_context, name, init=init)) for name in ("a", "b"))
    context = make_context("c", seed=2)
    run(
        PruneDepthConfig.model_validate(
            {"stage": "prune-depth", "of": "s", "as": "c", "keep": 2, "init": init}
        ),
        {"s": teacher},
        context,
    )
    other = model_of(bound("c", context.folder))
    assert all(torch.equal(x, y) for x, y in zip(one.parameters(), same_seed.parameters(), strict=True))
    assert not same(one.output_projection, other.output_projection)
    assert same(one.body.blocks[0], other.body.blocks[0]) == (
        init == "base"
    )  # the base has the source's seed


@pytest.fixture(scope="module")
def pretrained(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A folder with a body of 4 blocks, as if somebody had trained it."""
    folder = tmp_path_factory.mktemp("pretrained") / "llama"
    torch.manual_seed(11)
    sizes = {"hidden_size": 16, "intermediate_size": 32, "num_attention_heads": 2, "num_hidden_layers": 4}
    AutoModel.from_config(AutoConfig.for_model("llama", vocab_size=7, **sizes)).save_pretrained(folder)
    return folder


@pytest.fixture(scope="module")
def adapted(
    tmp_path_factory: pytest.TempPathFactory, prepared: Prepared, sasrec: Bound, pretrained: Path
) -> Bound:
    """A teacher: 3 blocks of the pre-trained body, trained with adapters on frozen item vectors of SASRec."""
    from pydantic import TypeAdapter

    from recommender.models.config import ModelConfig
    from recommender.training.stage import TrainConfig
    from recommender.training.stage import run as train

    from .conftest import context_in

    model = LLM | {
        "backbone": str(pretrained),
        "layers": 3,
        "lora": {"r": 2},
        "item_vectors": "frozen",
        "items_from": "sasrec",
    }
    folder = tmp_path_factory.mktemp("runs") / "adapted"
    config = TrainConfig(
        stage="train",
        as_="adapted",
        model=TypeAdapter(ModelConfig).validate_python(model),
        epochs=1,
        learning_rate=1e-2,
    )
    train(config, {"sasrec": sasrec}, context_in(folder, prepared))
    return bound("adapted", folder)


def test_base_of_a_pretrained_body_is_read_from_it_again(
    adapted: Bound, pretrained: Path, sasrec: Bound, make_context: MakeContext
) -> None:
    blocks = AutoModel.from_pretrained(pretrained).layers
    trained = model_of(adapted)
    base = model_of(prune(adapted, make_context, "base", keep=(0, 2), init="base"))
    for new, old in zip(base.body.blocks, (0, 2), strict=True):
        assert all(torch.equal(x, y) for x, y in zip(new.parameters(), blocks[old].parameters(), strict=True))
        assert not torch.equal(new.mlp.up_proj.weight, trained.body.blocks[old].mlp.up_proj.weight)
    assert not same(base.input_projection, trained.input_projection)
    assert torch.equal(base.item_table(), load_checkpoint(sasrec.path).item_table())


def test_fresh_does_not_take_pretrained_weights(
    adapted: Bound, pretrained: Path, sasrec: Bound, make_context: MakeContext
) -> None:
    blocks = AutoModel.from_pretrained(pretrained).layers
    fresh = model_of(prune(adapted, make_context, "fresh", init="fresh"))
    assert len(fresh.body.blocks) == 2
    assert not any(same(fresh.body.blocks[0], block) for block in (*blocks, *model_of(adapted).body.blocks))
    assert torch.equal(fresh.item_table(), load_checkpoint(sasrec.path).item_table())


@pytest.mark.parametrize("init", ["base", "fresh"])
def test_a_body_that_was_held_in_four_bits_starts_again_in_full(
    init: str, prepared: Prepared, pretrained: Path, tmp_path: Path, make_context: MakeContext
) -> None:
    pytest.importorskip("bitsandbytes", reason="needs recpress[quantize]")
    model = LLM | {"backbone": str(pretrained), "layers": 3, "lora": {"r": 2}, "load_in": "nf4"}
    source, _ = train_tiny(tmp_path / "source", prepared, model, epochs=1)
    pruned = model_of(prune(source, make_context, init, init=init))
    block = AutoModel.from_pretrained(pretrained).layers[0]
    assert same(pruned.body.blocks[0], block) == (init == "base")
    assert not same(model_of(source).body.blocks[0], block)  # NF4 has rounded it


def test_adapters_are_merged_before_pruning(adapted: Bound, make_context: MakeContext) -> None:
    pruned = prune(adapted, make_context, "pruned", keep=(0, 2))
    assert not any("lora" in name for name in load_checkpoint(pruned.path).state_dict())
    assert same(model_of(pruned).body.blocks[1], model_of(adapted).body.blocks[2])


def test_tiny_training_left_the_sources_trained(tmp_path: Path, prepared: Prepared, teacher: Bound) -> None:
    """Guards the tests above: an untrained source would make `base` and `teacher` alike."""
    assert not same(model_of(teacher).body.blocks[0], untrained(teacher).body.blocks[0])  # type: ignore[union-attr]
    one, _ = train_tiny(tmp_path / "again", prepared, LLM, epochs=1)
    assert not same(model_of(one).items, untrained(one).items)  # type: ignore[arg-type]
