"""The demo, the comparison of configs, and their pages."""
