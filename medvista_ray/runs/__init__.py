"""The run directory: its paths, its writers and readers, the schema of `summary.json`."""
