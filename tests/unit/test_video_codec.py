"""The codec with a causal video autoencoder: pieces, causality, memory, and what it refuses."""

import pytest
import torch

from anyv2v.config import section
from anyv2v.errors import InputError
from anyv2v.media.image import pixels_of, to_frames
from anyv2v.runtime.accounting import count, fake_mode
from anyv2v.vae.causal import CausalConv3d, fold, unfold
from anyv2v.vae.video_autoencoder import VideoAutoencoder, VideoAutoencoderConfig
from anyv2v.vae.video_codec import VideoCodec
from tests.draw import normal, redraw
from tests.oracles.golden import relative_error

SECTION = {
    "channels": 3,
    "patch": 2,
    "latent_channels": 12,
    "encoder_channels": [8, 16, 32, 32],
    "decoder_channels": [8, 16, 32, 32],
    "layers": 1,
    "temporal": [False, True, True],
    "residual": True,
    "mean": [0.1 * i for i in range(12)],
    "std": [0.5 + 0.1 * i for i in range(12)],
}


def config(**changes):
    return section({"vae": SECTION | changes}, "vae", VideoAutoencoderConfig)


@pytest.fixture(scope="module")
def codec():
    return VideoCodec(redraw(VideoAutoencoder(config()), seed=1), latents_per_token=2)


def clip(frames, height=32, width=16):
    generator = torch.Generator().manual_seed(frames)
    return torch.randint(256, (frames, height, width, 3), generator=generator, dtype=torch.uint8)


def encoded(codec, frames, **options):
    with torch.no_grad():
        return torch.cat(list(codec.encode(frames, **options)), 2)


def decoded(codec, latents, **options):
    with torch.no_grad():
        return torch.cat(list(codec.decode(latents, **options)))


# numbers of frames and sizes


def test_numbers_and_shapes(codec):
    assert (codec.channels, codec.spatial_compression, codec.size_multiple) == (12, 16, 32)
    assert codec.encoder is codec.vae.encoder
    for frames, latent_frames in ((1, 1), (5, 2), (49, 13), (121, 31)):
        assert codec.check_frames(frames) == codec.frames_of(latent_frames) == frames
        assert codec.shape(frames, 704, 1280) == (12, latent_frames, 44, 80)


@pytest.mark.parametrize(
    "frames, nearest",
    [(2, "1 and 5"), (4, "1 and 5"), (8, "5 and 9"), (120, "117 and 121"), (0, "1")],
)
def test_clips_of_other_lengths_are_refused(codec, frames, nearest):
    message = f"frames: {frames} is not 1 more than a multiple of 4; the nearest: {nearest}$"
    with pytest.raises(InputError, match=message):
        codec.check_frames(frames)
    if frames:
        with pytest.raises(InputError, match=message):
            next(codec.encode(clip(frames)))


def test_latents_and_pixels_come_in_pieces_of_one_latent_frame(codec):
    frames = clip(9)
    with torch.no_grad():
        pieces = list(codec.encode(frames, at_once=8))
        pixels = list(codec.decode(torch.cat(pieces, 2), at_once=8))
    assert [tuple(piece.shape) for piece in pieces] == [(1, 12, 1, 2, 1)] * 3
    assert [tuple(piece.shape) for piece in pixels] == [(n, 3, 32, 16) for n in (1, 4, 4)]


def test_half_precision(codec):
    frames, half = clip(5), VideoCodec(VideoAutoencoder(config()).bfloat16(), 2)
    half.vae.load_state_dict(codec.vae.state_dict())
    latents, pixels = encoded(half, frames), decoded(half, normal(1, 12, 2, 2, 1))
    assert (latents.dtype, pixels.dtype) == (torch.float32, torch.float32)
    # frames are the pixels, rounded once
    levels = (pixels.double() + 1).clamp(0, 2) * 127.5
    assert (torch.from_numpy(to_frames(pixels)).permute(0, 3, 1, 2) - levels).abs().max() <= 0.501
    # 2^-9 for one rounding; there are some dozens one after the other
    assert relative_error(latents, encoded(codec, frames)) < 0.03
    assert relative_error(pixels, decoded(codec, normal(1, 12, 2, 2, 1))) < 0.03


# streaming


@pytest.mark.parametrize("pieces", [[17], [1, 4, 4, 8], [5, 12], [13, 4]])
@torch.no_grad()
def test_pixels_may_be_given_in_any_pieces(codec, pieces):
    pixels, past = pixels_of(clip(17)).transpose(0, 1)[None], {}
    parts = [codec.vae.posterior(piece, past)[0] for piece in pixels.split(pieces, 2)]
    assert relative_error(codec.vae.normalize(torch.cat(parts, 2)), encoded(codec, clip(17))) < 1e-6


@pytest.mark.parametrize("pieces", [[5], [1, 2, 2], [3, 1, 1]])
@torch.no_grad()
def test_latents_may_be_given_in_any_pieces(codec, pieces):
    latents, past = normal(1, 12, 5, 2, 1), {}
    pixels = torch.cat([codec.vae.decode(piece, past) for piece in latents.split(pieces, 2)], 2)
    assert pixels.shape[2] == 17
    assert relative_error(pixels[0].transpose(0, 1), decoded(codec, latents)) < 3e-6


@torch.no_grad()
def test_a_decoders_level_takes_any_number_of_frames_at_once(codec):
    """`Decoder` gives it one at a time, after the first frame."""
    for level in codec.vae.decoder.up:
        x, past = normal(1, 5, 2, 3, level.res[0].conv1.in_channels), {}
        one = torch.cat([level(frame, past) for frame in x.split(1, 1)], 1)
        for pieces in ([5], [3, 2]):
            past = {}
            assert (
                relative_error(torch.cat([level(p, past) for p in x.split(pieces, 1)], 1), one)
                < 1e-6
            )


@pytest.mark.parametrize("pieces", [[4], [3], [1, 3], [1, 5], [5, 1]])
def test_pieces_that_would_lose_frames_are_refused(codec, pieces):
    pixels, past = pixels_of(clip(sum(pieces))).transpose(0, 1)[None], {}
    with pytest.raises(ValueError, match="frames are no (first|later) piece"), torch.no_grad():
        for piece in pixels.split(pieces, 2):
            codec.vae.posterior(piece, past)


def test_encoding_is_causal_to_the_bit(codec):
    frames = clip(9)
    whole = encoded(codec, frames)
    assert torch.equal(encoded(codec, frames[:5]), whole[:, :, :2])
    assert torch.equal(encoded(codec, frames[:1]), whole[:, :, :1])
    for first in (0, 1, 5):
        other = frames.clone()
        other[first:] = 255 - other[first:]
        changed = (encoded(codec, other) != whole).any(4).any(3).any(1)[0].tolist()
        # every latent frame from there on, and none before
        assert changed == [i >= (first + 3) // 4 for i in range(3)]


def test_decoding_is_causal_to_the_bit(codec):
    latents = normal(1, 12, 3, 2, 1)
    whole = decoded(codec, latents)
    assert torch.equal(decoded(codec, latents[:, :, :2]), whole[:5])
    for first in range(3):
        other = latents.clone()
        other[:, :, first:] += 1
        changed = (decoded(codec, other) != whole).flatten(1).any(1).tolist()
        assert changed == [i >= (0, 1, 5)[first] for i in range(9)]


def test_a_frame_is_computed_from_all_frames_before_it():
    """By a single convolution, so that nothing else can carry it: two frames back, no more."""
    layer = redraw(CausalConv3d(1, 1), seed=1)
    x = torch.zeros(1, 5, 3, 3, 1)
    x[:, 1] = 1
    with torch.no_grad():
        moved = layer(x, {}) - layer(torch.zeros_like(x), {})
    assert moved.flatten(2).any(2).tolist() == [[False, True, True, True, False]]


# memory


def cost_of(pieces):
    return count(lambda: [None for _ in pieces])


def peaks(codec, latent_frames, height=32, width=16):
    """The most bytes that encoding and that decoding a clip of such a length make at one time."""
    frames = codec.frames_of(latent_frames)
    latents = torch.zeros(1, *codec.shape(frames, height, width))
    encode, decode = codec.encode(clip(frames, height, width)), codec.decode(latents)
    return [cost_of(encode).peak_bytes, cost_of(decode).peak_bytes]


def test_memory_does_not_grow_with_the_length(codec):
    assert peaks(codec, 5) == peaks(codec, 3)


@torch.no_grad()
def test_what_is_remembered_holds_nothing_else_in_memory(codec):
    sizes = []
    past = {}
    pixels = pixels_of(clip(13)).transpose(0, 1)[None]
    for piece in pixels.split([1, 4, 4, 4], 2):
        codec.vae.posterior(piece, past)
        for layer, kept in past.items():
            assert kept.shape[1] == (2 if isinstance(layer, CausalConv3d) else 1)
            assert kept.untyped_storage().nbytes() == kept.nbytes
        sizes.append(sum(kept.nbytes for kept in past.values()))
    assert len(set(sizes)) == 1


@pytest.mark.parametrize(
    "changes, dtype",
    [
        ({}, torch.bfloat16),
        (
            {"layers": 2, "encoder_channels": [5, 10, 20, 20], "decoder_channels": [8, 16, 32, 32]},
            torch.float32,
        ),
        ({"residual": False, "patch": 1, "layers": 2}, torch.float32),
        (
            {
                "encoder_channels": [16, 32, 32],
                "decoder_channels": [4, 8, 8],
                "temporal": [True, True],
            },
            torch.float32,
        ),
    ],
)
def test_a_clip_needs_about_as_much_as_is_said(changes, dtype):
    """At least so much at one time, and not twice as much."""
    codec = VideoCodec(VideoAutoencoder(config(**changes)).to(dtype), 2)
    told = codec.activation_bytes(32, 48)
    assert told <= max(peaks(codec, 3, 32, 48)) < 2 * told


def test_costs_are_counted_without_data(codec):
    with fake_mode("cpu") as place:
        fake = codec.meta_copy(place)
        video = torch.empty(5, 32, 16, 3, dtype=torch.uint8, device=place)
        cost = cost_of(fake.encode(video))
    truth = cost_of(codec.encode(clip(5)))
    assert cost.flops == truth.flops
    # small convolutions answer in another memory layout than is predicted, and are copied
    assert 0.9 < cost.peak_bytes / truth.peak_bytes <= 1


@torch.no_grad()
def test_features_lie_channels_last_from_end_to_end(codec):
    odd = []

    def look(module, given):
        odd.extend(f"{module}: {x.stride()}" for x in given[:1] if not x.is_contiguous())

    leaves = [m for m in codec.vae.modules() if not list(m.children())]
    hooks = [m.register_forward_pre_hook(look) for m in leaves]
    decoded(codec, encoded(codec, clip(5)))
    for hook in hooks:
        hook.remove()
    assert len(hooks) > 80 and odd == []


# parts


def test_samples_have_the_mean_and_deviation_of_the_posterior(codec):
    frames = clip(5)
    with torch.no_grad():
        past, pixels = {}, pixels_of(frames).transpose(0, 1)[None]
        pieces = [codec.vae.posterior(piece, past) for piece in pixels.split([1, 4], 2)]
    log_variance = torch.cat([piece[1] for piece in pieces], 2)
    deviation = torch.exp(0.5 * log_variance) / torch.tensor(SECTION["std"])[:, None, None, None]
    generator = torch.Generator().manual_seed(1)
    samples = torch.cat([encoded(codec, frames, generator=generator) for _ in range(20)])
    z = (samples - encoded(codec, frames)) / deviation
    # 20 x 48 values: a mean of them deviates by 1 / sqrt(960), their deviation by 1 / sqrt(1920)
    assert abs(z.mean()) < 0.16 and abs(z.std() - 1) < 0.09
    assert abs((z[:, :, 0] * z[:, :, 1]).mean()) < 0.18, "the noise of one frame is another's"


@pytest.mark.parametrize("frames", [1, 2])
def test_folding_is_the_mean_and_takes_unfolding_back(frames):
    x = normal(1, 4, 4, 6, 8)
    # 8 channels fold to 4 frames x 2 x 2 values of each 8 averaged to one
    small = fold(x, 8, frames, 2)
    box = x.unflatten(1, (-1, frames)).unflatten(3, (-1, 2)).unflatten(5, (-1, 2))
    assert torch.allclose(small, box.mean((2, 4, 6)), atol=1e-6)
    assert torch.equal(unfold(small, 8, frames, 2)[:, ::frames, ::2, ::2], small)
    assert torch.allclose(fold(unfold(small, 2, frames, 2), 8, frames, 2), small, atol=1e-6)


def test_a_first_frame_alone_is_folded_with_zeros():
    x = normal(1, 1, 2, 2, 4)
    assert torch.allclose(fold(x, 4, 2, 1), torch.cat([0 * x, x], 1).mean(1, True), atol=1e-7)


@pytest.mark.parametrize(
    "changes, message",
    [
        ({"temporal": [True]}, "vae: temporal has 1, not 3 values"),
        ({"decoder_channels": [8, 8]}, "vae: decoder_channels has 2, not 4 values"),
        ({"mean": [0.0] * 11}, "vae: mean has 11, not 12 values"),
        ({"std": [1.0] * 13}, "vae: std has 13, not 12 values"),
        ({"std": [1.0] * 11 + [0.0]}, "vae: std .* is not in 0.0001..10000"),
        ({"std": [1.0] * 11 + [-1.0]}, "vae: std .* is not in 0.0001..10000"),
        ({"mean": [1e5] * 12}, "vae: mean .* is not in -10000..10000"),
        ({"mean": [0.0] * 257}, "'vae': mean: .* is not a list of 1 to 256"),
        ({"encoder_channels": [8] * 9}, "encoder_channels: .* is not a list of 1 to 8"),
        ({"encoder_channels": [8, 16, 32, 64]}, "encoder_channels .* are no parts"),
        ({"decoder_channels": [8, 16, 24, 36]}, "decoder_channels .* are no multiples"),
        ({"residual": False, "decoder_channels": [8, 15, 32, 32]}, r"decoder_channels .* not even"),
        ({"temporal": [1, True, True]}, "temporal: 1 is not of type bool"),
    ],
)
def test_configs_that_cannot_be_are_refused(changes, message):
    with pytest.raises(InputError, match=message):
        config(**changes)


def test_every_config_that_is_accepted_can_be_computed():
    """The checks of channels say what the shapes of a forward pass allow, no more and no less."""
    generator = torch.Generator().manual_seed(0)
    outcomes = []
    for _ in range(12):
        down, up = torch.randint(1, 5, (2, 3), generator=generator).tolist()
        changes = {
            "encoder_channels": down,
            "decoder_channels": up,
            "temporal": (torch.rand(2, generator=generator) < 0.5).tolist(),
        }
        try:
            made, accepted = config(**changes), True
        except InputError:
            made, accepted = object.__new__(VideoAutoencoderConfig), False
            made.__dict__.update(SECTION | changes)
        with torch.no_grad():
            vae = VideoAutoencoder(made)
            try:
                vae.posterior(torch.zeros(1, 3, 1, 8, 8), {})
                vae.decode(torch.zeros(1, 12, 1, 1, 1), {})
                computed = True
            except RuntimeError:
                computed = False
        assert computed == accepted, changes
        outcomes.append(accepted)
    assert {True, False} == set(outcomes)
