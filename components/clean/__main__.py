"""`python -m imagemill.components.clean`: this step alone."""

import sys

from imagemill.components.clean import STEP

if __name__ == "__main__":
    sys.exit(STEP.main())
