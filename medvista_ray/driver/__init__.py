"""The asyncio loops of a run: dispatch, train, publish, watch, record. Knows the protocols of `types/`, never data."""
