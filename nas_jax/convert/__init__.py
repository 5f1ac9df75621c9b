"""Names and layouts of other codebases."""
