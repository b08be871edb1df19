"""`python -m imagemill.components.promote`: run this step alone."""

import sys

from . import STEP

if __name__ == "__main__":
    sys.exit(STEP.main())
