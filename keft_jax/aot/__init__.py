"""A training step compiled ahead of time for TPUs that are not there: `keft compile`."""
