"""XManager."""
