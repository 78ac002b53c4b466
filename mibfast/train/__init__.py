"""Training and evaluation: Lightning modules, probes, retrieval, run folders."""
