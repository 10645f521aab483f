"""Cut the part of a scoring graph that knows nothing of the catalogue: item vectors in, user vector out.

The item table is one initializer that the canonical graph reads in two places: it gathers the history's
vectors from it, and it scores against it. Without both the graph holds for any catalogue whose vectors have
the same width. The host gathers instead, from a table that may be swapped, and hands the vectors in.
"""

from typing import NamedTuple

import onnx_ir as ir
from onnx_ir.passes import common

from export.passes import STANDARD_DOMAINS
from recommender.errors import StageError

ITEMS, VECTORS, USER = "items", "vectors", "user"


class _Scoring(NamedTuple):
    """The last product of a scoring graph."""

    user: ir.Value  # [B, D]
    table: ir.Value  # initializer [n_items + 1, D]
    gemm: ir.Node


def cut_body(scoring: ir.Model) -> ir.Model:
    """The user-vector graph of a canonical scoring graph, which itself is left as it is.

    Inputs: `items` int64 [batch, length] (what is padding), and `vectors` float32 [batch, length, D], rows of
    the item table in the order of `items` (padding: row 0), unless the model gathers none (see
    `reads_vectors`). Output: `user` float32 [batch, D]; scores are its products with the rows of the table.
    Weights are shared with the given model, not copied.

    Raises StageError when the graph does not score as `Gemm(user, table, transB=1)`, or uses the table, or
    the items as an index, in any further place. A statistic of the table that the exporter has folded into a
    constant cannot be seen here.
    """
    model = scoring.clone()
    graph = model.graph
    items = _input(graph, ITEMS)
    user, table, gemm = _scoring(graph)
    gathered = _gathered(graph, items, table, gemm)
    inputs = [items]
    _free_names(graph, {VECTORS, USER}, keep={items})
    if gathered is not None:
        inputs.append(_vectors_input(gathered, items, table))
    # what scores must let go of `user` before it may become an output of the graph
    graph.outputs.clear()
    graph.outputs.append(user)
    common.RemoveUnusedNodesPass()(model)
    graph.inputs.clear()
    graph.inputs.extend(inputs)
    user.name = USER
    assert items.shape is not None and table.shape is not None
    user.shape, user.type = (
        ir.Shape([items.shape[0], table.shape[1]]),
        ir.TensorType(ir.DataType.FLOAT),
    )
    common.RemoveUnusedOpsetsPass()(model)
    graph.name = USER
    return model


def reads_vectors(body: ir.Model) -> bool:
    """True where the body wants `vectors`; a model that only counts (popularity) has `items` alone."""
    return any(value.name == VECTORS for value in body.graph.inputs)


def scoring_product(scoring: ir.Model) -> ir.Node:
    """The Gemm of a canonical scoring graph that makes its scores.

    Raises StageError when the graph does not score as `Gemm(user, table, transB=1)`.
    """
    return _scoring(scoring.graph).gemm


def item_table(scoring: ir.Model) -> ir.Value:
    """The initializer [n_items + 1, D] that a canonical scoring graph scores against.

    Raises StageError when the graph does not score as `Gemm(user, table, transB=1)`.
    """
    return _scoring(scoring.graph).table


def _input(graph: ir.Graph, name: str) -> ir.Value:
    for value in graph.inputs:
        if value.name == name:
            return value
    raise _refusal(f"it has no input {name!r} (inputs: {[value.name for value in graph.inputs]})")


def _scoring(graph: ir.Graph) -> _Scoring:
    """The product behind `scores`: TopK over the Gemm, whose masked entries are scattered in between."""
    found = next((value for value in graph.outputs if value.name == "scores"), None)
    if found is None:
        raise _refusal(f"it has no output 'scores' (outputs: {[value.name for value in graph.outputs]})")
    for expected in ("TopK", "ScatterElements", "Gemm"):
        node = found.producer()
        if expected == "Gemm" and node is not None and node.op_type == "Add" and len(node.inputs) == 2:
            assert node.inputs[0] is not None  # which rows exist (`export.static.with_spare_rows`)
            node = node.inputs[0].producer()
        if node is None or node.op_type != expected or node.domain not in STANDARD_DOMAINS:
            made = "nothing" if node is None else node.op_type
            raise _refusal(f"{expected} was expected to make {found.name!r}, but {made} does")
        source = node.inputs[0]
        assert source is not None  # the first input of all three is required
        found = source
    assert node is not None
    table = node.inputs[1]
    plain = node.attributes.get_int("transB", 0) == 1 and len(node.attributes) == 1 and len(node.inputs) == 2
    if table is None or not table.is_initializer() or not plain:
        raise _refusal("the last product is not Gemm(user, table, transB=1) of a stored item table")
    if table.dtype != ir.DataType.FLOAT or table.shape is None or len(table.shape) != 2:
        raise _refusal(f"the item table is {table.dtype} {table.shape}, not float32 [n_items + 1, D]")
    return _Scoring(found, table, node)


def _gathered(graph: ir.Graph, items: ir.Value, table: ir.Value, gemm: ir.Node) -> ir.Value | None:
    """The history's vectors [B, L, D], if the graph reads any. Raises StageError for any other use."""
    readers = [node for node in table.consumers() if node is not gemm]
    gathers = [node for node in readers if _looks_up(node, items)]
    others = [node.op_type for node in readers if node not in gathers]
    if others or len(gathers) > 1:
        extra = others or ["a second Gather"]
        raise _refusal(f"the item table {table.name!r} is used by {', '.join(extra)} besides Gather and Gemm")
    for node in graph.all_nodes():
        if node not in gathers and _looks_up(node, items):
            assert node.inputs[0] is not None
            raise _refusal(
                f"{node.inputs[0].name!r} is looked up by item as well, so the body depends on the catalogue"
            )
    return gathers[0].outputs[0] if gathers else None


def _looks_up(node: ir.Node, items: ir.Value) -> bool:
    """True for Gather(data, items) along axis 0 and for GatherND(data, Unsqueeze(items, -1))."""
    if node.domain not in STANDARD_DOMAINS or len(node.inputs) != 2:
        return False
    index = node.inputs[1]
    if node.op_type == "Gather":
        return index is items and node.attributes.get_int("axis", 0) == 0
    if node.op_type != "GatherND" or index is None or "batch_dims" in node.attributes:
        return False
    widened = index.producer()
    return (
        widened is not None
        and widened.op_type == "Unsqueeze"
        and widened.inputs[0] is items
        and index.shape is not None
        and len(index.shape) == 3
        and index.shape[2] == 1
    )


def _vectors_input(gathered: ir.Value, items: ir.Value, table: ir.Value) -> ir.Value:
    """A new graph input in the place of the gathered vectors."""
    assert items.shape is not None and table.shape is not None
    vectors = ir.Value(
        name=VECTORS,
        shape=ir.Shape([*items.shape, table.shape[1]]),
        type=ir.TensorType(ir.DataType.FLOAT),
    )
    gathered.replace_all_uses_with(vectors)
    return vectors


def _free_names(graph: ir.Graph, names: set[str], keep: set[ir.Value]) -> None:
    """Rename whatever has one of these names by chance."""
    values = [*graph.inputs, *graph.initializers.values()]
    values += [output for node in graph.all_nodes() for output in node.outputs]
    for value in values:
        if value.name in names and value not in keep:
            value.name = f"{value.name}_inner"


def _refusal(what: str) -> StageError:
    return StageError(
        f"this scoring graph cannot be cut into a body and an item table: {what}",
        where="export",
        fix="a model's user_vector may read its item table in one place only: items -> vectors",
    )
