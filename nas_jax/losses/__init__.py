"""Objectives: pure functions on arrays, one a file; no Flax, no config."""
