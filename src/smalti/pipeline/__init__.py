"""The library function behind each command of `smalti`: they return records, raise SmaltiError, and print nothing."""
