"""`python -m capscore` is the command `capscore`; torchrun starts several of it."""

from .cli import main

main()
