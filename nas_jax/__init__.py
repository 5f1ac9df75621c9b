"""Fine-grained vision-language pretraining in JAX (ALBEF, NAS and their family)."""

__version__ = "0.2.0"
