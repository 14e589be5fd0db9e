"""Blocks beside the common ones of `block`."""
