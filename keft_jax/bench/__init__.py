"""How fast a config trains, and what its knowledge costs: made-up or real input, CPU seconds,
useful FLOPs, and the host's side apart."""
