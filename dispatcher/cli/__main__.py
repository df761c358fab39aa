"""`python -m dispatcher.cli` is `cosma`."""

from dispatcher.cli import main

main()
