"""The cryptographic base: derivation, sealing, keystreams, secret sharing."""
