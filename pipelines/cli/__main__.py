"""`python -m imagemill.pipelines.cli`: the command `imagemill`."""

import sys

from .main import main

sys.exit(main())
