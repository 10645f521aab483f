"""The stage `bench`: quality and speed of everything that is named, one report."""

from collections.abc import Mapping

from bench.config import BenchConfig
from recommender.stage import Bound, Context, Outputs


def run(config: BenchConfig, inputs: Mapping[str, Bound], context: Context) -> Outputs:
    """Measure everything that is named; write the report and the cards of the artifacts."""
    from bench.session import measure_all

    return measure_all(config, inputs, context)
