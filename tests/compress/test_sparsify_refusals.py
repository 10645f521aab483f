"""What the stage sparsify refuses: before anything runs where that can be told, and while it runs."""

import math
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from pydantic import ValidationError

from compress.prune_depth import PruneDepthConfig
from compress.sparsify import run
from recommender.data.prepared import Prepared
from recommender.errors import InputError
from recommender.files import folder_digest
from recommender.models.config import LlmConfig, ModelConfig, PopularityConfig, SasrecConfig
from recommender.models.zeros import is_2_to_4
from recommender.sparsity import Zeros
from recommender.stage import Bound, Shape

from .conftest import MakeContext, train_tiny, write_log
from .sparse import METHODS, config_for, matrices, sparsify, untrained


class TestPlan:
    LLM = Shape("checkpoint", layers=4, model=LlmConfig(layers=4))

    def test_the_shape_is_that_of_the_source_with_zeros(self) -> None:
        config = config_for(pattern="2:4")
        assert config.shape({"source": self.LLM}) == replace(self.LLM, sparsity=Zeros("2:4", 0.5))
        assert config.problems({"source": self.LLM}) == config.problems({}) == []

    def test_depth_pruning_carries_zeros_unless_weights_are_others(self) -> None:
        known = {"source": replace(self.LLM, sparsity=Zeros("2:4", 0.5))}
        for init, expected in (("teacher", Zeros("2:4", 0.5)), ("base", None), ("fresh", None)):
            config = PruneDepthConfig.model_validate({"of": "source", "as": "p", "keep": 2, "init": init})
            assert config.shape(known).sparsity == expected

    @pytest.mark.parametrize("chosen", [{"blocks": [3]}, {"matrices": ["up_proj"]}])
    def test_zeros_in_some_matrices_only_are_left_to_the_run_after_a_cut(
        self, chosen: dict[str, Any]
    ) -> None:
        known = {"source": config_for(**chosen).shape({"source": self.LLM})}
        assert known["source"].sparsity == Zeros("unstructured", 0.5, everywhere=False)
        cut = PruneDepthConfig.model_validate({"of": "source", "as": "p", "keep": 2})
        assert cut.shape(known).sparsity is None

    @pytest.mark.parametrize("sparsity", [0, 1, -0.5, 1.5])
    def test_a_share_out_of_range_is_no_config(self, sparsity: float) -> None:
        with pytest.raises(ValidationError, match="sparsity"):
            config_for(sparsity=sparsity)

    def test_2_to_4_has_one_share(self) -> None:
        assert config_for(pattern="2:4", sparsity=0.5).sparsity == 0.5
        with pytest.raises(
            ValidationError, match=r"2:4 prunes half of the weights: leave sparsity \(0\.6\) out"
        ):
            config_for(pattern="2:4", sparsity=0.6)

    def test_2_to_4_without_quotes_is_what_yaml_makes_of_it(self) -> None:
        assert config_for(pattern=124).pattern == "2:4"
        with pytest.raises(ValidationError, match="pattern"):
            config_for(pattern=125)

    def test_models_without_blocks_are_refused(self) -> None:
        known = {"source": Shape("checkpoint", model=PopularityConfig())}
        assert config_for().problems(known) == [
            ("of", "'source' has no blocks whose weights could be pruned")
        ]

    def test_blocks_that_are_not_there_are_refused(self) -> None:
        assert config_for(blocks=[0, 4]).problems({"source": self.LLM}) == [
            ("blocks", "no block 4: 'source' has 4 blocks")
        ]

    @pytest.mark.parametrize(
        ("model", "told"),
        [
            (SasrecConfig(hidden=18), "hidden 18"),
            (LlmConfig(layers=1, hidden=18, ffn=30), "hidden 18 and ffn 30"),
            (LlmConfig(layers=1, hidden=64, ffn=30), "ffn 30"),
            (LlmConfig(layers=1, hidden=64, heads=3, head_dim=6, family="qwen3"), "heads 18"),
        ],
    )
    def test_2_to_4_of_widths_that_4_does_not_divide_is_refused(self, model: ModelConfig, told: str) -> None:
        known = {"source": Shape("checkpoint", model=model)}
        assert config_for(pattern="2:4").problems(known) == [
            ("pattern", f"2:4 needs widths that 4 divides: 'source' has {told}")
        ]
        assert config_for().problems(known) == []

    @pytest.mark.parametrize(
        ("name", "refused"), [("down_proj", True), ("up_proj", False), ("o_proj", False)]
    )
    def test_only_the_inputs_of_the_chosen_matrices_count(self, name: str, refused: bool) -> None:
        known = {"source": Shape("checkpoint", model=LlmConfig(layers=1, hidden=64, ffn=30))}
        assert bool(config_for(pattern="2:4", matrices=[name]).problems(known)) is refused

    @pytest.mark.parametrize(
        ("there", "asked", "refused"),
        [
            (Zeros("unstructured", 0.5), {"sparsity": 0.3}, True),
            (Zeros("unstructured", 0.5), {"sparsity": 0.5}, True),
            (Zeros("unstructured", 0.5), {"sparsity": 0.6}, False),
            (Zeros("unstructured", 0.5), {"pattern": "2:4"}, False),
            (Zeros("unstructured", 0.7), {"pattern": "2:4"}, False),  # groups of 4 may hold more than 2
            (Zeros("unstructured", 0.7, everywhere=False), {"sparsity": 0.5}, False),  # running will tell
            (Zeros("2:4", 0.5), {"pattern": "2:4"}, True),
            (Zeros("2:4", 0.5), {"sparsity": 0.5}, True),
            (Zeros("2:4", 0.5), {"sparsity": 0.75}, False),
            (Zeros("2:4", 0.5), {"sparsity": 0.5, "matrices": ["q_proj"]}, False),  # running will tell
        ],
    )
    def test_a_second_pruning_that_would_remove_nothing_is_refused(
        self, there: Zeros, asked: dict[str, Any], refused: bool
    ) -> None:
        found = config_for(**asked).problems({"source": replace(self.LLM, sparsity=there)})
        assert [place for place, _ in found] == (["sparsity"] if refused else [])
        assert not refused or f"'source' is sparse already ({there.pattern}" in found[0][1]


class TestRefusals:
    def refused(self, source: Bound, make_context: MakeContext, match: str, **values: Any) -> None:
        """Refused with this message; nothing is written and the source stays as it is."""
        before = folder_digest(source.path)
        context = make_context("refused", **values.pop("context", {}))
        with pytest.raises(InputError, match=match):
            run(config_for(**values), {"source": source}, context)
        assert not (context.folder / "checkpoint").exists()
        assert folder_digest(source.path) == before

    def test_models_without_blocks(
        self, tmp_path: Path, prepared: Prepared, make_context: MakeContext
    ) -> None:
        popularity, _ = train_tiny(tmp_path / "popularity", prepared, {"kind": "popularity"})
        self.refused(popularity, make_context, "has no blocks whose weights could be pruned")

    def test_blocks_and_matrices_that_are_not_there(self, teacher: Bound, make_context: MakeContext) -> None:
        self.refused(teacher, make_context, "no block 7: 'source' has 4 blocks", blocks=[7])
        self.refused(
            teacher, make_context, r"no matrix is called 'up_porj' \(did you mean 'up_proj'\?\)",
            matrices=["up_porj"],
        )  # fmt: skip

    def test_a_width_that_4_does_not_divide_names_its_matrix(
        self, tmp_path: Path, prepared: Prepared, make_context: MakeContext
    ) -> None:
        model = LlmConfig(layers=1, hidden=16, heads=2, ffn=18, item_dim=8)
        source = untrained(tmp_path / "odd", prepared, model)
        self.refused(source, make_context, r"but 0\.mlp\.down_proj has 18", pattern="2:4")
        sparse, _ = sparsify(source, make_context, pattern="2:4", matrices=["up_proj"])
        assert is_2_to_4(matrices(sparse)["0.mlp.up_proj"])

    @pytest.mark.parametrize("value", [math.nan, math.inf])
    def test_weights_that_are_not_finite(
        self, value: float, tmp_path: Path, prepared: Prepared, make_context: MakeContext
    ) -> None:
        def break_it(model: Any) -> None:
            model.body.blocks[1].mlp.up_proj.weight[2, 3] = value

        source = untrained(
            tmp_path / "broken", prepared, LlmConfig(layers=2, hidden=16, item_dim=8), break_it
        )
        self.refused(source, make_context, r"NaN or infinite numbers: .*1\.mlp\.up_proj")

    @pytest.mark.parametrize("method", METHODS)
    def test_inputs_that_are_not_finite(
        self, method: str, tmp_path: Path, prepared: Prepared, make_context: MakeContext
    ) -> None:
        def break_it(model: Any) -> None:
            model.body.blocks[1].post_attention_layernorm.weight.fill_(3e38)  # what it makes overflows

        source = untrained(
            tmp_path / "broken", prepared, LlmConfig(layers=2, hidden=16, item_dim=8), break_it
        )
        match = r"inputs of 1\.mlp\.gate_proj hold NaN or infinite numbers on the calibration"
        self.refused(source, make_context, match, method=method)

    def test_data_that_it_was_not_trained_on(
        self, tmp_path: Path, teacher: Bound, make_context: MakeContext
    ) -> None:
        catalogue = write_log(tmp_path / "catalogue", prefix="x")
        self.refused(teacher, make_context, "another data set", context={"prepared": catalogue})
        histories = write_log(tmp_path / "histories", seed=5)
        self.refused(teacher, make_context, "trained on other histories", context={"prepared": histories})

    def test_nothing_to_calibrate_on(self, teacher: Bound, make_context: MakeContext) -> None:
        context = make_context("refused")
        nobody = replace(context.split, valid=np.full_like(context.split.valid, -1))
        context.__dict__["split"] = nobody  # as a split that leaves no item for validation
        with pytest.raises(InputError, match="there is nothing to calibrate on"):
            run(config_for(), {"source": teacher}, context)

    def test_a_second_pruning_that_would_remove_nothing(
        self, teacher: Bound, make_context: MakeContext
    ) -> None:
        sparse, _ = sparsify(teacher, make_context, method="wanda", sparsity=0.45)  # 7 of 16 inputs, 21 of 48
        for values in ({"sparsity": 0.4}, {"sparsity": 0.45}, {"sparsity": 0.3, "blocks": [2]}):
            match = r"is sparse already \(unstructured, 45% zeros, which stay\)"
            self.refused(sparse, make_context, match, **values)
