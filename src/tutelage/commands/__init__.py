"""What the verbs of the command line do, one a file; `tutelage.cli` parses and calls them."""
