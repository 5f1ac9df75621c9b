"""Commands that measure; nothing in nas_jax imports them."""
