"""The progress of a run, for people: a line per stage and epoch, and a bar where there is a terminal."""

from collections.abc import Mapping
from typing import Any

from rich.console import Console
from rich.progress import BarColumn, MofNCompleteColumn, Progress, TaskID, TextColumn
from rich.text import Text

from recpress.cli.show import console, reason, seconds

QUIET = {"step", "total", "epoch", "lr", "seconds_left", "seconds", "text", "epochs", "done"}


class Display:
    """Prints what stages report; used as a context manager, called as `display(event, values)`."""

    def __init__(self, out: Console | None = None) -> None:
        self.console = out or console()
        self.bar = Progress(
            TextColumn("  {task.description}"),
            BarColumn(bar_width=24),
            MofNCompleteColumn(),
            TextColumn("{task.fields[numbers]}"),
            console=self.console,
            transient=True,
            disable=not self.console.is_terminal,
        )
        self.task: TaskID | None = None

    def __enter__(self) -> "Display":
        self.bar.start()
        return self

    def __exit__(self, *_: object) -> None:
        self.bar.stop()

    def __call__(self, event: str, values: Mapping[str, Any]) -> None:
        """One event of a stage or of the runner."""
        match event:
            case "stage":
                self._finish()
                place = f"[{values['index'] + 1}/{values['of']}]"
                self._line(f"{place} {values['name']}  {reason(values['why'])}", "bold")
            case "start":
                self._finish()
                self._task(values)
            case "step":
                self._step(values)
            case "epoch":
                self._line(
                    f"  epoch {values.get('epoch')}  {numbers(values)}  {seconds(values.get('seconds'))}"
                )
            case "note":
                plain = "  ".join(f"{k}: {v}" for k, v in values.items() if k != "text")
                self._line(f"  {values.get('text', '')}{plain}")
            case "done":
                self._finish()

    def _step(self, values: Mapping[str, Any]) -> None:
        if self.task is None:
            self._task(values)
        left = values.get("seconds_left")
        shown = numbers(values) + (f"  {seconds(left)} left" if left is not None else "")
        if self.task is not None:
            self.bar.update(
                self.task,
                completed=values.get("step", 0),
                total=values.get("total"),
                description=values.get("text") or "training",
                numbers=shown,
            )

    def _task(self, values: Mapping[str, Any]) -> None:
        total, done = values.get("total"), values.get("done", 0)
        self.task = self.bar.add_task(values.get("text") or "", total=total, completed=done, numbers="")

    def _finish(self) -> None:
        if self.task is not None:
            self.bar.remove_task(self.task)
            self.task = None

    def _line(self, line: str, style: str = "") -> None:
        self.console.print(Text(line, style=style))


def numbers(values: Mapping[str, Any]) -> str:
    """`loss 5.12  ndcg@10 0.0341`: every measured number of an event."""
    shown = {k: v for k, v in values.items() if k not in QUIET and isinstance(v, int | float)}
    return "  ".join(f"{name} {value:.4g}" for name, value in shown.items())
