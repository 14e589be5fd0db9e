"""Data sets, transforms and data modules; imports no other storey of patchloom."""

import os

os.environ.setdefault("NO_ALBUMENTATIONS_UPDATE", "1")  # else its import asks the network for its newest version
