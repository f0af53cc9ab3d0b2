"""Frames of media through a tokenizer and back: images whole or in tiles, videos as streams, in constant memory.

Frames are uint8 `h w 3`, one after the other; ids come and go in pieces. A tokenizer that is not causal has no streams:
all frames of a video are then held at once. Scores of a tokenizer on a source of samples are made here too.
"""

import math
import statistics
import time
from collections import deque
from collections.abc import Callable, Iterable, Iterator
from itertools import chain, islice

import torch
from jaxtyping import Float, Int, UInt8
from torch import Tensor

from smalti.data.loader import OnBad, evaluation
from smalti.data.source import Source, Subset
from smalti.errors import BadFile, BadTensor, ConfigError
from smalti.metrics import Features, Pair, Protocol, Report, Scores
from smalti.nn.causal import Stream, mark_last, time_first
from smalti.tokenizer.cnn import NOT_CAUSAL
from smalti.tokenizer.conditional import ConditionalDecoder
from smalti.tokenizer.tokenizer import Tokenizer
from smalti.video import crop_to, legal_size, size_of, to_uint8, to_video

TILED_ABOVE = 4_000_000
"""Pixels of an image above which it is computed tile by tile, where that changes no token."""

HELD_ID = -1
"""In place of an id of conditional tokens: the pixels of the token stay as they were in the frame before."""
CHUNK_PIXELS = 1 << 20
"""Pixels of a chunk of video; one group of the tokenizer's time stride is always taken whole."""


def check_causal(tokenizer: Tokenizer, clip: int | None, option: str = "`clip` 17") -> None:
    """Raise ConfigError for a tokenizer that is not causal, unless videos are cut into clips."""
    if not tokenizer.is_causal and clip is None:
        raise ConfigError(
            f"this tokenizer is {NOT_CAUSAL}, so it cannot stream a video; cut it into clips with {option}, or use a"
            " tokenizer that is causal"
        )


@torch.inference_mode()
def images_to_ids(tokenizer: Tokenizer, images: UInt8[Tensor, "b h w 3"]) -> Int[Tensor, "b 1 h2 w2"]:
    """Encode images of one size, in tiles where they are large and that changes no token.

    Tiles are cut from the 8-bit pixels: the floats of an image of 64 million pixels take 768 MB.
    """
    _, height, width, _ = images.shape
    if not _in_tiles(tokenizer, height, width):
        return tokenizer.encode(to_video(images[:, None]).to(tokenizer.device))

    def encode(part: tuple[slice, slice]) -> Tensor:
        pixels = images[(slice(None), *part)]  # of the last row and column, less than a stride may be missing
        return tokenizer.encode(to_video(pixels[:, None]).to(tokenizer.device))

    size = legal_size((1, height, width), tokenizer.strides)
    return tokenizer.encoding_tiles(choose_tile(tokenizer)).compute(encode, (size.h, size.w))


@torch.inference_mode()
def ids_to_image(
    tokenizer: Tokenizer,
    ids: Int[Tensor, "1 1 h2 w2"],
    size: tuple[int, int],
    *,
    into: UInt8[Tensor, "h w 3"] | None = None,
) -> UInt8[Tensor, "h w 3"]:
    """Decode an image of `size` = (height, width), in tiles where it is large and that changes no pixel; write it to
    `into` if given. Raises BadTensor where the ids do not reach that size."""
    ids = ids.to(tokenizer.device)
    image = torch.empty(*size, 3, dtype=torch.uint8) if into is None else into
    if not _in_tiles(tokenizer, *size):
        return image.copy_(to_uint8(crop_to(tokenizer.decode(ids), (1, *size)).cpu())[0, 0])
    rows, columns = ids.shape[-2:]
    _, down, right = tokenizer.strides
    if size[0] > rows * down or size[1] > columns * right:
        raise BadTensor(
            f"{rows} x {columns} ids are {rows * down} x {columns * right} pixels, not {size[0]} x {size[1]}"
        )
    for tile in tokenizer.decoding_tiles(choose_tile(tokenizer)).cut((rows, columns)):
        pixels = to_uint8(tokenizer.decode(ids[(..., *tile.read)])[(..., *tile.inside)].cpu())[0, 0]
        place = image[tile.place]  # ends before the tile where the image was padded
        place.copy_(pixels[: place.shape[0], : place.shape[1]])
    return image


@torch.inference_mode()
def frames_to_ids(
    tokenizer: Tokenizer,
    frames: Iterable[UInt8[Tensor, "h w 3"]],
    *,
    first: int | None = None,
    chunk: int | None = None,
    pixels: int = CHUNK_PIXELS,
) -> Iterator[Int[Tensor, "1 t h2 w2"]]:
    """Encode the frames of a video, in chunks of `chunk` frames, or of about `pixels` pixels.

    The first chunk has `first` frames if given; without `chunk` it ends with a group of the time stride, so that no
    frame waits for the next one. Chunks change no id but for float32 sums in another order, which move an id on a
    threshold: whoever promises equal bytes keeps to one choice of chunks.
    """
    source = iter(frames)
    start = next(source, None)
    if start is None:
        return
    length = chunk or chunk_frames(tokenizer, (start.shape[0], start.shape[1]), pixels)
    source = chain([start], source)

    def chunks() -> Iterator[Tensor]:
        count = first or chunk or length - tokenizer.strides[0] + 1
        while group := list(islice(source, count if tokenizer.is_causal else None)):
            yield to_video(torch.stack(group)).to(tokenizer.device)
            count = length

    yield from tokenizer.encode_stream(chunks()) if tokenizer.is_causal else map(tokenizer.encode, chunks())


@torch.inference_mode()
def ids_to_frames(
    tokenizer: Tokenizer, pieces: Iterable[tuple[int, Int[Tensor, "1 t h2 w2"]]], size: tuple[int, int]
) -> Iterator[UInt8[Tensor, "h w 3"]]:
    """Decode a video of `size` = (height, width) whose ids come in pieces, each with its number of frames.

    The last piece may have more ids than frames. Ids may be `HELD_ID`, as in `decode_next`. Ids are decoded in parts
    that follow from the pieces and the size alone: equal pieces give equal bits.
    """
    if not tokenizer.is_causal:
        counts, parts = zip(*pieces, strict=True)
        pieces = [(sum(counts), torch.cat(parts, 1))]
    stream, owed = Stream() if tokenizer.is_causal else None, 0
    latents = chunk_frames(tokenizer, size) // tokenizer.strides[0]
    cut = _parts(pieces, latents if stream else None)
    for (frames, part), is_last in mark_last(cut, waits=tokenizer.lookahead > 0):
        owed += frames
        if not owed:
            continue
        video = decode_next(tokenizer, part.to(tokenizer.device), stream, is_last=is_last)
        count = min(owed, video.shape[2])
        yield from to_uint8(crop_to(video, (count, *size)).cpu())[0]
        owed -= count


def decode_next(
    tokenizer: Tokenizer, ids: Int[Tensor, "1 t h2 w2"], stream: Stream | None, *, is_last: bool = False
) -> Float[Tensor, "1 3 f h w"]:
    """Decode the next ids of a video, of which some may be `HELD_ID` if they are conditional tokens: the pixels of
    those stay as they were in the frame before. Raises BadTensor as `Tokenizer.decode` does."""
    held = ids < 0
    if not (isinstance(tokenizer.decoder, ConditionalDecoder) and held.any()):
        return tokenizer.decode(ids, stream, is_last=is_last)
    codes = time_first(tokenizer.quantizer.decode(ids.masked_fill(held, 0)), tokenizer.dtype)
    frames: Tensor = tokenizer.decoder(codes, stream, held.transpose(0, 1))
    return frames.permute(1, 2, 0, 3, 4)


def reconstruct_frames(
    tokenizer: Tokenizer,
    frames: Iterable[UInt8[Tensor, "h w 3"]],
    *,
    clip: int | None = None,
    chunk: int | None = None,
) -> Iterator[tuple[Tensor, Tensor, int]]:
    """Yield (frame, reconstruction, tokens so far) for each frame of a video, in constant memory.

    The ids of each chunk go straight into the decoder. With `clip`, every so many frames are encoded and decoded as a
    video of their own. Raises ConfigError for a tokenizer that is not causal without `clip`.
    """
    check_causal(tokenizer, clip)
    waiting, tokens, unnamed = deque[Tensor](), 0, 0

    def remember(group: Iterable[Tensor]) -> Iterator[Tensor]:
        nonlocal unnamed
        for frame in group:
            waiting.append(frame)
            unnamed += 1
            yield frame

    def pieces(group: Iterable[Tensor]) -> Iterator[tuple[int, Tensor]]:
        nonlocal tokens, unnamed
        for ids in frames_to_ids(tokenizer, remember(group), chunk=clip or chunk):
            tokens += ids.numel()
            frames, unnamed = unnamed, 0
            yield frames, ids

    for group in groups_of(frames, clip):
        start = next(group)
        for image in ids_to_frames(tokenizer, pieces(chain([start], group)), (start.shape[0], start.shape[1])):
            yield waiting.popleft(), image, tokens


def groups_of(frames: Iterable[Tensor], size: int | None) -> Iterator[Iterator[Tensor]]:
    """Cut frames into groups of `size`, the last one shorter; None is one group. Each is to be used up in its turn."""
    source = iter(frames)
    while (start := next(source, None)) is not None:
        yield chain([start], source if size is None else islice(source, size - 1))


def chunk_frames(tokenizer: Tokenizer, size: tuple[int, int], pixels: int = CHUNK_PIXELS) -> int:
    """Return how many frames of `size` have about `pixels` pixels: a multiple of the time stride."""
    stride = tokenizer.strides[0]
    return stride * max(1, pixels // (size[0] * size[1] * stride))


def choose_tile(tokenizer: Tokenizer) -> int:
    """Choose a tile for large images: 8 times the reach, so that the surroundings cost (10 / 8)^2 at most, or more.

    Of smalti/tiny-image it has 512 pixels and takes 230 MB to decode; one of 1,024 is 7 % faster and takes 650 MB.
    """
    stride = tokenizer.strides[2]
    reach = max(tokenizer.encoder.reach or 0, (tokenizer.decoder.reach or 0) * stride)
    return math.ceil(max(512, 8 * reach) / stride) * stride


def _parts(pieces: Iterable[tuple[int, Tensor]], latents: int | None) -> Iterator[tuple[int, Tensor]]:
    """Cut the ids of pieces into parts of so many latents; a piece's frames are named with its first part."""
    for frames, ids in pieces:
        for part in ids.split(latents or ids.shape[1], 1):
            yield frames, part
            frames = 0


def _in_tiles(tokenizer: Tokenizer, height: int, width: int) -> bool:
    return height * width > TILED_ABOVE and tokenizer.is_tile_exact


def score_tokenizer(
    tokenizer: Tokenizer,
    source: Source,
    protocol: Protocol,
    *,
    limit: int | None = None,
    features: Features | None = None,
    on_bad: OnBad | None = None,
) -> Report:
    """Score the first `limit` clips of `source`, in its order, on the tokenizer's device, and return the report.

    Files that cannot be read are passed to `on_bad`; the report counts them under `absent["clips"]` and names the
    first. Raises as `smalti.metrics.evaluate_pairs` does, and InputError if every file is bad.
    """
    scores = Scores(protocol, features=features, levels=tokenizer.levels)

    def note(number: int, bad: BadFile) -> None:
        scores.bad[number] = bad
        if on_bad is not None:
            on_bad(bad)

    first = Subset(source, range(len(source))[:limit])
    for pair in pairs_of_tokenizer(tokenizer, first, samples=protocol.samples, on_bad=note):
        scores.add_pair(pair)
    return scores.report()


def pairs_of_tokenizer(
    tokenizer: Tokenizer,
    source: Source,
    *,
    share: tuple[int, int] = (0, 1),
    samples: int | None = None,
    on_bad: Callable[[int, BadFile], None] | None = None,
) -> Iterator[Pair]:
    """Yield clips r, r + W, ... of `source` for the share (r, W), the first `samples` of the source reconstructed.

    Clips are encoded to ids and decoded from them one at a time, so that no figure depends on a batch size. Every clip
    is in exactly one share for any W. Files that cannot be read are passed to `on_bad` with their place in the source.
    """
    rank, world = share
    count = 0

    def note(bad: BadFile) -> None:
        nonlocal count
        if on_bad is not None:
            on_bad(rank + count * world, bad)
        count += 1

    for batch in evaluation(source, part=share, on_bad=note):
        count += 1
        number, key, video = rank + batch.step * world, batch.keys[0], batch.video
        if samples is not None and number >= samples:
            yield Pair(key, video, number=number)
        else:
            yield Pair(key, video, *round_trip(tokenizer, video), number)


@torch.no_grad()
def round_trip(tokenizer: Tokenizer, video: Tensor) -> tuple[Tensor, Tensor]:
    """Encode a video and decode its ids; return (reconstruction `b 3 t h w`, ids) on the tokenizer's device."""
    device = next(tokenizer.parameters()).device
    ids = tokenizer.encode(video.to(device))
    return tokenizer.decode(ids, size=size_of(video)), ids


def megapixels_per_second(tokenizer: Tokenizer, video: Tensor, runs: int = 3) -> float:
    """Measure the pixels of a video `b 3 t h w` by the median time in which it is encoded and decoded, once warm."""
    times = []
    for _ in range(1 + runs):
        start = time.perf_counter()
        pixels, _ = round_trip(tokenizer, video)
        float(pixels.flatten()[0])  # waits for the device
        times.append(time.perf_counter() - start)
    count = video.shape[0] * video.shape[2] * video.shape[3] * video.shape[4]
    return count / 1e6 / statistics.median(times[1:])
