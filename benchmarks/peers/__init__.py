"""Other projects' code, loaded from a checkout for a run and never kept here."""
