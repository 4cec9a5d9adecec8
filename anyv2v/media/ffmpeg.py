"""The only module that imports PyAV, by which FFmpeg is reached."""

from importlib.util import find_spec

from anyv2v.errors import InputError


def pyav():
    """The package av, imported when a file is opened: InputError where there is none."""
    try:
        import av
    except ImportError as error:
        if find_spec("av") is None:
            raise InputError(f"videos need PyAV (pip install av): {error}") from error
        # a library that it needs is missing, or does not fit into memory
        raise InputError(f"videos need PyAV, which cannot be loaded: {error}") from error
    return av
