"""Secure-aggregation protocols, one package each."""
