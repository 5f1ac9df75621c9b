"""Pictures that show what a method does."""
