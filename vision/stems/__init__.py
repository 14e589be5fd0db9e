"""Stems, and steps between stages, that one family needs; what several share is in `stem`."""
