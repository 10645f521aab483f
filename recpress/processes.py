"""Several processes under `accelerate launch`: the first one runs the recipe, the others join single stages.

Only the first process writes the run folder. The others wait for orders; a `distributed` stage runs in all of
them, with a private temporary folder that is thrown away.
"""

import os
import tempfile
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass, replace
from datetime import timedelta
from pathlib import Path
from typing import TYPE_CHECKING

from recpress.stages import StageKind

if TYPE_CHECKING:
    from accelerate import PartialState

    from recommender.stage import Bound, Context, StageConfig

PATIENCE = timedelta(days=7)
"""How long the others may wait for an order; long stages (bench) run in the first process alone."""


@dataclass(frozen=True)
class StageOrder:
    """Join this stage."""

    kind: StageKind
    config: "StageConfig"
    inputs: "Mapping[str, Bound]"
    context: "Context"

    @classmethod
    def of(
        cls, kind: StageKind, config: "StageConfig", inputs: "Mapping[str, Bound]", context: "Context"
    ) -> "StageOrder":
        """The order for a stage, without what cannot travel: callbacks, mapped arrays, the run folder."""
        from recommender.data.prepared import Prepared
        from recommender.stage import silent

        data = Prepared(context.prepared.path)
        return cls(kind, config, inputs, replace(context, prepared=data, progress=silent, folder=Path()))


@dataclass(frozen=True)
class StopOrder:
    """The run is over."""


class Crew:
    """The processes of this run; `state` is None for the usual single one."""

    def __init__(self, state: "PartialState | None" = None) -> None:
        self.state = state
        self.together = False  # inside a stage that all processes run

    @contextmanager
    def led(self) -> Iterator[None]:
        """First process: whatever happens between stages, the others are told to stop.

        A failure inside a common stage cannot be told, because they are not listening then: the caller has to
        end the process at once, and the launcher ends the others.
        """
        try:
            yield
        finally:
            if self.state is not None and not self.together:
                _broadcast(StopOrder())
                self.state.destroy_process_group()

    @contextmanager
    def joined(self, order: StageOrder) -> Iterator[None]:
        """First process: all run this stage, and meet at its end."""
        if self.state is None:
            yield
            return
        _broadcast(order)
        self.together = True
        yield
        self.state.wait_for_everyone()
        self.together = False

    def follow(self) -> None:
        """Other processes: carry out orders until the run is over."""
        assert self.state is not None
        while isinstance(order := _broadcast(None), StageOrder):
            with tempfile.TemporaryDirectory(prefix="recpress-") as folder:
                context = replace(order.context, folder=Path(folder))
                order.kind.function()(order.config, order.inputs, context)
            self.state.wait_for_everyone()
        self.state.destroy_process_group()


ALONE = Crew()


def world_size() -> int:
    """Processes of this run, as the launcher says."""
    return int(os.environ.get("WORLD_SIZE", "1"))


def is_first() -> bool:
    """Whether this is the process that runs the recipe."""
    return world_size() == 1 or os.environ.get("RANK", "0") == "0"


def join(device: str) -> Crew:
    """Meet the other processes of an `accelerate launch`, if there are any."""
    if world_size() == 1:
        return ALONE
    from accelerate import PartialState

    return Crew(PartialState(cpu=device == "cpu", timeout=PATIENCE))


def _broadcast(order: StageOrder | StopOrder | None) -> StageOrder | StopOrder | None:
    """Send the first process's order to all; everybody gets it."""
    from accelerate.utils import broadcast_object_list

    box: list[StageOrder | StopOrder | None] = [order]
    broadcast_object_list(box, from_process=0)
    return box[0]
