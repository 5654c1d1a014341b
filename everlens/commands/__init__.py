"""The commands, one a file: `add` says its words to the parser, `run` does it."""
