"""`python -m imagemill.components.evaluate`: run this step alone."""

import sys

from . import STEP

if __name__ == "__main__":
    sys.exit(STEP.main())
