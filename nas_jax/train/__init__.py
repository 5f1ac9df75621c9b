"""State, optimizer, step and the one loop."""
