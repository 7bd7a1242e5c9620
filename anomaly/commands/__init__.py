"""The command line: one file a verb, with its options, printing, files and exit codes."""
