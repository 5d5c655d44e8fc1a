"""`python -m egobench`, where the package runs from its source folder."""

from egobench.cli import main

main()
