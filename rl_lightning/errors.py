"""The one exception that means "the user's configuration is wrong"."""


class ConfigurationError(ValueError):
    """A wrong argument or an impossible combination; its message is the whole explanation.

    The command line prints the message alone and exits with status 2; anything else it lets through
    as a traceback, since it would be a defect of the library.
    """
