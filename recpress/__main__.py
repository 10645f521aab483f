"""`python -m recpress`, which is what `accelerate launch -m recpress` runs."""

import sys

from recpress.cli.app import main

if __name__ == "__main__":
    sys.exit(main())
