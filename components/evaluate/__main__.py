"""`python -m imagemill.components.evaluate`: this step alone."""

import sys

from imagemill.components.evaluate import STEP

if __name__ == "__main__":
    sys.exit(STEP.main())
