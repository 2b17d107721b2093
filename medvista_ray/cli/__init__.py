"""The command line. Thin: load what was asked for, call a recipe or a part, say what to do next."""
