"""Looking at what the ledger holds: states, costs, results, where a run comes from."""
