"""`python -m smalti` is `smalti`."""

from smalti.cli import main

main()
