"""A saved recommender: `config.json`, `model.safetensors`, `items.parquet`, and a plain `backbone/` for
Hugging Face bodies, which `AutoModel.from_pretrained` loads without us. Nothing is pickled."""

import json
import shutil
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

from pydantic import TypeAdapter, ValidationError
from safetensors import SafetensorError, safe_open

from recommender.data.config import SplitConfig
from recommender.data.prepared import Prepared
from recommender.errors import InputError
from recommender.files import complete_folder, read_json, write_json
from recommender.models.config import ModelConfig, backbone_folder
from recommender.quantization_scheme import Quantization, read_scheme, write_quantization
from recommender.ways import EAGER, Way

if TYPE_CHECKING:
    from recommender.models.interface import SequentialRecommender
    from recommender.program import ProgramScorer
    from recommender.ranking import TorchScorer

SCHEMA = 1
BACKBONE_PREFIX = "body.backbone."  # these weights live in backbone/, not in model.safetensors


@dataclass(frozen=True)
class CheckpointInfo:
    """What a checkpoint says of itself, read without torch."""

    model_config: ModelConfig
    n_items: int
    max_length: int
    catalogue_digest: str
    parameters: int  # everything that is stored, item table included
    body_parameters: int  # blocks, final norm, projections
    size_bytes: int
    blocks: Mapping[str, int]  # body name -> number of blocks
    about: Mapping[str, Any]  # how it came to be: seed, stage, metrics
    data_digest: str | None = None  # of the prepared data; None: from before it was noted
    split: Any = None  # `evaluation.split` as JSON; None: from before it was noted
    quantized: str | None = None  # summary of the scheme on whose grid its weights lie; None: on none


def save_checkpoint(
    model: "SequentialRecommender",
    folder: Path,
    *,
    prepared: Prepared,
    model_config: ModelConfig,
    split: SplitConfig = "leave-one-out",
    about: Mapping[str, Any] | None = None,
    quantization: Quantization | None = None,
) -> None:
    """Write a checkpoint folder in one step; an older one at the same place is replaced.

    `prepared` and `split` say what it was trained on. Checkpoints are plain: a quantized body must have been
    dequantized (`merge_adapters`). `quantization`: the grid that the weights lie on, noted beside them.
    """
    from safetensors.torch import save_file

    from recommender.models.hf_body import HuggingFaceBody
    from recommender.models.quantized import is_quantized

    body = getattr(model, "body", None)
    assert not (isinstance(body, HuggingFaceBody) and is_quantized(body.backbone)), "quantized weights"
    weights = {
        name: tensor.detach().cpu().contiguous()
        for name, tensor in model.state_dict().items()
        if not name.startswith(BACKBONE_PREFIX)
    }
    with complete_folder(folder) as temporary:
        save_file(weights, temporary / "model.safetensors")
        if isinstance(body, HuggingFaceBody):
            body.backbone.save_pretrained(backbone_folder(temporary))
        if quantization is not None:
            write_quantization(temporary, quantization)
        shutil.copyfile(prepared.path / "items.parquet", temporary / "items.parquet")
        size = sum(path.stat().st_size for path in temporary.rglob("model*.safetensors"))
        config = {
            "schema": SCHEMA,
            "model": model_config.model_dump(mode="json"),
            "n_items": model.n_items,
            "max_length": model.max_length,
            "data": {
                "name": prepared.meta["name"],
                "catalogue_digest": prepared.catalogue_digest,
                "digest": prepared.digest,
                "split": split_as_json(split),
            },
            "blocks": {name: len(part.blocks) for name, part in model.bodies().items()},
            "parameters": stored_parameters(model),
            "body_parameters": body_parameters(model),
            "size_bytes": size,
            "about": dict(about or {}),
        }
        write_json(temporary / "config.json", config)


def split_as_json(split: SplitConfig) -> Any:
    """A split as checkpoints and artifacts note it."""
    return split if isinstance(split, str) else split.model_dump(mode="json")


def stored_parameters(model: "SequentialRecommender") -> int:
    """Everything that a checkpoint holds, tables included."""
    stored = sum(tensor.numel() for tensor in model.state_dict().values())
    return int(stored - unread_parameters(model))


def unread_parameters(model: "SequentialRecommender") -> int:
    """The one row of word embeddings that a Hugging Face body keeps for form's sake."""
    from recommender.models.hf_body import HuggingFaceBody

    body = getattr(model, "body", None)
    if not isinstance(body, HuggingFaceBody):
        return 0
    return sum(tensor.numel() for tensor in body.backbone.get_input_embeddings().parameters())


def body_parameters(model: "SequentialRecommender") -> int:
    """Parameters of blocks, final norm and projections; tables of items, words and positions are not
    counted.
    """
    total = sum(tensor.numel() for name, tensor in model.state_dict().items() if not _is_table(name))
    return int(total - unread_parameters(model))


def _is_table(name: str) -> bool:
    """Tables of items, positions (ours, GPT-2's `wpe`, OPT's) and prompts, by the names of their weights."""
    return not {"items", "positions", "wpe", "embed_positions", "prefix", "suffix", "counts"}.isdisjoint(
        name.split(".")
    )


def read_info(folder: Path) -> CheckpointInfo:
    """What the checkpoint says of itself. Raises InputError when the folder is no complete checkpoint."""
    if not folder.is_dir():
        raise InputError("no such checkpoint folder", where=str(folder))
    config = read_json(folder / "config.json")
    if not isinstance(config, dict) or config.get("schema") != SCHEMA or "model" not in config:
        raise InputError(
            f"not a recpress checkpoint of schema {SCHEMA}",
            where=str(folder / "config.json"),
            fix="give the `checkpoint` folder of a stage",
        )
    scheme = read_scheme(folder)
    try:
        model_config: ModelConfig = TypeAdapter(ModelConfig).validate_python(config["model"])
        return CheckpointInfo(
            model_config=model_config,
            n_items=config["n_items"],
            max_length=config["max_length"],
            catalogue_digest=config["data"]["catalogue_digest"],
            parameters=config["parameters"],
            body_parameters=config["body_parameters"],
            size_bytes=config["size_bytes"],
            blocks=config["blocks"],
            about=config["about"],
            data_digest=config["data"].get("digest"),
            split=config["data"].get("split"),
            quantized=None if scheme is None else scheme.summary,
        )
    except (ValidationError, KeyError, TypeError, AttributeError) as error:
        raise InputError(f"broken checkpoint config: {error}", where=str(folder / "config.json")) from error


def check_catalogue(info: CheckpointInfo, prepared: Prepared, where: str) -> None:
    """Raise InputError unless the checkpoint was made for the catalogue of `prepared`."""
    if info.catalogue_digest != prepared.catalogue_digest:
        raise InputError(
            f"the checkpoint belongs to another data set: its catalogue has {info.n_items} items "
            f"(digest {info.catalogue_digest[:12]}), this one {prepared.n_items} "
            f"(digest {prepared.catalogue_digest[:12]})",
            where=where,
            fix="use the data, filters and item_seed that the checkpoint was trained with, or train anew",
        )


def check_trained_on(info: CheckpointInfo, prepared: Prepared, split: SplitConfig, where: str) -> None:
    """Raise InputError unless the checkpoint was trained on `prepared` and `split`.

    From other histories of one catalogue, or another split, it may know what is held out here. Checkpoints
    that do not say what they were trained on are checked for the catalogue only.
    """
    check_catalogue(info, prepared, where)
    check_histories("checkpoint", info.data_digest, info.split, prepared=prepared, split=split, where=where)


def check_histories(
    what: str, digest: str | None, noted: Any, *, prepared: Prepared, split: SplitConfig, where: str
) -> None:
    """Raise InputError where the noted `digest` of prepared data or split (as JSON) is not the one at hand.

    `what`: what was trained, for the message. None, in both: not known, so not checked.
    """
    wrong = []
    if digest not in (None, prepared.digest):
        wrong.append("on other histories (another log, filter or order of ties)")
    if noted not in (None, split_as_json(split)):
        wrong.append(f"with another split ({json.dumps(noted)}, not {json.dumps(split_as_json(split))})")
    if wrong:
        raise InputError(
            f"the {what} was trained {' and '.join(wrong)}, so maybe on what is held out here",
            where=where,
            fix="use the data and evaluation.split that it was trained with; where the log has grown since "
            "then, carry it over with the stage adapt",
        )


def load_checkpoint(
    folder: Path, *, prepared: Prepared | None = None, device: str = "cpu"
) -> "SequentialRecommender":
    """Load a recommender in eval mode.

    Raises InputError when the folder is broken, or when `prepared` has another catalogue than the checkpoint.
    """
    from recommender.models.restore import empty_model

    info = read_info(folder)
    if prepared is not None:
        check_catalogue(info, prepared, str(folder))
    file = folder / "model.safetensors"
    try:
        with safe_open(file, framework="pt") as store:
            weights = {name: store.get_tensor(name) for name in store.keys()}  # noqa: SIM118 - not a dict
        model = empty_model(info, folder, weights)
    except (OSError, SafetensorError) as error:
        raise InputError(f"cannot read the weights: {error}", where=str(file)) from error
    missing, unexpected = model.load_state_dict(weights, strict=False)
    missing = [name for name in missing if not name.startswith(BACKBONE_PREFIX)]
    if missing or unexpected:
        raise InputError(
            f"weights do not fit: missing {missing[:3]}, unexpected {unexpected[:3]}", where=str(file)
        )
    return model.to(device).eval()


def open_scorer(
    path: Path, *, device: str = "cpu", threads: int | None = None, way: Way = EAGER
) -> "TorchScorer | ProgramScorer":
    """Open a checkpoint as a scorer; `threads` sets torch's intra-op threads for the process.

    Raises InputError for a broken checkpoint, and for a `way` that the device cannot go.
    """
    import torch

    from recommender.torch_ways import scorer_in

    if threads is not None:
        torch.set_num_threads(threads)
    return scorer_in(way, load_checkpoint(path, device=device))
