"""The files of each variant of an artifact, and its entry in the manifest."""

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

from export.ann import INDEX, AnnConfig, write_index
from export.recorded_table import table_entry
from export.variants import COMPILED, ENGINE, HALF, SPLIT, BodyKind, HeadKind, Split, VariantName, sizes
from recommender.quantization_scheme import QuantizationScheme, TableBits

if TYPE_CHECKING:
    from export.engines import EngineOrder
    from export.recorded import Recorded
    from recommender.models.interface import SequentialRecommender

BODY, FAST_BODY, INT8_BODY = "body.onnx", "body-fast.onnx", "body-int8.onnx"
RECORDED: dict[BodyKind, str] = {"quantized": "body-quantized.onnx", "qdq": "body-qdq.onnx"}


def write_bodies(
    folder: Path,
    canonical: Path,
    max_length: int,
    names: Sequence[VariantName],
    matrices: "Mapping[str, Recorded]",
) -> dict[BodyKind, str]:
    """Write body.onnx, body-fast.onnx where any pass fires, the 8-bit and recorded ones that variants want.

    `matrices`: those of the recorded scheme. Raises StageError where one is not in the graph.
    """
    import onnx_ir as ir

    from export.body import cut_body
    from export.fast_body import fast_body

    body = cut_body(ir.load(canonical))
    ir.save(body, folder / BODY)
    if not any(name in SPLIT for name in names):
        return {}
    fast = fast_body(body, max_length=max_length)
    files: dict[BodyKind, str] = {"fast": FAST_BODY if any(fast.fired.values()) else BODY}
    if files["fast"] == FAST_BODY:
        ir.save(fast.model, folder / FAST_BODY)
    if any(name in SPLIT and SPLIT[name].body == "int8" for name in names):
        from export.int8_body import quantize_body

        quantize_body(folder / files["fast"], folder / INT8_BODY)
        files["int8"] = INT8_BODY
    for kind, file in RECORDED.items():
        if kind == "quantized" and not matrices:  # the scheme is of the item table alone
            files[kind] = files["fast"]
        elif kind in names:
            from export.quantized_body import quantized_body

            ir.save(
                quantized_body(fast.model if kind == "quantized" else body, matrices, kind), folder / file
            )
            files[kind] = file
    if FAST_BODY not in {files[SPLIT[name].body] for name in names if name in SPLIT}:
        (folder / FAST_BODY).unlink(missing_ok=True)
    return files


def variant_entry(
    name: VariantName,
    manifest: Mapping[str, Any],
    bodies: Mapping[BodyKind, str],
    catalogue: Path,
    ann: AnnConfig,
    table: TableBits = "fp32",
    engines: "EngineOrder | None" = None,
) -> dict[str, Any]:
    """Write what a variant needs besides the bodies; its entry in the manifest.

    `table`: bits of the recorded item table, whose files are there where it has few. `engines`: how they are
    built.
    """
    if name in ENGINE:
        from export.engines import engine_entry

        assert engines is not None
        return engine_entry(name, manifest, catalogue, engines)
    if name in HALF:
        return half_entry(name, manifest, catalogue / Path(manifest["variants"][0]["graph"]).name, catalogue)
    own = table if name == "quantized" else "fp32"
    return split_entry(name, manifest, bodies[SPLIT[name].body], catalogue, ann, own)


def told_of_bits(name: VariantName, scheme: QuantizationScheme | None, users: int) -> dict[str, Any]:
    """Further entries of bodies in few bits: their scheme, and most users where these share scales."""
    dynamic = scheme is not None and any(
        matrix.activations == "dynamic" for matrix in scheme.matrices.values()
    )
    told = {} if scheme is None or name not in RECORDED else {"scheme": scheme.summary}
    return told | ({"users_per_call": users} if name == "int8-body" or (told and dynamic) else {})


def cost_of(
    model: "SequentialRecommender", name: VariantName, scheme: QuantizationScheme | None = None
) -> dict[str, Any] | None:
    """What a call of a variant has to compute and to read at least; None: not known."""
    from recommender.models.cost import cost_card
    from recommender.models.half_cost import half_cost_card
    from recommender.models.scheme_cost import scheme_cost_card

    if name in ENGINE:
        kind = ENGINE[name]
        if kind in ("int8", "fp8"):
            return None
        if kind == "fp32":
            return cost_card(model, precision=kind, table_precision=kind)
        return half_cost_card(model, kind, table_read=kind)
    if name == "ann":
        return None  # what a search reads follows from the vectors
    if name in RECORDED:
        assert scheme is not None
        own_table = name == "quantized" and scheme.item_table != "fp32"
        return scheme_cost_card(model, scheme, own_table=own_table)
    if name in HALF:
        return half_cost_card(model, name)  # onnxruntime casts the table up once, when it opens the graph
    if name in COMPILED:
        return cost_card(model, precision="bf16" if COMPILED[name].half else None)
    split = SPLIT[name]
    table = None if split.head == "exact" else split.head
    return cost_card(model, precision="int8" if split.body == "int8" else None, table_precision=table)


def split_entry(
    name: VariantName,
    manifest: Mapping[str, Any],
    body: str,
    catalogue: Path,
    ann: AnnConfig,
    table: TableBits = "fp32",
) -> dict[str, Any]:
    """Write the head (and index) of a variant; its entry in the manifest, whose first one tells the sizes.

    `table`: bits of the variant's own item table, whose files are there; fp32: it reads `item_table.npy`.
    """
    from export.head import write_head

    split, told, top_k = SPLIT[name], manifest["catalogue"], manifest["variants"][0]["top_k"]
    folder, n_items = told["folder"], told["items"]
    kind: HeadKind = split.head if table == "fp32" else "recorded"
    head = f"head-{kind}.onnx"
    files = write_head(catalogue, head, kind=kind, n_items=n_items, top_k=top_k, width=told["width"])
    searched: dict[str, Any] = {}
    if split.index:
        facts = write_index(catalogue, ann, n_items=n_items, top_k=top_k)
        searched = {"index": f"{folder}/{INDEX}", "ann": facts}
        files = (*files, INDEX)
    return {
        "name": name,
        "about": split.about,
        "precision": _precision("fast" if body in (BODY, FAST_BODY) else split.body, split, table),
        "body": body,
        "head": f"{folder}/{head}",
        **({} if table == "fp32" else {"table": table_entry(folder, table)}),
        "files": [body, *(f"{folder}/{file}" for file in files)],
        **searched,
        **sizes(manifest),
    }


def half_entry(
    name: VariantName, manifest: Mapping[str, Any], canonical: Path, catalogue: Path
) -> dict[str, Any]:
    """Write the canonical graph in half precision into the folder of a catalogue; its entry in the manifest.

    Raises StageError when the graph or its weights do not fit the type.
    """
    import onnx_ir as ir

    from export.contract import ScoringExporterConfig, ScoringSizes
    from export.half import to_half
    from export.half_check import runs_on_cpu
    from export.onnx import check_onnx, save_onnx

    same, told = sizes(manifest), manifest["catalogue"]
    files = save_onnx(to_half(ir.load(canonical), HALF[name]), catalogue / f"{name}.onnx")
    contract = ScoringExporterConfig(ScoringSizes(told["items"], same["max_length"], same["top_k"]))
    check_onnx(catalogue / files[0], contract, same["opset"])
    here = runs_on_cpu(catalogue / files[0])
    runtimes = f"runtimes that compute in {name}" + (", onnxruntime on a CPU" if here else "")
    return {
        "name": name,
        "about": "the canonical graph in half precision; norms, softmax and scores in float32",
        "precision": name,
        "graph": f"{told['folder']}/{files[0]}",
        "files": [f"{told['folder']}/{file}" for file in files],
        "on_cpu": here,
        "runs_on": runtimes + ("" if here else "; not onnxruntime on a CPU, which has no kernels for it"),
        **same,
    }


def _precision(body: BodyKind, split: Split, table: TableBits) -> str:
    """What the numbers of a variant are: "fp32", "fp32, scan int8", "body quantized, items int4", ..."""
    bodies = {"fast": "fp32", "int8": "body int8", "quantized": "body quantized", "qdq": "body Q/DQ"}
    head = [] if split.head == "exact" else [f"scan {split.head}"]
    items = [] if table == "fp32" else [f"items {table}"]
    return ", ".join([bodies[body], *head, *items, *(["ann"] if split.index else [])])
