"""The `export` stage: a checkpoint becomes an artifact that ranks like it, or the stage fails.

With `format: triton` an artifact becomes a model repository (`export.triton.stage`).
"""

import time
from collections.abc import Mapping, Sequence
from typing import TYPE_CHECKING, Any

import numpy as np

from export.config import ExportConfig
from export.variants import CANONICAL, ENGINE, may_be_default
from recommender.errors import InputError
from recommender.quantization_scheme import read_quantization
from recommender.sparsity import noted
from recommender.stage import Bound, Context, Outputs, Shape

if TYPE_CHECKING:
    from export.artifact import Origin
    from export.engines import EngineOrder

CALIBRATION_USERS = 1024
"""Of whose histories (before the validation item) the ranges of tensorrt-fp8 are taken."""


def run(config: ExportConfig, inputs: Mapping[str, Bound], context: Context) -> Outputs:
    """Write `context.folder / "artifact"`, measure parity on histories of test users, pass the gate or fail.

    The canonical graph and every variant that is asked for by name have to pass; another one that does not,
    or is not faster here, is left out. The fastest of those that stay is the default (`only`: that one).
    Raises InputError for a checkpoint of another data set or without the zeros that it notes, a top_k beyond
    the catalogue, a variant that cannot hold its scheme or be compiled here, StageError when the model cannot
    be exported, GateError when a graph ranks differently.
    """
    if config.format == "triton":
        from export.triton.stage import run as write

        return write(config, inputs, context)
    import torch

    from export.artifact import keep_variants, write_artifact
    from export.gates import measure_variants
    from recommender.checkpoint import load_checkpoint, read_info
    from recommender.models.zeros import check_zeros

    if context.threads is not None:
        torch.set_num_threads(context.threads)
    path = inputs[config.of].path
    quantization, note = read_quantization(path), noted(read_info(path).about, str(path))
    scheme = None if quantization is None else quantization.scheme.summary
    zeros = None if note is None else note.planned
    for place, wrong in config.problems({config.of: Shape("checkpoint", quantized=scheme, sparsity=zeros)}):
        raise InputError(wrong, where=f"export.{place}")
    model = load_checkpoint(path, prepared=context.prepared)
    check_zeros(model, note, str(path))
    folder = context.folder / "artifact"
    context.progress("note", {"text": f"exporting {config.of} at opset {config.opset}"})
    facts = write_artifact(
        model,
        folder,
        prepared=context.prepared,
        origin=_origin(config, inputs[config.of], context),
        top_k=config.top_k,
        opset=config.opset,
        variants=config.variants if config.only is None else config.wanted,
        int8_users=config.int8_users,
        ann=config.ann,
        aot=config.aot,
        quantization=quantization,
        engines=_engines(config, context, model.max_length),
    )
    context.progress("note", {"text": f"{facts.nodes} nodes, {facts.size_bytes:,} bytes; measuring parity"})
    started = time.perf_counter()
    measured = measure_variants(model, folder, context, config.parity, named=config.wanted)
    keep, default = settle(measured, named=config.wanted, only=config.only)
    keep_variants(folder, keep, default, measured)
    context.progress("note", {"text": f"variants: {', '.join(keep)}; default: {default}"})
    return Outputs(
        metrics={
            "parity": measured[default]["parity"],
            "default_variant": default,
            "variants": measured,
            "nodes": facts.nodes,
            "operators": facts.operators,
            "size_bytes": facts.size_bytes,
            "artifact_bytes": sum(path.stat().st_size for path in folder.rglob("*") if path.is_file()),
            "export_seconds": facts.seconds,
            "parity_seconds": time.perf_counter() - started,
        }
    )


def _engines(config: ExportConfig, context: Context, max_length: int) -> "EngineOrder | None":
    """How the engines that are asked for are built; None where none is."""
    if ENGINE.keys().isdisjoint(config.variants or ()):
        return None
    from export.engines import EngineOrder
    from recommender.data.prepare import default_cache
    from recommender.evaluate import histories

    prepared, (users, ends) = context.prepared, context.split.targets("valid")
    drawn = np.random.default_rng(context.seed).permutation(len(users))[:CALIBRATION_USERS]
    return EngineOrder(
        config.tensorrt,
        default_cache(),
        longest=int(np.diff(prepared.offsets).max()),
        histories=histories(prepared, users[drawn], ends[drawn], max_length, mask_seen=False),
        progress=context.progress,
    )


def _origin(config: ExportConfig, parent: Bound, context: Context) -> "Origin":
    from export.artifact import Origin
    from recommender.checkpoint import read_info, split_as_json
    from recommender.files import folder_digest

    return Origin(
        name=config.as_,
        parents={parent.name: folder_digest(parent.path)},
        recipe=context.recipe,
        mask_seen=context.evaluation.mask_seen,
        command=context.command,
        seed=context.seed,
        split=split_as_json(context.evaluation.split),
        sparsity=read_info(parent.path).about.get("sparsity"),
    )


def settle(
    measured: Mapping[str, Mapping[str, Any]], *, named: Sequence[str], only: str | None = None
) -> tuple[list[str], str]:
    """(variants to keep, the default): the canonical one, those named, and those that are faster than it."""
    from export.speed import fastest, is_faster

    if only is not None:
        return [only], only
    ratios = {name: each["speedup"] for name, each in measured.items() if "speedup" in each}
    fast = {name for name in ratios if is_faster(ratios[name])}
    keep = [name for name in measured if name == CANONICAL or name in named or name in fast]
    may_serve = [name for name in keep if name in ratios and may_be_default(name)]
    return keep, fastest({name: ratios[name] for name in may_serve}, CANONICAL)
