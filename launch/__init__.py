"""Ways to start `python main.py` on other machines. docs/launch.md."""
