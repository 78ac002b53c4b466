"""Benches: what is claimed to be fast, against the best peers there are and the floors of the machine."""
