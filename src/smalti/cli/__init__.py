"""The command line: each verb parses its options, calls one function of the library and prints. Nothing heavy is
imported before a verb needs it."""
