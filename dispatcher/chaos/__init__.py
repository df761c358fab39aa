"""The fault drill `cosma chaos`: real hosts, a seeded schedule of faults, invariants from logs."""
