"""`python -m capscore.cli` is the command `capscore`."""

from capscore.cli import main

main()
