"""What a folder that a name is bound to holds, and how it is opened."""

import importlib.util
from collections.abc import Iterable
from pathlib import Path
from typing import TYPE_CHECKING, Any

from pydantic import ValidationError

from export.tensorrt import DRIVER
from recommender.checkpoint import check_histories, check_trained_on, load_checkpoint, read_info
from recommender.data.prepared import Prepared
from recommender.errors import InputError
from recommender.files import read_json
from recommender.profile import DepthProfile
from recommender.scoring import ScorerRef
from recommender.sparsity import noted
from recommender.stage import Bound, Kind, Measures, Shape

if TYPE_CHECKING:
    from recpress.recipe import Recipe

CHECKPOINT_OPENER = "recommender.checkpoint:open_scorer"
MARKS: dict[str, Kind] = {
    "manifest.json": "artifact",
    "repository.json": "repository",
    "config.json": "checkpoint",
    "profile.json": "profile",
    "report.json": "report",
}
"""The file that tells what a folder holds."""

ARTIFACT_OPENER = "export.artifact:open_artifact"  # its errors are ours, the bare runtime's are not


def kind_of(folder: Path) -> Kind:
    """What a folder holds. Raises InputError when it is nothing that a stage makes."""
    if not folder.is_dir():
        raise InputError("no such checkpoint or artifact folder", where=str(folder))
    for mark, kind in MARKS.items():
        if (folder / mark).is_file():
            return kind
    raise InputError(
        f"is neither {' nor '.join(f'{a_kind(kind)} ({mark})' for mark, kind in MARKS.items())}",
        where=str(folder),
        fix="give the `checkpoint` folder of a stage, or a folder below `artifacts`",
    )


def a_kind(kind: Kind) -> str:
    """`a checkpoint`, `an artifact`: for messages."""
    return f"{'an' if kind[0] in 'aeiou' else 'a'} {kind}"


def shape_of(folder: Path) -> Shape:
    """What the recipe check may know of an existing folder.

    Raises InputError when it is broken, or a checkpoint has not the zeros that it notes.
    """
    kind = kind_of(folder)
    if kind == "report":
        return Shape("report", measures=_measures(folder))
    if kind == "profile":
        _profile(folder)
    if kind != "checkpoint":
        return Shape(kind)
    info = read_info(folder)
    if (note := noted(info.about, str(folder / "config.json"))) is not None:
        from recommender.models.zeros import check_zeros

        check_zeros(load_checkpoint(folder), note, str(folder))  # the stages plan with what is noted
    return Shape(
        "checkpoint",
        layers=info.blocks.get("user"),
        model=info.model_config,
        narrowed="width" in info.about,
        quantized=info.quantized,
        sparsity=None if note is None else note.planned,
    )


def bind(name: str, folder: Path, stage_folder: Path | None = None) -> Bound:
    """A name and the folder it stands for, with every way to open it."""
    kind = kind_of(folder)
    return Bound(name, kind, folder, stage_folder or folder.parent, tuple(scorers(name, kind, folder)))


def scorers(name: str, kind: Kind, folder: Path) -> Iterable[ScorerRef]:
    """How to open a bound folder: one way for a checkpoint, one per variant for an artifact (its default one
    first; those for other runtimes left out, unless an engine of ours runs them here), else none.
    """
    if kind not in ("checkpoint", "artifact"):
        return ()
    if kind == "checkpoint":
        return (ScorerRef(name, kind, "torch", folder, CHECKPOINT_OPENER),)
    manifest = _manifest(folder)
    entries = [each for each in manifest["variants"] if each.get("on_cpu", True) or "device" in each]
    if not can_run_engines():
        entries = [each for each in entries if each.get("format") != "tensorrt"]
    entries.sort(key=lambda each: each["name"] != manifest.get("default_variant"))
    return tuple(
        ScorerRef(
            name,
            kind,
            str(each.get("runtime", "onnxruntime")),
            folder,
            ARTIFACT_OPENER,
            {"variant": str(each["name"])},
            each.get("device"),
        )
        for each in entries
    )


def can_run_engines() -> bool:
    """Whether this machine has NVIDIA's driver and TensorRT; neither is loaded to find out."""
    return DRIVER.exists() and importlib.util.find_spec("tensorrt") is not None


def check_lists(recipe: "Recipe", prepared: Prepared) -> None:
    """Refuse lists longer than the catalogue, which only the data can tell. Raises InputError."""
    for number, stage in enumerate(recipe.stages):
        wanted = getattr(stage, "top_k", None)
        if getattr(stage, "format", None) == "triton":
            continue  # its lists are those of its artifact
        if isinstance(wanted, int) and wanted > prepared.n_items:
            raise InputError(
                f"asks for lists of {wanted} items, but the catalogue has {prepared.n_items}",
                where=f"stages.{number}.top_k",
                fix=f"choose a top_k of at most {prepared.n_items}",
            )


def check_given(recipe: "Recipe", prepared: Prepared) -> None:
    """Refuse checkpoints, artifacts and profiles of another data set, but where every stage that reads one
    takes it from another. Raises InputError.
    """
    foreign = {name for stage in recipe.stages for name in stage.foreign}
    foreign -= {name for stage in recipe.stages for name in stage.consumes if name not in stage.foreign}
    given = recipe.given().items()
    for bound in (bind(name, path) for (name, _), path in given if name not in foreign):
        split, where = recipe.evaluation.split, str(bound.path)
        if bound.kind == "checkpoint":
            check_trained_on(read_info(bound.path), prepared, split, where)
            continue
        if _catalogue_of(bound) not in (None, prepared.catalogue_digest):
            raise InputError(
                f"the {bound.kind} belongs to another data set: its catalogue differs",
                where=where,
                fix="use the data, filters and item_seed that it was made with",
            )
        if bound.kind == "artifact":
            noted = _manifest(bound.path)["data"]
            digest, of_split = noted.get("digest"), noted.get("split")
            check_histories("artifact", digest, of_split, prepared=prepared, split=split, where=where)


def _catalogue_of(bound: Bound) -> str | None:
    """Digest of the catalogue that an artifact or a profile was made for; None where it is not told."""
    match bound.kind:
        case "artifact":
            return str(_manifest(bound.path)["data"]["catalogue_digest"])
        case "profile":
            return _profile(bound.path).catalogue_digest
    return None


def _measures(folder: Path) -> Measures:
    """What a report holds. Raises InputError when it is broken or of another schema."""
    from bench.report.files import read

    report = read(folder)
    cells = [cell for each in report.comparisons for cell in each.speedup]
    names = [each.name.partition(":")[0] for each in report.candidates]  # without the variants of artifacts
    references = [each.against.partition(":")[0] for each in report.comparisons]
    return Measures(
        compare=tuple(dict.fromkeys(names)),
        against=next(iter(references or names), ""),
        loads=tuple(dict.fromkeys(cell.load for cell in cells)),
        batch_sizes=tuple(dict.fromkeys(cell.batch for cell in cells)),
        aa=any(cell.aa_floor is not None for cell in cells),
        ks=tuple(report.evaluation.ks),
    )


def _profile(folder: Path) -> DepthProfile:
    """Raises InputError when the profile is broken."""
    file = folder / "profile.json"
    try:
        return DepthProfile.model_validate(read_json(file))
    except ValidationError as error:
        first = error.errors()[0]
        place = ".".join(map(str, first["loc"]))
        raise InputError(
            f"is no depth profile: {place}: {first['msg']}",
            where=str(file),
            fix="give the `profile` folder of a depth-profile stage, or run that stage again",
        ) from error


def _manifest(artifact: Path) -> dict[str, Any]:
    manifest = read_json(artifact / "manifest.json")
    if not isinstance(manifest, dict) or not {"variants", "data"} <= manifest.keys():
        raise InputError("is no manifest of an artifact", where=str(artifact / "manifest.json"))
    return manifest
