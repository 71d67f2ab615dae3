"""The characters that texts may have, for modules that import neither torch nor Gymnasium."""

PRINTABLE = "".join(map(chr, range(32, 127))) + "\n"
