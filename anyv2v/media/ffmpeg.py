"""The only module that imports PyAV, the binding of FFmpeg."""

from importlib.util import find_spec
from types import ModuleType

from anyv2v.errors import InputError


def pyav() -> ModuleType:
    """Imports PyAV and returns its module `av`; raises InputError if it cannot be imported.

    The return type is a plain module, because PyAV's own type hints lack some of its submodules and
    errors.
    """
    try:
        import av
    except ImportError as error:
        if find_spec("av") is None:
            raise InputError(f"videos need PyAV (pip install av): {error}") from error
        # a library that PyAV needs is missing, or does not fit into memory
        raise InputError(f"videos need PyAV, which cannot be loaded: {error}") from error
    return av
