"""Data sets, transforms and data modules; imports no other storey of patchloom."""
