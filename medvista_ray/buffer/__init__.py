"""Ready groups and their leases: the ledger, its journal, the replay buffer. Knows records; no clock, no task."""
