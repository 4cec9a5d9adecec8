"""Opens video files, chooses one of their streams, and decodes its frames."""

from __future__ import annotations

import errno
import os
from collections.abc import Iterator
from contextlib import ExitStack, contextmanager, suppress
from dataclasses import dataclass
from pathlib import Path

from anyv2v.errors import InputError
from anyv2v.media.ffmpeg import pyav
from anyv2v.media.frame import display_size, without_side_data
from anyv2v.media.picture import MOST_PIXELS
from anyv2v.media.sequence import is_sequence, moves
from anyv2v.media.sequence_stream import read_sequence
from anyv2v.media.timing import RATES

# FFmpeg's names of the formats that are one file and hold pictures in motion. a format that is
# not here is refused as soon as it is recognized, before its reader opens anything: playlists
# (hls, dash, concat, sdp, image2's numbered files) name other files, and some of them never end
FILMS = """
    3dostr 4xm anm apng apv asf asf_o av1 avi avs avs2 avs3 bethsoftvid bfi bink bmv c93
    cavsvideo cdg cdxl cine dcstr derf dfa dhav dirac dnxhd dsicin dv dxa ea ea_cdata evc
    film_cpk filmstrip flic flv gdv gif gxf h261 h263 h264 hevc hnm hxvs idcin iff ifv ingenient
    ipmovie ipu iss iv8 ivf ivr jpegxl_anim jv kux lmlm4 luodat lvf lxf m4v matroska webm mgsts
    mjpeg mjpeg_2000 mlv mm mods moflex mov mp4 3gp 3g2 mj2 mpeg mpegts mpegtsraw mpegvideo
    mpjpeg mtv mv mvi mxf mxg nc nsv nut nuv obu ogg paf pdv pmp psxstr pva r3d rl2 rm roq rpl
    ser sga siff simbiosis_imx smjpeg smk smush swf thp tiertexseq tmv ty usm vc1 vc1test
    vividas vivo vmd vvc wc3movie wsvqa wtv xmv yop yuv4mpegpipe
""".split()
# and of those that are one picture
PICTURES = """
    bmp_pipe cri_pipe dds_pipe dpx_pipe exr_pipe fits gif_pipe hdr_pipe ico j2k_pipe jpeg_pipe
    jpegls_pipe jpegxl_pipe jpegxs_pipe pam_pipe pbm_pipe pcx_pipe pfm_pipe pgm_pipe pgmyuv_pipe
    pgx_pipe phm_pipe png_pipe ppm_pipe psd_pipe qdraw_pipe qoi_pipe sgi_pipe sunrast_pipe
    tiff_pipe vbn_pipe webp_pipe xbm_pipe xpm_pipe xwd_pipe
""".split()
OPTIONS = {"format_whitelist": ",".join(FILMS + PICTURES), "protocol_whitelist": "file"}

# how texts that name other files begin
PLAYLISTS = {
    b"#EXTM3U": "an HLS playlist",
    b"ffconcat": "a list of files to concatenate",
    b"v=0": "an SDP description",
    b"<?xml": "an XML text",
    b"<MPD": "a DASH manifest",
}

# brands of ISO base media files that are a picture (ISO/IEC 23008-12, AVIF)
STILL_BRANDS = (b"avif", b"heic", b"heix", b"mif1")

# without these the system has no memory or no thread to give
NO_MEMORY = (errno.ENOMEM, errno.EAGAIN)

# what ffmpeg adds to the pixels of a stream that is marked as the default (ffmpeg_mux_init.c)
DEFAULT_IS_WORTH = 5_000_000

# a table of durations that makes a film longer than its header says by more is damaged
STRETCHED = 1.1


@dataclass(frozen=True)
class VideoFacts:
    """The size in pixels at which a video is shown, and whether it has audio."""

    width: int
    """Width after rotation and with square pixels."""
    height: int
    """Height after rotation and with square pixels."""
    audio: bool
    """Whether the file has an audio stream."""


def names(container) -> set[str]:
    """Returns FFmpeg's names for the format of an open PyAV container, such as {"mov", "mp4"}."""
    return set(container.format.name.split(","))


def is_video(path: str | os.PathLike) -> bool:
    """Whether a path is a video and not a still picture, judged by content and not by name.

    Animated GIF, WebP, PNG and AVIF, folders of pictures, and numbered pictures (%05d.png) count as
    videos. Raises InputError for a file that cannot be opened or is neither.
    """
    if is_sequence(path):
        return moves(path)
    path = Path(path)
    with open_video(path) as (container, _):
        if names(container) & set(PICTURES):
            return False
    return _beginning(path)[4:12] not in [b"ftyp" + brand for brand in STILL_BRANDS]


def facts(path: str | os.PathLike) -> VideoFacts:
    """Returns the size of a video and whether it has audio, from its header and first frame.

    Takes every path that `read_video` takes, and raises InputError if the file is not readable as a
    video or has no frame that can be decoded.
    """
    if is_sequence(path):
        height, width, _ = read_sequence(path, None, 1, None, 0.0, "crop").frames[0].shape
        return VideoFacts(width, height, audio=False)
    path = Path(path)
    with open_video(path) as (container, stream):
        frame = next(decode(container, stream), None)
        if frame is None:
            raise InputError(f"{path} has no frame that can be decoded")
        width, height = display_size(frame, stream.sample_aspect_ratio)
        return VideoFacts(width, height, bool(container.streams.audio))


@contextmanager
def open_video(path: Path) -> Iterator[tuple]:
    """Opens a video file as a context manager, which yields PyAV's container and a video stream.

    Of several video streams, the one that the program ffmpeg would select is chosen: the one with
    the most pixels, where being marked as the default counts as 5,000,000 pixels. Cover pictures
    and streams without data are passed over. Raises InputError, which names the path, if the file
    is not a readable video or if FFmpeg fails within the block.
    """
    av = pyav()
    try:
        with ExitStack() as stack:
            container = stack.enter_context(_open(path, OPTIONS))
            stream = _choose(path, container)
            if names(container) & {"mov"} and _is_stretched(stream):
                # its edit list would leave out the frames that seem to lie behind the end
                options = OPTIONS | {"advanced_editlist": "0"}
                container = stack.enter_context(_open(path, options))
                stream = _choose(path, container)
            yield container, stream
    except FileNotFoundError:
        raise InputError(f"{path}: no such file") from None
    except (OSError, av.FFmpegError, MemoryError) as error:
        code = getattr(error, "errno", None)
        if code in NO_MEMORY or isinstance(error, MemoryError):
            raise InputError(
                f"{path} could not be read: this process may have no more memory or threads "
                "(ulimit -v, ulimit -u)"
            ) from error
        reason = getattr(error, "strerror", None) or error
        raise InputError(f"{path} cannot be read as a video: {reason}") from error


def own_rate(stream) -> float:
    """Returns the average frame rate of a PyAV video stream, in frames per second.

    It is computed from the header if the frames' durations are damaged, so that they add up to more
    than 1.1 times the header's duration; 25 if the file states no rate.
    """
    if _is_stretched(stream):
        return _rate_of_header(stream)
    return float(stream.average_rate or stream.guessed_rate or 25)


def decode(container, stream) -> Iterator:
    """Yields the intact frames of a stream, as PyAV's, in the order of presentation.

    Decoding errors before the first frame are skipped; after it, the first error ends the frames.
    Frames that the decoder marks as corrupt are left out.
    """
    frames = _decoded(container, stream)
    if stream.codec_context.name in ("png", "apng"):
        # their profile has a name, and PyAV frees it twice, which ends the process
        profile = pyav().sidedata.sidedata.Type.ICC_PROFILE.value
        return (without_side_data(frame, [profile]) for frame in frames)
    return frames


def _decoded(container, stream) -> Iterator:
    av = pyav()
    packets = container.demux(stream)
    begun = False
    while True:
        try:
            packet = next(packets, None)
            decoded = [] if packet is None else packet.decode()
        except av.FFmpegError as error:
            if error.errno in NO_MEMORY:
                raise
            # a stream cut out of a longer one may begin with packets that need earlier ones
            if begun:
                break
            continue
        except IndexError:
            # PyAV's way to end a file in which another stream turned up on the way
            break
        if packet is None:
            break
        for frame in decoded:
            if not frame.is_corrupt:
                begun = True
                yield frame
    # after damage the decoder still holds frames from before it; otherwise there are none left
    with suppress(av.FFmpegError):
        yield from (frame for frame in stream.codec_context.decode(None) if not frame.is_corrupt)


@contextmanager
def _open(path: Path, options: dict[str, str]):
    """Opens a container, whatever streams it has."""
    av = pyav()
    if path.is_dir():
        raise InputError(f"{path} is a folder, not a video")
    status = path.stat()
    if not path.is_file():
        raise InputError(f"{path} is no regular file, so no video")
    if status.st_size == 0:
        raise InputError(f"{path} is empty")
    with ExitStack() as stack:
        try:
            # the prefix keeps a name with a colon from being taken for a protocol
            container = _read_header(f"file:{path}", options)
        except av.error.ArgumentError:
            # refused, perhaps because of the name alone: with a % it is a pattern of numbered
            # files to FFmpeg, and with a picture's suffix it counts for more than some contents
            file = stack.enter_context(open(os.open(path, os.O_RDONLY), "rb"))
            try:
                container = _read_header(file, options)
            except (av.error.ArgumentError, av.error.InvalidDataError) as error:
                raise _not_read(path, "its content is in no video format that is read") from error
        except av.error.InvalidDataError as error:
            raise _not_read(path, error.strerror) from error
        yield stack.enter_context(container)


def _read_header(file, options: dict[str, str]):
    # titles and the like may be in any encoding
    return pyav().open(file, container_options=options, metadata_errors="replace")


def _choose(path: Path, container):
    cover = pyav().stream.Disposition.attached_pic
    streams = [s for s in container.streams.video if not s.disposition & cover]
    streams = [s for s in streams if s.codec_context is not None]
    if not streams:
        raise InputError(f"{path} has no video stream that can be decoded")
    # the first of the best, as ffmpeg does
    streams.sort(key=_worth, reverse=True)
    stream = streams[0] if len(streams) == 1 else _first_with_data(path, streams)
    # with frame threads the decoder hides errors and loses whole frames before the damage
    stream.thread_type = "SLICE"
    # a few bytes may claim any size, at the beginning or later on
    codec = stream.codec_context
    if codec.width * codec.height > MOST_PIXELS:
        raise InputError(f"{path} has frames of {codec.width}x{codec.height}, too large")
    codec.options = {"max_pixels": str(MOST_PIXELS)}
    return stream


def _first_with_data(path: Path, streams: list):
    """Of several streams of a file, or the first if all are empty."""
    found: set[int] = set()
    # read by another container, so that the stream's own stays at the beginning
    with _open(path, OPTIONS) as container, suppress(pyav().FFmpegError, IndexError):
        for packet in container.demux([container.streams[s.index] for s in streams]):
            if packet.size:
                found.add(packet.stream.index)
            if streams[0].index in found:
                break
    return next((s for s in streams if s.index in found), streams[0])


def _worth(stream) -> int:
    default = bool(stream.disposition & pyav().stream.Disposition.default)
    return stream.codec_context.width * stream.codec_context.height + DEFAULT_IS_WORTH * default


def _is_stretched(stream) -> bool:
    """Whether its frames last longer, by the durations of each, than the header says."""
    return 0 < STRETCHED * float(stream.average_rate or 0) < _rate_of_header(stream)


def _rate_of_header(stream) -> float:
    """Frames per second; 0 if it does not tell their number, or no length that can be."""
    length = stream.duration and float(stream.duration * stream.time_base)
    rate = stream.frames / length if length and length > 0 else 0.0
    return rate if rate <= RATES[1] else 0.0


def _not_read(path: Path, reason: str) -> InputError:
    text = _beginning(path).lstrip(b"\xef\xbb\xbf \t\r\n")
    if text[4:8] == b"ftyp":
        reason = "it is an MP4 or MOV that was cut off, or is not finished: its index is missing"
    for begins, what in PLAYLISTS.items():
        if text.startswith(begins):
            reason = f"it is {what}; give the video file itself"
    return InputError(f"{path} cannot be read as a video: {reason}")


def _beginning(path: Path) -> bytes:
    with open(path, "rb") as file:
        return file.read(64)
