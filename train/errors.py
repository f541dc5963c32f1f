"""Why a run ends before its last step, told in one line."""


class Stopped(Exception):
    """The run cannot go on; the message says why, what is kept, and what to do."""
