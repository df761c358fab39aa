"""Of files that cross a link in blocks."""

BLOCK_BYTES = 1 << 20  # only the last block of a file may be shorter
