"""`python -m smallgpt`, which torchrun needs."""

from smallgpt.interfaces.cli import main

if __name__ == "__main__":
    main()
