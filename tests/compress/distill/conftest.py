"""A pruned student that is made once for all tests."""

import pytest

from compress.prune_depth import PruneDepthConfig
from compress.prune_depth import run as prune
from recommender.data.prepared import Prepared
from recommender.stage import Bound

from ..conftest import bound, context_in


@pytest.fixture(scope="session")
def pruned(tmp_path_factory: pytest.TempPathFactory, teacher: Bound, prepared: Prepared) -> Bound:
    """The first two of the teacher's four blocks."""
    folder = tmp_path_factory.mktemp("runs") / "pruned"
    config = PruneDepthConfig.model_validate({"stage": "prune-depth", "of": "t", "as": "pruned", "keep": 2})
    prune(config, {"t": teacher}, context_in(folder, prepared))
    return bound("pruned", folder)
