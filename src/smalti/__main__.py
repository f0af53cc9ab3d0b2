"""`python -m smalti` is `smalti`."""

from smalti.cli.main import main

main()
