"""The command line: one verb per file. It parses, calls and shows; nothing is computed here."""
