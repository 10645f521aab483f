"""What a folder that a name is bound to holds, and how it is opened: checkpoints and artifacts."""

from collections.abc import Iterable
from pathlib import Path
from typing import TYPE_CHECKING, Any

from recommender.checkpoint import check_catalogue, read_info
from recommender.data.prepared import Prepared
from recommender.errors import InputError
from recommender.files import read_json
from recommender.scoring import ScorerRef
from recommender.stage import Bound, Kind, Shape

if TYPE_CHECKING:
    from recpress.recipe import Recipe

CHECKPOINT_OPENER = "recommender.checkpoint:open_scorer"
ARTIFACT_OPENER = "export.artifact:open_artifact"  # its errors are ours, the bare runtime's are not


def kind_of(folder: Path) -> Kind:
    """Checkpoint or artifact. Raises InputError when the folder is neither."""
    if not folder.is_dir():
        raise InputError("no such checkpoint or artifact folder", where=str(folder))
    if (folder / "manifest.json").is_file():
        return "artifact"
    if (folder / "config.json").is_file():
        return "checkpoint"
    raise InputError(
        "is neither a checkpoint (config.json) nor an artifact (manifest.json)",
        where=str(folder),
        fix="give the `checkpoint` folder of a stage, or a folder below `artifacts`",
    )


def shape_of(folder: Path) -> Shape:
    """What the recipe check may know of an existing folder. Raises InputError when it is broken."""
    if kind_of(folder) == "artifact":
        return Shape("artifact")
    info = read_info(folder)
    return Shape("checkpoint", layers=info.blocks.get("user"), model=info.model_config)


def bind(name: str, folder: Path, stage_folder: Path | None = None) -> Bound:
    """A name and the folder it stands for, with every way to open it."""
    kind = kind_of(folder)
    return Bound(name, kind, folder, stage_folder or folder.parent, tuple(scorers(name, kind, folder)))


def scorers(name: str, kind: Kind, folder: Path) -> Iterable[ScorerRef]:
    """How to open a bound folder: one way for a checkpoint, one per variant for an artifact."""
    if kind == "checkpoint":
        return (ScorerRef(name, kind, "torch", folder, CHECKPOINT_OPENER),)
    return tuple(
        ScorerRef(name, kind, "onnxruntime", folder, ARTIFACT_OPENER, {"variant": variant["name"]})
        for variant in _manifest(folder)["variants"]
    )


def check_lists(recipe: "Recipe", prepared: Prepared) -> None:
    """Refuse lists longer than the catalogue, which only the data can tell. Raises InputError."""
    for number, stage in enumerate(recipe.stages):
        wanted = getattr(stage, "top_k", None)
        if isinstance(wanted, int) and wanted > prepared.n_items:
            raise InputError(
                f"asks for lists of {wanted} items, but the catalogue has {prepared.n_items}",
                where=f"stages.{number}.top_k",
                fix=f"choose a top_k of at most {prepared.n_items}",
            )


def check_given(inputs: Iterable[Bound], prepared: Prepared) -> None:
    """Refuse checkpoints and artifacts of another data set. Raises InputError."""
    for bound in inputs:
        if bound.kind == "checkpoint":
            check_catalogue(read_info(bound.path), prepared, str(bound.path))
            continue
        if _manifest(bound.path)["data"]["catalogue_digest"] != prepared.catalogue_digest:
            raise InputError(
                "the artifact belongs to another data set: its catalogue differs",
                where=str(bound.path),
                fix="use the data, filters and item_seed that it was made with",
            )


def _manifest(artifact: Path) -> dict[str, Any]:
    manifest = read_json(artifact / "manifest.json")
    if not isinstance(manifest, dict) or not {"variants", "data"} <= manifest.keys():
        raise InputError("is no manifest of an artifact", where=str(artifact / "manifest.json"))
    return manifest
