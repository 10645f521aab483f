"""The part of the export stage that writes a repository."""

from collections.abc import Mapping
from typing import TYPE_CHECKING

from export.artifact import open_artifact
from export.triton.repository import write_repository
from export.triton.verify import verify_repository
from recommender.errors import InputError
from recommender.stage import Bound, Context, Outputs, Shape

if TYPE_CHECKING:
    from export.config import ExportConfig


def run(config: "ExportConfig", inputs: Mapping[str, Bound], context: Context) -> Outputs:
    """Write `context.folder / "artifact"`, a repository, and replay its golden requests.

    Models that nothing on this machine runs are told of, with the reason. Raises InputError for what is no
    artifact or has no such variants, GateError where a graph that was copied does not answer as in the
    artifact.
    """
    given = inputs[config.of]
    for place, wrong in config.problems({config.of: Shape(given.kind)}):
        raise InputError(wrong, where=f"export.{place}")
    artifact = open_artifact(given.path, threads=context.threads)
    folder = context.folder / "artifact"
    context.progress("note", {"text": f"writing a repository of {', '.join(config.triton.variants)}"})
    manifest = write_repository(artifact, folder, config.triton, name=config.as_, command=context.command)
    found = verify_repository(folder)
    for name, why in found.not_replayed.items():
        context.progress("note", {"text": f"{name} was not replayed here: {why}"})
    return Outputs(
        metrics={
            "models": [model["name"] for model in manifest["models"]],
            "replayed": list(found.replayed),
            "not_replayed": dict(found.not_replayed),
            "max_score_difference": found.max_score_difference,
            "size_bytes": sum(entry["size_bytes"] for entry in manifest["files"].values()),
        }
    )
