"""Short distillations, shared by the tests of the stage."""

from collections.abc import Mapping
from typing import Any

from compress.distill.stage import DistillConfig, run
from recommender.stage import Bound, Context

from ..conftest import SETTINGS, bound

SHORT = SETTINGS | {"epochs": 4, "learning_rate": 3e-3}


def config_for(**values: Any) -> DistillConfig:
    entries = {"stage": "distill", "of": "pruned", "teacher": "teacher", "as": "student", "blocks": 2}
    return DistillConfig(**(SHORT | entries | values))


def distill(
    student: Bound, teacher: Bound, context: Context, **values: Any
) -> tuple[Bound, Mapping[str, Any]]:
    outputs = run(config_for(**values), {"pruned": student, "teacher": teacher}, context)
    return bound("student", context.folder), outputs.metrics
