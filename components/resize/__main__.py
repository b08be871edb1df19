"""`python -m imagemill.components.resize`: this step alone."""

import sys

from imagemill.components.resize import STEP

if __name__ == "__main__":
    sys.exit(STEP.main())
