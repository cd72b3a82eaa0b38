"""The one error that a user is meant to see."""


class UserError(Exception):
    """Something the user can mend.

    The message is one line that names the file or object, the key and the mend. The command line
    prints it after ``error:`` and exits with ``exit_code``; nothing else is printed.
    """

    def __init__(self, message: str, exit_code: int = 2) -> None:
        super().__init__(" ".join(message.split()))
        self.exit_code = exit_code
