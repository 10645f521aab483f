"""The files of each variant of an artifact, and its entry in the manifest."""

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from export.ann import INDEX, AnnConfig, write_index
from export.variants import HALF, SPLIT, BodyKind, Split, VariantName

BODY, FAST_BODY, INT8_BODY = "body.onnx", "body-fast.onnx", "body-int8.onnx"


def write_bodies(
    folder: Path, canonical: Path, max_length: int, names: Sequence[VariantName]
) -> dict[BodyKind, str]:
    """Write body.onnx, body-fast.onnx where any pass fires, body-int8.onnx where a variant wants it."""
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
    return files


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
    """What the numbers of a variant are: "fp32", "fp32, scan int8", "body int8", "fp32, ann"."""
    body, head = {"fast": "fp32", "int8": "body int8"}, {"exact": [], "int8": ["scan int8"]}
    return ", ".join([body[split.body], *head[split.head], *(["ann"] if split.index else [])])
