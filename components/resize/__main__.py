"""Command line of the resize step: `python -m imagemill.components.resize`."""

import sys

from ..compat import hide_pandas
from . import STEP

if __name__ == "__main__":
    hide_pandas()
    sys.exit(STEP.main())
