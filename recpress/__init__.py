"""recpress: make LLM-based sequential recommenders small enough to serve, and prove what it cost.

    import recpress
    result = recpress.run_recipe("quickstart", out="runs/quickstart", sets=["stages.teacher.epochs=3"])
    artifact = recpress.open_artifact("runs/quickstart/artifacts/student-onnx")
    artifact.recommend(["i00003", "i00017"], k=10)

What is named here is the public interface; everything else may change. Names are imported when they are used.
"""

import importlib
import importlib.metadata
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from export.artifact import open_artifact
    from recommender.checkpoint import load_checkpoint
    from recommender.data.prepare import prepare
    from recpress.facade import run_recipe
    from recpress.recipe import load_recipe

    __version__: str

__all__ = ["load_checkpoint", "load_recipe", "open_artifact", "prepare", "run_recipe"]

_HOME = {
    "load_checkpoint": "recommender.checkpoint",
    "load_recipe": "recpress.recipe",
    "open_artifact": "export.artifact",
    "prepare": "recommender.data.prepare",
    "run_recipe": "recpress.facade",
}


def __getattr__(name: str) -> Any:
    if name == "__version__":
        try:
            return importlib.metadata.version("recpress")
        except importlib.metadata.PackageNotFoundError:  # a checkout that is not installed
            return "unknown"
    if name in _HOME:
        return getattr(importlib.import_module(_HOME[name]), name)
    raise AttributeError(f"module 'recpress' has no attribute {name!r}")
