"""`python -m diffuseg` is `diffuseg`."""

from diffuseg.cli import main

if __name__ == "__main__":
    main()
