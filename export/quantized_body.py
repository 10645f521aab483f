"""A body whose matrices are held as its checkpoint's scheme says: exactly the recorded numbers and scales.

`quantized` is for onnxruntime: weights alone are read by its MatMulNBits (float32 products of 4- or 8-bit
weights), 8-bit inputs by DynamicQuantizeLinear and MatMulInteger. `qdq` has standard operators only, zero
points of 0 and ranges that were calibrated, as TensorRT wants it: QuantizeLinear and DequantizeLinear before
a plain product. `onnxruntime.quantization` is not used, as it would choose scales of its own.
"""

from collections.abc import Callable, Mapping

import numpy as np
import onnx_ir as ir
from onnx_ir.passes import common

from export.fast.surgery import CONTRIB, given, insert, replace, store
from export.four_bits import pack
from export.recorded import Float32, Part, Product, Recorded, check_all_found, products
from recommender.errors import StageError
from recommender.quantization_scheme import SERVED

NIBBLE = ir.DataType.INT4.numpy()
LARGEST_BLOCK = 128
"""Of MatMulNBits, where a row has one scale."""


def quantized_body(body: ir.Model, matrices: Mapping[str, Recorded], variant: str) -> ir.Model:
    """A body with all recorded matrices as `variant` (quantized, qdq) holds them; the given one stays.

    What the scheme does not name stays in float32. Raises StageError where a matrix is not in the graph, or
    is of a kind that the variant cannot hold.
    """
    wrong = [name for name, each in matrices.items() if each.scheme.kind not in SERVED[variant]]
    if wrong:
        raise StageError(
            f"the variant {variant} cannot hold {wrong[0]} in {matrices[wrong[0]].scheme.kind}",
            where="export.variants",
            fix=f"leave {variant} out",
        )
    model = body.clone()
    found = products(model, matrices)
    check_all_found(found, matrices, variant)
    writer = _ForOnnxruntime(model) if variant == "quantized" else _QuantizeDequantize(model)
    for product in found:
        _rewrite(product, writer.write)
    common.RemoveUnusedNodesPass()(model)
    common.DeduplicateInitializersPass(size_limit=1 << 62)(model)
    if any(node.domain == CONTRIB for node in model.graph):
        model.graph.opset_imports[CONTRIB] = 1
    return model


def _rewrite(product: Product, write: Callable[[ir.Node, Part], ir.Node]) -> None:
    """Put what `write` makes of a product in its place; it carries the name of the matrix."""
    node, part, bias = product
    made = write(node, part)
    made.name = f"{part.matrix.name}/{made.op_type}/{node.outputs[0].name}"
    result = made.outputs[0]
    if bias is not None:
        result = insert(node, "Add", [result, bias], like=node.outputs[0]).outputs[0]
    replace(node.outputs[0], result)


class _ForOnnxruntime:
    """Products as onnxruntime has kernels for them on a CPU; inputs are quantized once for all that read
    them."""

    def __init__(self, model: ir.Model) -> None:
        self.graph = model.graph
        self.inputs: dict[ir.Value, ir.Node] = {}

    def write(self, node: ir.Node, part: Part) -> ir.Node:
        """The product in place of a node, without its bias."""
        if part.matrix.scheme.activations == "dynamic":
            return self._dynamic(node, part)
        bits = 4 if part.matrix.scheme.weights == "int4" else 8
        width = part.numbers.shape[1]
        block = part.matrix.scheme.group or min(LARGEST_BLOCK, max(16, 1 << (width - 1).bit_length()))
        packed = store(self.graph, "packed", pack(part.numbers, bits, block))
        scales = store(self.graph, "scales", per_block(part.scales, width, block).reshape(-1))
        sizes = {"K": width, "N": len(part.numbers), "bits": bits, "block_size": block}
        return insert(
            node, "MatMulNBits", [node.inputs[0], packed, scales], sizes, domain=CONTRIB, like=node.outputs[0]
        )

    def _dynamic(self, node: ir.Node, part: Part) -> ir.Node:
        read = given(node, 0)
        if read not in self.inputs:
            self.inputs[read] = insert(node, "DynamicQuantizeLinear", [read], outputs=3)
        numbers, scale, zero = self.inputs[read].outputs
        weights = store(self.graph, "int8", part.numbers.T)
        added = insert(node, "MatMulInteger", [numbers, weights, zero]).outputs[0]
        steps = store(self.graph, "steps", part.scales[:, 0])
        both = insert(node, "Mul", [scale, steps]).outputs[0]
        wide = insert(node, "Cast", [added], {"to": int(ir.DataType.FLOAT)}, like=node.outputs[0])
        return insert(node, "Mul", [wide.outputs[0], both], like=node.outputs[0])


class _QuantizeDequantize:
    """Plain products of dequantized integers, in operators of the standard."""

    def __init__(self, model: ir.Model) -> None:
        self.graph = model.graph

    def write(self, node: ir.Node, part: Part) -> ir.Node:
        """The product in place of a node, without its bias."""
        read, scheme = given(node, 0), part.matrix.scheme
        if scheme.activations == "static":
            read = self._input(node, read, scheme.input_range)
        if scheme.weights == "int4" and scheme.group is not None:
            numbers = store(self.graph, "int4", part.numbers.T.astype(NIBBLE))
            steps = store(self.graph, "steps", part.scales.T)
            how = {"axis": 0, "block_size": scheme.group}
        else:
            kind = NIBBLE if scheme.weights == "int4" else np.int8
            numbers = store(self.graph, scheme.weights, part.numbers.T.astype(kind))
            steps, how = store(self.graph, "steps", part.scales[:, 0]), {"axis": 1}
        weight = insert(node, "DequantizeLinear", [numbers, steps], how).outputs[0]
        weight.shape, weight.type = ir.Shape(part.numbers.T.shape), ir.TensorType(ir.DataType.FLOAT)
        return insert(node, "MatMul", [read, weight], like=node.outputs[0])

    def _input(self, node: ir.Node, read: ir.Value, range_: tuple[float, float] | None) -> ir.Value:
        """The input as it comes out of 8 bits; zero point 0, the ends of its range at -127 and 127."""
        if range_ is None:
            raise StageError(
                "a static scheme has no input range", where="export.variants", fix="quantize again"
            )
        scale = store(self.graph, "step", np.array(range_[1] / 127, np.float32))
        zero = store(self.graph, "zero", np.array(0, np.int8))
        made = insert(node, "QuantizeLinear", [read, scale, zero])
        made.outputs[0].shape, made.outputs[0].type = read.shape, ir.TensorType(ir.DataType.INT8)
        return insert(node, "DequantizeLinear", [made.outputs[0], scale, zero], like=read).outputs[0]


def per_block(scales: Float32, width: int, block: int) -> Float32:
    """[n, groups] -> [n, blocks]: the scale of a row stands for each of its blocks where it has but one."""
    blocks = -(-width // block)
    return scales if scales.shape[1] == blocks else np.repeat(scales, blocks, axis=1)
