"""Exporting a quantized checkpoint: variants that hold its scheme, by name only, and what is refused."""

import dataclasses
import re
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from export.config import ExportConfig
from export.refresh import refresh_items
from export.runtime import Artifact
from export.stage import run
from recommender.checkpoint import save_checkpoint
from recommender.data.prepared import Prepared
from recommender.errors import GateError, InputError
from recommender.files import read_json
from recommender.models.linears import PROJECTIONS
from recommender.scoring import HistoryArrays
from recommender.stage import Bound, Context, Shape
from tests.export.fixtures import MAX_LENGTH, MODELS, TOP_K, left_padded
from tests.export.test_quantized_body import quantized_model
from tests.export.test_refresh import present
from tests.recommender.fixtures import context_for


def config_for(**values: Any) -> ExportConfig:
    entries = {"of": "small", "as": "small-onnx", "top_k": TOP_K, "parity": {"users": 20}}
    return ExportConfig.model_validate(entries | values)


def checkpoint(folder: Path, prepared: Prepared, scheme: str | None) -> Bound:
    model, quantization = quantized_model("sasrec", scheme or "int4")
    kept = quantization if scheme else None
    place = folder / "small" / "checkpoint"
    save_checkpoint(model, place, prepared=prepared, model_config=MODELS["sasrec"], quantization=kept)
    return Bound("small", "checkpoint", place, place.parent)


def export(scheme: str | None, prepared: Prepared, folder: Path, **values: Any) -> tuple[Path, Any]:
    context = _context(prepared, folder)
    small = checkpoint(folder, prepared, scheme)
    metrics = run(config_for(**values), {"small": small}, context).metrics
    return context.folder / "artifact", metrics


def _context(prepared: Prepared, folder: Path) -> Context:
    return dataclasses.replace(context_for(prepared, folder, max_length=MAX_LENGTH), threads=1)


def entries_of(folder: Path) -> dict[str, dict[str, Any]]:
    return {entry["name"]: entry for entry in read_json(folder / "manifest.json")["variants"]}


def test_weights_in_few_bits_give_the_lists_of_the_checkpoint_from_a_smaller_body(
    prepared: Prepared, tmp_path: Path
) -> None:
    folder, metrics = export("int4-16", prepared, tmp_path, variants=["quantized", "qdq"])
    entries, history = entries_of(folder), HistoryArrays(left_padded(20, MAX_LENGTH))
    wanted = Artifact(folder, variant="fp32", threads=1).top_k(history, 10)
    for name in ("quantized", "qdq"):
        assert entries[name]["scheme"] == "int4" and "users_per_call" not in entries[name]
        found = Artifact(folder, variant=name, threads=1).top_k(history, 10)
        assert np.array_equal(found.items, wanted.items)
        assert np.allclose(found.scores, wanted.scores, atol=1e-5)
        assert metrics["variants"][name]["parity"]["max_score_error"] < 1e-4
        assert entries[name]["float_weights"] == {}  # SASRec has no projections
    assert "float_weights" not in entries["fp32"]
    assert metrics["default_variant"] not in ("quantized", "qdq")  # by name only
    refresh_items(folder, *present(folder))
    assert entries_of(folder)["quantized"]["scheme"] == "int4"
    again = Artifact(folder, variant="quantized", threads=1).top_k(history, 10)
    assert np.array_equal(again.items, wanted.items)


@pytest.mark.parametrize("projections", [False, True])
def test_an_artifact_in_few_bits_alone_names_what_it_holds_in_float(
    projections: bool, prepared: Prepared, tmp_path: Path
) -> None:
    model, quantization = quantized_model("llama", "int4-16", projections=projections)
    place = tmp_path / "small" / "checkpoint"
    save_checkpoint(model, place, prepared=prepared, model_config=MODELS["llama"], quantization=quantization)
    context = _context(prepared, tmp_path)
    run(config_for(only="quantized"), {"small": Bound("small", "checkpoint", place, place.parent)}, context)
    (entry,) = entries_of(context.folder / "artifact").values()
    around = {name: getattr(model, name).weight.numel() for name in PROJECTIONS}
    assert entry["float_weights"] == ({} if projections else around)


def test_dynamic_inputs_are_served_in_calls_of_the_size_that_quality_was_measured_with(
    prepared: Prepared, tmp_path: Path
) -> None:
    asked: dict[str, Any] = {"variants": ["quantized"], "int8_users": 3, "parity": {"max_ndcg_change": 1}}
    folder, metrics = export("int8-dynamic", prepared, tmp_path, **asked)
    assert entries_of(folder)["quantized"]["users_per_call"] == 3
    assert Artifact(folder, variant="quantized").users_per_call == 3
    assert metrics["variants"]["quantized"]["parity"]["max_score_error"] > 0


def test_a_scheme_that_costs_more_quality_than_allowed_fails_the_gate(
    prepared: Prepared, tmp_path: Path
) -> None:
    limits = {"users": 60, "max_ndcg_change": 1e-9}  # which the canonical graph keeps
    with pytest.raises(GateError, match=r"export\.parity of qdq"):
        export("int8-clipped", prepared, tmp_path, variants=["qdq"], parity=limits)


REFUSED = [
    ("quantized", None, "is not quantized, and quantized holds what a checkpoint records"),
    ("qdq", "int8-dynamic", "cannot hold int8-dynamic: variants that can: quantized"),
    ("quantized", "int8-static", "cannot hold int8-static: variants that can: qdq"),
    ("int8-body", "int4", "quantized already .int4., and int8-body would round it again"),
    ("quantized", "nf4", "no variant can; fp32 and fast hold its values"),
    ("int8-body", "int8-dynamic", "to hold what it records: variants that can: quantized$"),
    ("int8-body", "int8-static", "to hold what it records: variants that can: qdq, tensorrt-int8$"),
    ("int8-body", "nf4", "to hold what it records: no variant can; fp32 and fast hold its values$"),
    ("int8-body", "llm-int8", "no variant can"),
    ("tensorrt-fp8", "int8-static", "and tensorrt-fp8 would round it again; to hold what it records: .*qdq"),
    ("tensorrt-fp8", "nf4", "and tensorrt-fp8 would round it again"),
    ("int8-body", "of a file", "as its kinds allow: quantized, qdq, tensorrt-int8$"),
]


@pytest.mark.parametrize(("variant", "scheme", "message"), REFUSED)
def test_what_a_variant_cannot_serve_is_refused_before_anything_runs(
    variant: str, scheme: str | None, message: str
) -> None:
    known = {"small": Shape("checkpoint", layers=2, quantized=scheme)}
    ((place, told),) = config_for(variants=[variant]).problems(known)
    assert place == "variants" and re.search(message, told)
    assert config_for(variants=["fast", "fp16"]).problems(known) == []
    assert config_for(variants=[variant]).problems({}) == []


@pytest.mark.parametrize(("variant", "scheme", "message"), REFUSED[:4])
def test_and_while_running(
    variant: str, scheme: str | None, message: str, prepared: Prepared, tmp_path: Path
) -> None:
    with pytest.raises(InputError, match=message):
        export(scheme, prepared, tmp_path, variants=[variant])
    assert not (tmp_path / "artifact").exists()
