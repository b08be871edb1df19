"""Command line of the resize step: `python -m imagemill.components.resize`."""

import sys

from . import STEP

if __name__ == "__main__":
    sys.exit(STEP.main())
