"""Tokens on disk: sets of them, and files that are coded near their entropy."""
