"""The library function behind each command: what it does, without parsing and printing."""
