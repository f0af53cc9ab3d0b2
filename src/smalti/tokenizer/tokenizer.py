"""The tokenizer: pixels -> latents -> ids -> latents -> pixels, whole, streamed, or tile by tile."""

from collections.abc import Iterable, Iterator, Mapping
from pathlib import Path
from typing import Annotated, NamedTuple, TypeVar

import torch
from jaxtyping import Float, Int
from pydantic import Field
from torch import Tensor, nn

from smalti.config import Config
from smalti.errors import ConfigError, InputError, IntegrityError
from smalti.model_folder import dtype_of, fingerprint_of, read_model, upload_model, write_model
from smalti.nn.stream import Stream
from smalti.quantize.entropy import WholeCode
from smalti.tokenizer.cnn import TokenizerConfig
from smalti.tokenizer.cosmos import CosmosConfig
from smalti.tokenizer.open_magvit2 import OpenMagvit2Config
from smalti.tokenizer.vidtok import VidTokConfig
from smalti.tokenizer.vqgan import VQGANConfig
from smalti.tokenizer_info import SourceIds, TokenizerInfo, TokenizerSource
from smalti.version import __version__
from smalti.video import crop_to, legal_size, pad_to, size_of

_Item = TypeVar("_Item")

AnyTokenizerConfig = Annotated[
    TokenizerConfig | VQGANConfig | OpenMagvit2Config | VidTokConfig | CosmosConfig, Field(discriminator="kind")
]


class _ConfigFile(Config):
    """The section of config.json that says what to build, so that a fault in it is named by its place in the file."""

    tokenizer: AnyTokenizerConfig
    source: TokenizerSource | None = None


class Reconstruction(NamedTuple):
    """Result of a forward pass, with gradients."""

    video: Float[Tensor, "b 3 t h w"]
    ids: Int[Tensor, "b t2 h2 w2"]
    losses: Mapping[str, Tensor]
    """Losses of the quantizer, unweighted."""


class Tokenizer(nn.Module):
    """An encoder, a scalar quantizer and a decoder. A video is `b 3 t h w` in [-1, 1]; an image has t = 1.

    Any height, width and length is taken: a video is padded at the right, the bottom and the end by repeating its last
    column, row and frame up to the next legal size (1 + s*n frames, multiples of the strides), and cropped again.
    """

    def __init__(self, config: AnyTokenizerConfig, source: TokenizerSource | None = None) -> None:
        super().__init__()
        self.config = config
        self.source = source
        """Project that it was imported from; None for a tokenizer of ours."""
        self.quantizer = config.quantizer.build()
        networks = config.networks(self.quantizer.dim)
        self.encoder, self.decoder = networks[0], networks[1]
        self.strides = config.total_strides
        """Frames, height and width in pixels of one token."""
        self.levels = self.quantizer.levels
        self.codebook_size = self.quantizer.codebook_size
        self.is_causal = config.is_causal
        """Whether ids and pixels up to a frame are independent of what comes after it."""
        self.lookahead = config.lookahead if config.kind == "vidtok" else 0
        """Latents after a frame's own on which its pixels depend: a stream of ids gives them as much later."""
        self.is_tile_exact = config.is_tile_exact
        """Whether a large frame can be cut into tiles without changing a token."""

    @property
    def device(self) -> torch.device:
        """Device of the weights."""
        return self.decoder.last_weight.device

    @property
    def dtype(self) -> torch.dtype:
        """Number type of the weights; the quantizer's is never less than float32."""
        return self.decoder.last_weight.dtype

    @property
    def fingerprint(self) -> str:
        """Sha256 of config and weights: token sets name it, and a file is checked against it when it is read."""
        return fingerprint_of({"tokenizer": self.config}, self.state_dict())

    @property
    def info(self) -> TokenizerInfo:
        """Facts that give the ids their meaning, the fingerprint among them."""
        return TokenizerInfo(
            fingerprint=self.fingerprint,
            levels=tuple(self.levels),
            codebook_size=self.codebook_size,
            strides=self.strides,
            source_ids=None if self.source is None else self.source.ids,
        )

    def source_ids(self, ids: Int[Tensor, "b *grid"]) -> Int[Tensor, "b *source"]:
        """Return ids in the form in which the project of an imported tokenizer writes them: in one row, with an offset,
        as `source.ids` says. Raises InputError for a tokenizer of ours."""
        return self._source_form().to_source(ids)

    def ids_from_source(
        self, ids: Int[Tensor, "b *source"], grid: tuple[int, ...] | None = None
    ) -> Int[Tensor, "b *grid"]:
        """Return ids of the project of an imported tokenizer in our form, the inverse of `source_ids`.

        Ids in a row need their `grid`, (frames, height, width) or (height, width) in tokens. Raises InputError where it
        does not fit, and for a tokenizer of ours.
        """
        return self._source_form().from_source(ids, grid)

    def _source_form(self) -> SourceIds:
        if self.source is None:
            raise InputError("this tokenizer was not imported from another project: its ids have no other form")
        return self.source.ids

    def __repr__(self) -> str:
        medium = "image" if self.config.time_kernel == 1 else "video"
        sizes = f"{'x'.join(map(str, self.strides))} pixels a token, {self.codebook_size:,} codes"
        parameters = sum(parameter.numel() for parameter in self.parameters())
        where = f"{parameters:,} parameters, {str(self.dtype).removeprefix('torch.')} on {self.device}"
        return f"{medium} tokenizer: {sizes}, {where}\n{super().__repr__()}"

    def save(self, path: str | Path, *, replace: bool = False) -> None:
        """Write the folder `config.json` + `model.safetensors` (the hub's layout), whole or not at all."""
        facts = {} if self.source is None else {"source": self.source.plain()}
        write_model(Path(path), self, {"tokenizer": self.config}, replace=replace, facts=facts)

    save_pretrained = save

    @classmethod
    def load(cls, path: str | Path, device: str | torch.device = "cpu") -> "Tokenizer":
        """Read a folder that `save` wrote, with the number type that it had. Runs no code from it.

        `smalti.load` takes other names than folders too. Raises InputError if the folder is not there, IntegrityError
        if one bit of it differs from what was written. Other files may lie beside it (a model card); without a
        manifest, the fingerprint alone is checked.
        """
        files = read_model(Path(path), "tokenizer", ("tokenizer",), optional=("source",))
        try:
            parsed = _ConfigFile.parse(files.plain, where=str(files.config_path))
        except ConfigError as error:
            raise IntegrityError(f"{error}: not a config that this smalti {__version__} has written") from None
        files.check({"tokenizer": parsed.tokenizer})
        # A quantizer may have a number type of its own (see `ScalarQuantizer._apply`).
        tokenizer = cls(parsed.tokenizer, parsed.source).to(dtype_of(files.tensors, apart="quantizer."))
        files.load_into(tokenizer)
        return tokenizer.to(device).eval()

    def push_to_hub(self, repository: str, *, private: bool = False) -> str:
        """Upload to a repository of the Hugging Face hub, created if need be. Returns its address."""
        return upload_model(self.save, repository, private=private)

    def forward(self, video: Float[Tensor, "b 3 t h w"], whole: WholeCode | None = None) -> Reconstruction:
        """Encode and decode, with gradients; the reconstruction has the size of the video.

        `whole` is for a video that is part of a batch: see `smalti.quantize.entropy.batch_entropy`.
        """
        z = self._to_latent(pad_to(video, legal_size(size_of(video), self.strides)))
        quantized = self.quantizer(z, whole)
        pixels = self._to_video(quantized.codes)
        return Reconstruction(crop_to(pixels, size_of(video)), quantized.ids, quantized.losses)

    def encode(self, video: Float[Tensor, "b 3 t h w"], stream: Stream | None = None) -> Int[Tensor, "b t2 h2 w2"]:
        """Encode a video to ids, or its next chunk if its stream is given.

        A chunk has 1 + s*n frames at the start of a stream and s*n after it; raises ValueError otherwise, and for a
        tokenizer that is not causal.
        """
        size = legal_size(size_of(video), self.strides)
        if stream is not None:
            self._check_chunk(video.shape[2], stream)
            size = size._replace(t=video.shape[2])
        return self.quantizer.encode(self._to_latent(pad_to(video, size), stream))

    def decode(
        self,
        ids: Int[Tensor, "b t h w"],
        stream: Stream | None = None,
        *,
        size: tuple[int, int, int] | None = None,
        is_last: bool = False,
    ) -> Float[Tensor, "b 3 t2 h2 w2"]:
        """Decode ids to a video, or the next chunk of them; cropped to `size` = (frames, height, width) if given.

        With a `lookahead`, the last frames of a stream's chunk come with the next one, or at once if it `is_last`.
        Raises ValueError for an id outside [0, codebook_size). Values may exceed [-1, 1] by a little: clamp at the end.
        """
        if stream is not None:
            self._check_causal()
            stream.is_ending = is_last
        video = self._to_video(self.quantizer.decode(ids), stream)
        return video if size is None else crop_to(video, size)

    def encode_stream(self, chunks: Iterable[Tensor]) -> Iterator[Tensor]:
        """Encode a video that comes in chunks of any length (`b 3 t h w` each), equal to those of the whole video.

        Memory does not grow with the length. The last frames are completed by repeating the last one.
        """
        self._check_causal()
        stream, waiting, s = Stream(), None, self.strides[0]
        for chunk in chunks:
            waiting = chunk if waiting is None else torch.cat([waiting, chunk], 2)
            first = 0 if stream.started else 1
            ready = first + (waiting.shape[2] - first) // s * s
            if ready > 0:
                yield self.encode(waiting[:, :, :ready], stream)
                waiting = waiting[:, :, ready:]
        if waiting is not None and waiting.shape[2]:
            yield self.encode(pad_to(waiting, (s, *waiting.shape[3:])), stream)

    def decode_stream(self, chunks: Iterable[Tensor], *, size: tuple[int, int, int] | None = None) -> Iterator[Tensor]:
        """Decode ids that come in chunks of any length (`b t h w` each), cropped to `size` in all if given."""
        self._check_causal()
        stream, left = Stream(), None if size is None else size[0]
        for ids, is_last in mark_last((ids for ids in chunks if ids.shape[1]), waits=self.lookahead > 0):
            if left == 0:
                continue
            video = self.decode(ids, stream, is_last=is_last)
            if size is not None and left is not None:
                video = crop_to(video, (min(left, video.shape[2]), *size[1:]))
                left -= video.shape[2]
            yield video

    def _to_latent(self, video: Tensor, stream: Stream | None = None) -> Tensor:
        z: Tensor = self.encoder(self._time_first(video), stream)
        return z.permute(1, 2, 0, 3, 4)

    def _to_video(self, codes: Tensor, stream: Stream | None = None) -> Tensor:
        frames: Tensor = self.decoder(self._time_first(codes), stream)
        return frames.permute(1, 2, 0, 3, 4)

    def _time_first(self, x: Tensor) -> Tensor:
        """Return `b c t h w` as `t b c h w` in the type of the weights, with the channels last in memory.

        That is up to 1.2 times as fast on a CPU, what a GPU's matrix units want, and always the same order in memory,
        so that equal codes give equal bits. Some image models are faster with contiguous memory on a CPU.
        """
        frames = x.permute(2, 0, 1, 3, 4)
        contiguous = self.config.is_contiguous_on_cpu and x.device.type == "cpu"
        order = torch.contiguous_format if contiguous else torch.channels_last
        images = frames.flatten(0, 1).to(self.dtype, memory_format=order)
        return images.unflatten(0, frames.shape[:2])

    def _check_causal(self) -> None:
        if not self.is_causal:
            raise ValueError("a tokenizer with norms over the whole clip is not causal and cannot be streamed")

    def _check_chunk(self, frames: int, stream: Stream) -> None:
        self._check_causal()
        s = self.strides[0]
        first = 0 if stream.started or s == 1 else 1
        if frames < 1 or frames % s != first % s:
            rule = f"1 + {s}*n frames at the start" if first else f"a multiple of {s} frames"
            raise ValueError(
                f"a chunk of a stream has {rule} (found {frames}); encode_stream takes chunks of any length"
            )


def mark_last(items: Iterable[_Item], *, waits: bool) -> Iterator[tuple[_Item, bool]]:
    """Yield each item, and whether it is the last one; unless it `waits` for the next to know, each at once as if it
    was not."""
    waiting: list[_Item] = []
    for item in items:
        if waits:
            waiting.append(item)
            if len(waiting) == 1:
                continue
            item = waiting.pop(0)
        yield item, False
    for item in waiting:
        yield item, True
