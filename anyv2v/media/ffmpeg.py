"""The only module that imports PyAV, the binding of FFmpeg."""

from importlib.util import find_spec
from types import ModuleType

from anyv2v.errors import InputError


def pyav() -> ModuleType:
    """The package av, imported when the first file is opened. InputError: it cannot be imported.

    Its own type hints lack submodules and errors that it has, so callers see a plain module.
    """
    try:
        import av
    except ImportError as error:
        if find_spec("av") is None:
            raise InputError(f"videos need PyAV (pip install av): {error}") from error
        # a library that PyAV needs is missing, or does not fit into memory
        raise InputError(f"videos need PyAV, which cannot be loaded: {error}") from error
    return av
