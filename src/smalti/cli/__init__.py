"""The command line: parse, then call one library function each. Nothing heavy is imported before a verb needs it."""

from smalti.cli.app import app, main

__all__ = ["app", "main"]
