"""`python -m secagg.cli`."""

from secagg.cli import main

main()
