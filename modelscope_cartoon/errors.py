"""Every failure that a user can meet, as one family.

    CartoonError                 code, exit_code 1
    |-- InvalidRequest           the request can't be drawn as given; exit_code 2
    |-- UnknownOption            a keyword or a name that nobody knows; exit_code 2
    |-- BadPictures              the pictures to train on can't be used; exit_code 2
    |-- ModelError               a model folder that is missing, damaged or not what it says
    |   |-- BadConfiguration     a JSON file of it can't be used
    |   |-- DamagedWeights       a weight file is broken, incomplete or unsafe
    |-- NonFiniteError           the numbers left the range of floats, even in fp32
    |-- OutOfMemory              not enough memory, even in the lowest memory mode
    |-- PublishError             a folder that can't go to the hub, or a hub that doesn't take it
    |-- OutputError              a picture could not be written; what was there is untouched

The message is one sentence or two: what was given, what is accepted, what to do. Each class takes that one string
alone, because the host raises `type(e)(f'{cls}: {e}')` again. `code` is stable; messages may change.
"""


class CartoonError(Exception):
    code = 'cartoon_error'
    exit_code = 1


class InvalidRequest(CartoonError, ValueError):
    code = 'invalid_request'
    exit_code = 2


class InvalidPrompt(InvalidRequest):
    code = 'invalid_prompt'


class UnknownOption(InvalidRequest):
    code = 'unknown_option'


class BadPictures(CartoonError, ValueError):
    code = 'bad_pictures'
    exit_code = 2


class ModelError(CartoonError):
    code = 'bad_model'


class BadConfiguration(ModelError):
    code = 'bad_configuration'


class DamagedWeights(ModelError):
    code = 'damaged_weights'


class NonFiniteError(CartoonError):
    code = 'non_finite'


class OutOfMemory(CartoonError):
    code = 'out_of_memory'


class PublishError(CartoonError):
    code = 'cannot_publish'


class OutputError(CartoonError, OSError):
    code = 'cannot_write'


def words_of(error: Exception) -> str:
    """One line: ours are sentences already, of others the kind is said too."""
    told = str(error) if isinstance(error, CartoonError) else f'{type(error).__name__}: {error}'
    return ' '.join(told.split())


class Interrupted(KeyboardInterrupt):
    """Ctrl-C. `outputs` holds what was finished before: a list of the dicts that the pipeline returns."""

    def __init__(self, outputs: list | None = None):
        super().__init__('interrupted')
        self.outputs = outputs or []


class Stopped(KeyboardInterrupt):
    """Ctrl-C during training: the step was finished and saved; the message says how to go on."""
