"""The program of a child of the bench: `python -m bench.worker PARENT CORES`, one candidate, orders on stdin.

Its process is pinned before anything is imported that starts threads. Answers go to what was the standard
output; whatever a library prints goes to standard error.
"""

import os
import sys

from bench import process


def main(parent: int, cores: list[int]) -> None:
    """Serve until standard input ends."""
    process.die_with(parent)
    process.pin(cores)
    orders, answers = os.fdopen(os.dup(0), "rb"), os.fdopen(os.dup(1), "wb")
    os.dup2(2, 1)
    with open(os.devnull, "rb") as nothing:
        os.dup2(nothing.fileno(), 0)
    from bench.answers import serve

    serve(orders, answers)


if __name__ == "__main__":
    main(int(sys.argv[1]), [int(core) for core in sys.argv[2].split(",") if core])
