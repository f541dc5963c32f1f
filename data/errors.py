"""What can be wrong with one sample. The training data passes such samples over and counts them."""


class BadSample(ValueError):
    """This sample cannot be used; the message names it, in one line."""


class BadImage(BadSample):
    """This image cannot be used."""


class TooLong(BadSample):
    """This sample has more tokens than the limit."""
