"""The only module that imports PyAV, by which FFmpeg is reached."""

from anyv2v.errors import InputError


def pyav():
    """The package av, imported when a file is opened: InputError where there is none."""
    try:
        import av
    except ImportError as error:
        raise InputError(f"videos need PyAV (pip install av): {error}") from error
    return av
