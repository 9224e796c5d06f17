"""How frames travel; the only part of the package that does I/O."""
