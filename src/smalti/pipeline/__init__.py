"""One function for each command: the work behind the command line, for Python."""
