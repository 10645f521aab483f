"""Graphs for engines: fixed lengths, the same lists, spare rows that never come back."""

import ast
from pathlib import Path
from typing import Any

import numpy as np
import onnx
import onnx_ir as ir
import pytest

from export import tensorrt
from export.half import to_half
from export.static import ROWS, TABLE, replace_weights, static_graph, table_weights, with_spare_rows
from recommender.errors import StageError
from tests.export.bodies import canonical, session
from tests.export.fixtures import MAX_LENGTH, MODELS, N_ITEMS, left_padded

SEEN = 8
OFTEN = ("llama", "sasrec", "popularity")


def answers(model: ir.Model, users: int = 7) -> list[Any]:
    given = {"items": left_padded(users, MAX_LENGTH), "seen": left_padded(users, SEEN, seed=1)}
    found: list[Any] = session(model).run(["top_items", "scores"], given)
    return found


@pytest.mark.parametrize(
    "name", [pytest.param(name, marks=() if name in OFTEN else pytest.mark.slow) for name in MODELS]
)
def test_only_the_batch_stays_dynamic_and_lists_stay_as_they_are(name: str) -> None:
    whole = canonical(name)
    made = static_graph(whole, length=MAX_LENGTH, seen=SEEN)
    onnx.checker.check_model(ir.to_proto(made), full_check=True)
    shapes = {value.name: list(value.shape or ()) for value in made.graph.inputs}
    assert [shapes["items"][1], shapes["seen"][1]] == [MAX_LENGTH, SEEN]
    left = {node.op_type for node in made.graph}
    assert not left & {"Range", "GatherND", "IsNaN", "NonZero"}
    for users in (1, 7):
        for one, other in zip(answers(made, users), answers(whole, users), strict=True):
            np.testing.assert_allclose(one, other, rtol=1e-5, atol=1e-6)
    assert {node.op_type for node in whole.graph} >= left - {"Unsqueeze"}  # the given one is as it was


@pytest.mark.parametrize("half", [None, "fp16"])
def test_spare_rows_never_come_back_and_can_be_filled(half: Any) -> None:
    whole = static_graph(canonical("sasrec"), length=MAX_LENGTH, seen=SEEN)
    spare = with_spare_rows(whole, 60, N_ITEMS)
    before = answers(whole)
    for one, other in zip(answers(spare), before, strict=True):
        np.testing.assert_allclose(one, other, rtol=1e-5, atol=1e-6)
    if half:
        spare = to_half(spare, half)
    name = TABLE if half is None else f"{TABLE}_{half}"
    table = np.asarray(spare.graph.initializers[name].const_value.numpy()).astype(np.float32)  # type: ignore[union-attr]
    table[N_ITEMS + 1] = 50 * table[7]
    weights = table_weights(spare, table[: N_ITEMS + 2], N_ITEMS + 1)
    assert {each: kind for each, (kind, _) in weights.items()} == {
        name: "FLOAT" if half is None else "HALF", ROWS: "FLOAT",
    }  # fmt: skip
    assert [array.shape for _, array in weights.values()] == [table.shape, (1, 60)]
    replace_weights(spare, {each: array for each, (_, array) in weights.items()})
    assert (answers(spare)[0] == N_ITEMS + 1).any()


def test_more_items_than_rows_make_the_table_longer() -> None:
    whole = static_graph(canonical("sasrec"), length=MAX_LENGTH, seen=SEEN)
    longer = np.random.default_rng(0).normal(size=(90, 16)).astype(np.float32)
    weights = table_weights(whole, longer, 89)
    assert list(weights) == [TABLE]
    replace_weights(whole, {TABLE: weights[TABLE][1]})
    assert answers(whole)[0].max() > N_ITEMS


def test_vectors_beyond_the_range_are_refused() -> None:
    half = to_half(static_graph(canonical("sasrec"), length=MAX_LENGTH, seen=SEEN), "fp16")
    with pytest.raises(StageError, match="leave the range of FLOAT16"):
        table_weights(half, np.full((5, 16), 1e6, np.float32), 4)


def test_the_file_that_travels_imports_only_the_standard_library_and_numpy() -> None:
    tree = ast.parse(Path(tensorrt.__file__).read_text())
    found = set()
    for node in tree.body:  # what stands below `if TYPE_CHECKING` is not run
        if isinstance(node, ast.Import):
            found |= {each.name.partition(".")[0] for each in node.names}
        elif isinstance(node, ast.ImportFrom):
            found.add(str(node.module).partition(".")[0])
    assert found == {
        "collections", "dataclasses", "hashlib", "json", "logging", "numpy", "os", "pathlib", "re",
        "threading", "time", "typing",
    }  # fmt: skip
