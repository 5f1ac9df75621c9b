"""Bytes in, fixed-shape numpy batches and evaluation sets out; knows nothing of models."""
