"""The files of each variant of an artifact, and its entry in the manifest."""

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

from export.ann import INDEX, AnnConfig, write_index
from export.variants import ENGINE, HALF, SPLIT, BodyKind, Split, VariantName
from recommender.quantization_scheme import QuantizationScheme

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
        if kind in names:
            from export.quantized_body import quantized_body

            ir.save(
                quantized_body(fast.model if kind == "quantized" else body, matrices, kind), folder / file
            )
            files[kind] = file
    return files


def variant_entry(
    name: VariantName,
    manifest: Mapping[str, Any],
    bodies: Mapping[BodyKind, str],
    catalogue: Path,
    ann: AnnConfig,
    engines: "EngineOrder | None" = None,
) -> dict[str, Any]:
    """Write what a variant needs besides the bodies; its entry in the manifest."""
    if name in ENGINE:
        from export.engines import engine_entry

        assert engines is not None
        return engine_entry(name, manifest, catalogue, engines)
    if name in HALF:
        return half_entry(name, manifest, catalogue / Path(manifest["variants"][0]["graph"]).name, catalogue)
    return split_entry(name, manifest, bodies[SPLIT[name].body], catalogue, ann)


def told_of_bits(name: VariantName, scheme: QuantizationScheme | None, users: int) -> dict[str, Any]:
    """Further entries of bodies in few bits: their scheme, and most users where these share scales."""
    dynamic = scheme is not None and any(
        matrix.activations == "dynamic" for matrix in scheme.matrices.values()
    )
    told = {} if scheme is None or name not in RECORDED else {"scheme": scheme.summary}
    return told | ({"users_per_call": users} if name == "int8-body" or (told and dynamic) else {})


def cost_of(model: "SequentialRecommender", name: VariantName) -> dict[str, Any] | None:
    """What a call of a variant has to compute and to read at least; None: not known."""
    from recommender.models.cost import cost_card

    if name == "ann" or name in RECORDED:
        return None  # what a search reads follows from the vectors; a scheme may mix widths
    if name in ENGINE:
        kind = ENGINE[name]
        return None if kind in ("int8", "fp8") else cost_card(model, precision=kind, table_precision=kind)
    if name in HALF:
        return cost_card(model, precision=name, table_precision=name)
    split = SPLIT[name]
    table = "int8" if split.head == "int8" else None
    return cost_card(model, precision="int8" if split.body == "int8" else None, table_precision=table)


def split_entry(
    name: VariantName,
    manifest: Mapping[str, Any],
    body: str,
    catalogue: Path,
    ann: AnnConfig,
) -> dict[str, Any]:
    """Write the head (and index) of a variant; its entry in the manifest, whose first one tells the sizes."""
    from export.head import write_head

    split, folder, top_k = SPLIT[name], manifest["catalogue"]["folder"], manifest["variants"][0]["top_k"]
    n_items = manifest["catalogue"]["items"]
    files = write_head(catalogue, split.head_file, kind=split.head, n_items=n_items, top_k=top_k)
    searched: dict[str, Any] = {}
    if split.index:
        facts = write_index(catalogue, ann, n_items=n_items, top_k=top_k)
        searched = {"index": f"{folder}/{INDEX}", "ann": facts}
        files = (*files, INDEX)
    return {
        "name": name,
        "about": split.about,
        "precision": _precision(split),
        "body": body,
        "head": f"{folder}/{split.head_file}",
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


def sizes(manifest: Mapping[str, Any]) -> dict[str, Any]:
    """What the entry of every variant says alike: the numbers of the canonical one."""
    same = ("format", "opset", "top_k", "max_length", "parameters", "body_parameters", "inputs", "outputs")
    return {key: manifest["variants"][0][key] for key in same}


def _precision(split: Split) -> str:
    """What the numbers of a variant are: "fp32", "fp32, scan int8", "body int8, scan int8", "fp32, ann"."""
    bodies = {"fast": "fp32", "int8": "body int8", "quantized": "body quantized", "qdq": "body Q/DQ"}
    head = {"exact": [], "int8": ["scan int8"]}
    return ", ".join([bodies[split.body], *head[split.head], *(["ann"] if split.index else [])])
