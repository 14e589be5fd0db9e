"""`python -m patchloom` is `patchloom`."""

import sys

from .train.cli import main

sys.exit(main())
