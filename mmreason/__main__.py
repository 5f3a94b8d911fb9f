"""`python -m mmreason` is the same as the `mmreason` command."""

import sys

from mmreason.cli import main

if __name__ == "__main__":
    sys.exit(main())
