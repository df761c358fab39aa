"""What can go wrong in the library, as errors whose text is one line for an operator."""

from __future__ import annotations


class FileUnreadable(ValueError):
    """A file is not what it should be; the text says which file, what is wrong, and where."""
