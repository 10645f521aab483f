"""The process that compiles: reads a job folder, writes a package into it.

    job.json       what to write, and inductor's options
    program.pt2    the exported program
    package.pt2    written last: a library for this machine, with the weights in it

A process of its own, so that a compiler that hangs can be ended, and what it says can be shown.
"""

import json
import sys
from pathlib import Path

import torch


def compile_job(folder: Path) -> None:
    """Compile the program of a job folder."""
    options = json.loads((folder / "job.json").read_text(encoding="utf-8"))
    program = torch.export.load(folder / "program.pt2")
    with torch.no_grad():
        torch._inductor.aoti_compile_and_package(
            program, package_path=str(folder / "package.pt2"), inductor_configs=options
        )


if __name__ == "__main__":
    compile_job(Path(sys.argv[1]))
