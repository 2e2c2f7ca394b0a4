"""The log of a run."""

import logging


class LogFile(logging.FileHandler):
    """Raises what Python's own would print as a traceback at each line, as on a full disk."""

    def handleError(self, record: logging.LogRecord) -> None:  # noqa: N802  # the name is theirs
        raise  # it is called where the error was caught
