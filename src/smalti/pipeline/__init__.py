"""The library function behind each command, by the command's name and with its options."""
