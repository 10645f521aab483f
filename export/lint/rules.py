"""The rules by target and name, in the order in which they are told."""

from collections.abc import Mapping

from export.lint import axes, blocks, operators, precision, quantized, top_k, weights
from export.lint.findings import Rule

TENSORRT: Mapping[str, Rule] = {
    "inference": operators.inference,
    "opset": operators.opset,
    "domain": operators.domain,
    "operator": operators.operator,
    "parser-version": operators.parser_version,
    "operator-type": operators.operator_type,
    "data-dependent-shape": operators.data_dependent_shape,
    "constant-input": operators.constant_input,
    "gather-nd": operators.gather_nd,
    "is-nan": operators.is_nan,
    "top-k-limit": top_k.top_k_limit,
    "top-k-constant": top_k.top_k_constant,
    "top-k-sorted": top_k.top_k_sorted,
    "top-k-axis": top_k.top_k_axis,
    "attention-rank": blocks.attention_rank,
    "attention-attribute": blocks.attention_attribute,
    "attention-cache": blocks.attention_cache,
    "layer-norm-output": blocks.layer_norm_output,
    "rotary-position": blocks.rotary_position,
    "scatter-reduction": blocks.scatter_reduction,
    "named-axis": axes.named_axis,
    "profile": axes.profile,
    "io-type": axes.io_type,
    "float64": precision.float64,
    "element-type": precision.element_type,
    "precision": precision.promised,
    "precision-cast": precision.precision_cast,
    "quantized-type": quantized.quantized_type,
    "zero-point": quantized.zero_point,
    "quantized-product": quantized.quantized_product,
    "external-data": weights.external_data,
    "half-range": weights.half_range,
    "half-denormal": weights.half_denormal,
}

RULES: Mapping[str, Mapping[str, Rule]] = {"tensorrt": TENSORRT}
