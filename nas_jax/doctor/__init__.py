"""`python -m nas_jax doctor`: what of this machine can be used, what is missing, and what to run.

Imports nothing but the standard library, so that it works where jax or another library does not.
"""
