"""Evaluation: scorers, retrieval, caption-or-foil pairs, quads, and the suite that the training
loop calls.
"""
