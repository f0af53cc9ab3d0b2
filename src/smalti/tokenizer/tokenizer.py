"""The tokenizer: pixels -> latents -> ids -> latents -> pixels, whole, streamed, or tile by tile."""

import math
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from pathlib import Path
from typing import Annotated, Any, NamedTuple

import torch
from jaxtyping import Float, Int, Integer
from pydantic import Field
from torch import Tensor, nn

from smalti.arguments import check_arguments
from smalti.config import Config
from smalti.devices import whole_float32
from smalti.errors import BadTensor, ConfigError, InputError, IntegrityError
from smalti.model_folder import dtype_of, fingerprint_of, read_model, upload_model, write_model
from smalti.nn.causal import Stream, check_stream, check_whole, is_no_frames, mark_last, several, time_first
from smalti.nn.replay import calls_of
from smalti.quantize.entropy import WholeCode
from smalti.tokenizer.card import model_card, read_evaluation
from smalti.tokenizer.closed_loop import Loop, closed_loop
from smalti.tokenizer.cnn import NOT_CAUSAL, Encoder, TokenizerConfig
from smalti.tokenizer.conditional import ConditionalConfig, ConditionalDecoder, ConditionalEncoder
from smalti.tokenizer.cosmos import CosmosConfig
from smalti.tokenizer.open_magvit2 import OpenMagvit2Config
from smalti.tokenizer.tiles import Tiles
from smalti.tokenizer.vidtok import VidTokConfig
from smalti.tokenizer.vqgan import VQGANConfig
from smalti.tokenizer_info import WHOLE_GROUPS, SourceIds, TokenizerInfo, TokenizerSource
from smalti.version import __version__
from smalti.video import check_video, crop, crop_to, describe, ids_grid, legal_size, pad_to, size_of, whole_numbers

AnyTokenizerConfig = Annotated[
    TokenizerConfig | ConditionalConfig | VQGANConfig | OpenMagvit2Config | VidTokConfig | CosmosConfig,
    Field(discriminator="kind"),
]


class _ConfigFile(Config):
    """The section of config.json that says what to build, so that a fault in it is named by its place in the file."""

    tokenizer: AnyTokenizerConfig
    source: TokenizerSource | None = None


class Reconstruction(NamedTuple):
    """Result of a forward pass, with gradients."""

    video: Float[Tensor, "b 3 *t h w"]
    ids: Int[Tensor, "b *t2 h2 w2"]
    losses: Mapping[str, Tensor]
    """Losses of the quantizer, unweighted."""


class Tokenizer(nn.Module):
    """An encoder, a scalar quantizer and a decoder. A video is `b 3 t h w` in [-1, 1]; an image has t = 1.

    Any height, width and length is taken: a video is padded at the right, the bottom and the end by repeating its last
    column, row and frame up to the next legal size (1 + s*n frames, or s*n where `first_frames` is s, and multiples of
    the strides), and cropped again.
    """

    def __init__(self, config: AnyTokenizerConfig, source: TokenizerSource | None = None) -> None:
        super().__init__()
        self.config = config
        self.source = source
        self._written: str | None = None
        """Project that it was imported from; None for a tokenizer of ours."""
        self.quantizer = config.quantizer.build()
        networks = config.networks(self.quantizer.dim)
        self.encoder, self.decoder = networks[0], networks[1]
        self.strides = config.total_strides
        """Frames, height and width in pixels of one token."""
        self.levels = self.quantizer.levels
        self.codebook_size = self.quantizer.codebook_size
        self.first_frames = config.first_frames
        """Frames of the first latent: 1, or a whole group."""
        self.is_causal = config.is_causal
        """Whether ids and pixels up to a frame are independent of what comes after it."""
        self.lookahead = config.lookahead
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
        """Sha256 of config and weights: token sets name it, and a file is checked against it when it is read.

        After `compute_in` it is that of the weights before."""
        return self._written or fingerprint_of({"tokenizer": self.config}, self.state_dict())

    @property
    def info(self) -> TokenizerInfo:
        """Facts that give the ids their meaning, the fingerprint among them."""
        info = TokenizerInfo(
            fingerprint=self.fingerprint,
            levels=tuple(self.levels),
            codebook_size=self.codebook_size,
            strides=self.strides,
            source_ids=None if self.source is None else self.source.ids,
        )
        first = self.first_frames
        return info if first == 1 else info.replace({"first_frames": first, "padding": WHOLE_GROUPS})

    def facts(self) -> dict[str, Any]:
        """Return what there is to say about the tokenizer as plain data, as `smalti info --json` prints it."""
        time, rows, columns = self.strides
        bits = math.log2(self.codebook_size)
        networks = {"encoder": self.encoder, "decoder": self.decoder, "all": self}
        return {
            "kind": "image" if self.config.time_kernel == 1 else "video",
            "strides": {"time": time, "rows": rows, "columns": columns},
            "quantizer": self.config.quantizer.kind,
            "levels": list(self.levels),
            "codebook_size": self.codebook_size,
            "bits_per_token": bits,
            "bits_per_pixel": bits / (time * rows * columns),
            "parameters": {name: sum(p.numel() for p in part.parameters()) for name, part in networks.items()},
            "weights_bytes": sum(tensor.nbytes for tensor in self.state_dict().values()),
            "is_causal": self.is_causal,
            "is_tile_exact": self.is_tile_exact,
            "is_streamable": self.is_causal,
            "lookahead": self.lookahead,
            "first_frames": self.first_frames,
            "pixels": "[-1, 1]",
            "reach": {"encoder_pixels": self.encoder.reach, "decoder_tokens": self.decoder.reach},
            "fingerprint": self.fingerprint,
            **({} if self.source is None else {"source": self.source.facts()}),
            "config": self.config.plain(),
        }

    def source_ids(self, ids: Integer[Tensor, "b *grid"]) -> Int[Tensor, "b *source"]:
        """Return ids in the form in which the project of an imported tokenizer writes them: in one row, with an offset,
        as `source.ids` says. Raises InputError for a tokenizer of ours, BadTensor for what are no ids of this one."""
        return self._source_form().to_source(ids, self.codebook_size)

    def ids_from_source(
        self, ids: Integer[Tensor, "b *source"], grid: Sequence[int] | None = None
    ) -> Int[Tensor, "b *grid"]:
        """Return ids of the project of an imported tokenizer in our form, the inverse of `source_ids`.

        Ids in a row need their `grid`, (frames, height, width) or (height, width) in tokens. Raises InputError where it
        does not fit, and for a tokenizer of ours; BadTensor for ids out of range.
        """
        return self._source_form().from_source(ids, grid, self.codebook_size)

    def _source_form(self) -> SourceIds:
        if self.source is None:
            raise InputError("this tokenizer was not imported from another project: its ids have no other form")
        return self.source.ids

    @property
    def replayable(self) -> tuple[Callable[..., Tensor], ...]:
        """Calls of the networks that `smalti.nn.replay` can record."""
        return *calls_of(self.encoder), *calls_of(self.decoder)

    def __repr__(self) -> str:
        """One line; `encoder` and `decoder` print their layers."""
        medium = "image" if self.config.time_kernel == 1 else "video"
        sizes = f"{'x'.join(map(str, self.strides))} pixels a token, {self.codebook_size:,} codes"
        parameters = sum(parameter.numel() for parameter in self.parameters())
        where = f"{parameters:,} parameters, {str(self.dtype).removeprefix('torch.')} on {self.device}"
        return f"{medium} tokenizer: {sizes}, {where}"

    def save(self, path: str | Path, *, replace: bool = False) -> None:
        """Write the folder `config.json` + `model.safetensors` (the hub's layout), whole or not at all."""
        check_arguments(Tokenizer.save, locals())
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
        check_arguments(Tokenizer.load, locals())
        files = read_model(Path(path), "tokenizer", ("tokenizer",), optional=("source",))
        try:
            parsed = _ConfigFile.parse(files.plain, where=str(files.config_path))
        except ConfigError as error:
            raise IntegrityError(f"{error}: not a config that this smalti {__version__} has written") from None
        files.check({"tokenizer": parsed.tokenizer})
        files.check_network(lambda: cls(parsed.tokenizer))
        # A quantizer may have a number type of its own (see `Quantizer._apply`).
        tokenizer = cls(parsed.tokenizer, parsed.source).to(dtype_of(files.tensors, apart="quantizer."))
        files.load_into(tokenizer)
        return tokenizer.to(device).eval()

    def compute_in(self, dtype: torch.dtype) -> "Tokenizer":
        """Let the networks compute in another number type, in place, for inference; returns the tokenizer.

        The quantizer stays float32 and the fingerprint what it was: the ids mean the same. In bfloat16 the shipped
        tokenizers give 2 to 5 % other ids, and reconstructions as near to their source (by 0.01 dB on average); whether
        that is faster, `smalti doctor` says.
        """
        self._written = self.fingerprint
        return self.to(dtype).eval().requires_grad_(False)

    def push_to_hub(
        self, repository: str, *, private: bool = False, licence: str | None = None, report: str | Path | None = None
    ) -> str:
        """Upload to a repository of the Hugging Face hub, created if need be, with a model card. Returns its address.

        The card says what the tokenizer is and how to load it. `licence` is an identifier of the hub, as `apache-2.0`.
        `report` is the folder or report.json that `smalti eval --out` wrote; its scores stand on the card.
        """
        check_arguments(Tokenizer.push_to_hub, locals())
        scores = None if report is None else read_evaluation(Path(report))
        card = model_card(self.facts(), repository, licence=licence, report=scores)
        return upload_model(self.save, repository, card, private=private)

    def forward(
        self,
        video: Float[Tensor, "b 3 *t h w"],
        whole: WholeCode | None = None,
        hold_below: Float[Tensor, " b"] | None = None,
        *,
        check: bool = True,
    ) -> Reconstruction:
        """Encode and decode, with gradients; the reconstruction has the shape of the video.

        `whole` is for a part of a batch: see `quantize.entropy.batch_entropy`; `hold_below` for conditional tokens, as
        `closed_loop` says. Raises as `encode` does, but while gradients are recorded not for NaN, which losses show;
        without `check` it waits for no device to see values.
        """
        if check:
            check_video(video, self.device, finite=not torch.is_grad_enabled())
        if video.ndim == 4:
            result = self._reconstruct(video.unsqueeze(2), whole, hold_below, check)
            return Reconstruction(result.video.squeeze(2), result.ids.squeeze(1), result.losses)
        return self._reconstruct(video, whole, hold_below, check)

    def encode(
        self, video: Float[Tensor, "b 3 *t h w"], stream: Stream | None = None, *, tile: int | None = None
    ) -> Int[Tensor, "b *t2 h2 w2"]:
        """Encode a video `b 3 t h w` to ids `b t h w`, images `b 3 h w` to ids `b h w`, or the next chunk of a video if
        its stream is given. `smalti.video.to_video` makes a video of 8-bit pixels, numpy arrays and Pillow's images.

        A chunk has 1 + s*n frames at the start of a stream and s*n after it. With `tile`, a multiple of the spatial
        stride, large frames are computed so many pixels at a time, which changes no id.

        Raises BadTensor, a ValueError of one line, for what cannot be a video: other types and shapes, another device,
        nothing, and in eager mode values beyond [-1.5, 1.5] and NaN; and for a chunk of a wrong length. Raises
        ConfigError for a stream of a tokenizer that is not causal, and for tiles of one that is not tile-exact.
        """
        check_video(video, self.device)
        check_stream(stream, "tile")
        if video.ndim == 4:
            check_whole(stream, "video.unsqueeze(2)", "b 3 t h w")
            return self._encode(video.unsqueeze(2), None, tile).squeeze(1)
        return self._encode(video, stream, tile)

    def latents(self, video: Float[Tensor, "b 3 *t h w"], *, check: bool = True) -> Float[Tensor, "b d *t2 h2 w2"]:
        """Return the latents of a video or of images before quantization, whose ids `quantizer.encode` finds. Raises as
        `encode` does; without `check` it waits for no device to see values."""
        if check:
            check_video(video, self.device)
        if video.ndim == 4:
            return self._latents(video.unsqueeze(2), check).squeeze(2)
        return self._latents(video, check)

    def codes_to_indices(self, codes: Float[Tensor, "b d *grid"]) -> Int[Tensor, "b *grid"]:
        """Return the ids of codes, the inverse of `indices_to_codes`. Raises BadTensor for what are no codes."""
        return self.quantizer.codes_to_indices(codes)

    def indices_to_codes(self, ids: Integer[Tensor, "b *grid"]) -> Float[Tensor, "b d *grid"]:
        """Return the codes of ids, all that the decoder sees. Raises BadTensor for ids out of range."""
        return self.quantizer.indices_to_codes(ids)

    def decode(
        self,
        ids: Integer[Tensor, "b *grid"],
        stream: Stream | None = None,
        *,
        size: Sequence[int] | None = None,
        shape: Sequence[int] | None = None,
        tile: int | None = None,
        is_last: bool = False,
    ) -> Float[Tensor, "b 3 *t h w"]:
        """Decode ids of any integer type: `b t h w` to a video, `b h w` to images `b 3 h w`, or the next chunk of them.

        `size` crops to (frames, height, width) in pixels, of images to (height, width): `size=video.shape[2:]`. Ids in
        a row, `b n`, need their grid, `shape` = (t, h, w) or (h, w) in tokens. `tile` is as in `encode`. With a
        `lookahead`, the last frames of a stream's chunk come with the next one, or at once if it `is_last`.

        Raises BadTensor for another shape or type, ids outside [0, codebook_size), and a size that they do not reach.
        Values may exceed [-1, 1] by a little: clamp at the end.
        """
        ids = ids_grid(ids, shape, self.device)
        check_stream(stream, "size")
        if ids.ndim == 3:
            check_whole(stream, "ids.unsqueeze(1)", "b t h w")
            video = self._decode(ids.unsqueeze(1), None, tile).squeeze(2)
        else:
            video = self._decode(ids, stream, tile, is_last)
        return video if size is None else crop(video, whole_numbers("size", size))

    def decode_codes(self, codes: Float[Tensor, "b d *grid"]) -> Float[Tensor, "b 3 *t h w"]:
        """Decode codes `b d t h w`, of images `b d h w`, or what lies between them, with gradients and not quantized.

        Raises BadTensor for another shape."""
        if not isinstance(codes, Tensor) or codes.ndim not in (4, 5) or codes.shape[1] != self.quantizer.dim:
            raise BadTensor(
                f"codes must be b {self.quantizer.dim} t h w or b {self.quantizer.dim} h w (found {describe(codes)})"
            )
        return self._to_video(codes.unsqueeze(2)).squeeze(2) if codes.ndim == 4 else self._to_video(codes)

    def encode_stream(self, chunks: Iterable[Tensor]) -> Iterator[Tensor]:
        """Encode a video that comes in chunks of any length (`b 3 t h w` each), equal to those of the whole video.

        Memory does not grow with the length. The last frames are completed by repeating the last one. Raises as
        `encode` does, and BadTensor for a chunk of another batch, height or width than the first.
        """
        self._check_causal()
        stream, waiting, s = Stream(), None, self.strides[0]
        for chunk in several(chunks, "video.split(16, 2)"):
            if is_no_frames(chunk, 2):
                continue
            check_video(chunk, self.device, "chunk")
            if chunk.ndim == 4:
                check_whole(stream, "chunk.unsqueeze(2)", "b 3 t h w")
            stream.check_size(self.encoder, (chunk.shape[0], *chunk.shape[3:]))
            waiting = chunk if waiting is None else torch.cat([waiting, chunk], 2)
            first = 0 if stream.started else 1
            ready = first + (waiting.shape[2] - first) // s * s
            if ready > 0:
                yield self._encode(waiting[:, :, :ready], stream)
                waiting = waiting[:, :, ready:]
        if waiting is not None and waiting.shape[2]:
            yield self._encode(pad_to(waiting, (s, *waiting.shape[3:])), stream)

    def decode_stream(self, chunks: Iterable[Tensor], *, size: Sequence[int] | None = None) -> Iterator[Tensor]:
        """Decode ids that come in chunks of any length (`b t h w` each), cropped to `size` in all if given.

        Raises as `decode` does, and BadTensor for a chunk of another batch, height or width than the first.
        """
        self._check_causal()
        size = None if size is None else whole_numbers("size", size)
        stream, left = Stream(), None if size is None else size[0]
        chunks = (ids for ids in several(chunks, "ids.split(4, 1)") if not is_no_frames(ids, 1))
        for ids, is_last in mark_last(chunks, waits=self.lookahead > 0):
            if left == 0:
                continue
            video = self.decode(ids, stream, is_last=is_last)
            if not video.shape[2]:
                continue
            if size is not None and left is not None:
                video = crop(video, (min(left, video.shape[2]), *size[1:]))
                left -= video.shape[2]
            yield video

    def _reconstruct(
        self, video: Float[Tensor, "b 3 t h w"], whole: WholeCode | None, hold_below: Tensor | None, check: bool
    ) -> Reconstruction:
        loop = self._closed_loop(padded := self.pad(video), check=check, hold_below=hold_below)
        quantized = self.quantizer(self._open_latent(padded) if loop is None else loop.z, whole, check=check)
        pixels = self._to_video(quantized.codes, loop=loop)
        return Reconstruction(crop_to(pixels, size_of(video)), quantized.ids, quantized.losses)

    def _latents(self, video: Float[Tensor, "b 3 t h w"], check: bool) -> Float[Tensor, "b d t2 h2 w2"]:
        loop = self._closed_loop(padded := self.pad(video), check=check)
        return self._open_latent(padded) if loop is None else loop.z

    def pad(self, video: Float[Tensor, "b 3 t h w"]) -> Float[Tensor, "b 3 t2 h2 w2"]:
        """Pad a video to the next legal size, as `encode` does: `first_frames` + s*n frames and whole strides."""
        return pad_to(video, legal_size(size_of(video), self.strides, self.first_frames))

    def _encode(
        self, video: Float[Tensor, "b 3 t h w"], stream: Stream | None = None, tile: int | None = None
    ) -> Int[Tensor, "b t2 h2 w2"]:
        size = legal_size(size_of(video), self.strides, self.first_frames)
        if stream is not None:
            self._check_chunk(video.shape[2], stream)
            stream.check_size(self.encoder, (video.shape[0], *video.shape[3:]))
            size = size._replace(t=video.shape[2])
        video = pad_to(video, size)
        if tile is None:
            return self._ids(video, stream)
        tiles = self.encoding_tiles(tile, stream)
        return tiles.compute(lambda part: self._ids(video[(..., *part)]), (size.h, size.w))

    def _decode(
        self,
        ids: Integer[Tensor, "b t h w"],
        stream: Stream | None = None,
        tile: int | None = None,
        is_last: bool = False,
    ) -> Float[Tensor, "b 3 t2 h2 w2"]:
        if stream is not None:
            self._check_causal()
            stream.is_ending = is_last
            stream.check_size(self.decoder, (ids.shape[0], *ids.shape[2:]))
        if tile is None:
            return self._to_video(self.quantizer.decode(ids), stream)
        tiles = self.decoding_tiles(tile, stream)
        height, width = ids.shape[-2:]
        return tiles.compute(lambda part: self._to_video(self.quantizer.decode(ids[(..., *part)])), (height, width))

    def encoding_tiles(self, tile: int, stream: Stream | None = None) -> Tiles:
        """Return the tiles of `tile` pixels that frames are encoded in. Raises ConfigError as `encode` does."""
        stride = self._check_tile(tile, stream)
        return Tiles(tile, -(-(self.encoder.reach or 0) // stride) * stride, down=stride)

    def decoding_tiles(self, tile: int, stream: Stream | None = None) -> Tiles:
        """Return the tiles of `tile` pixels that ids are decoded in. Raises ConfigError as `decode` does."""
        stride = self._check_tile(tile, stream)
        return Tiles(tile // stride, self.decoder.reach or 0, up=stride)

    def _ids(self, video: Tensor, stream: Stream | None = None) -> Tensor:
        loop = self._closed_loop(video, stream)
        return self.quantizer.encode(self._open_latent(video, stream)) if loop is None else loop.ids

    def _closed_loop(
        self, video: Tensor, stream: Stream | None = None, *, check: bool = True, hold_below: Tensor | None = None
    ) -> Loop | None:
        """Encode with conditional tokens, where each group of frames follows what was decoded before it; None for a
        tokenizer of another kind."""
        if not (isinstance(self.encoder, ConditionalEncoder) and isinstance(self.decoder, ConditionalDecoder)):
            return None
        frames = self._time_first(video)
        with whole_float32(self.device):
            return closed_loop(self.encoder, self.decoder, self.quantizer, frames, stream, check, hold_below)

    def _open_latent(self, video: Tensor, stream: Stream | None = None) -> Tensor:
        """Return latents whose ids are the same in any batch, chunk and tile, on a GPU too; others: `_closed_loop`."""
        orders = isinstance(self.encoder, Encoder) and self.encoder.orders_pixels
        frames = video.permute(2, 0, 1, 3, 4).to(self.dtype) if orders else self._time_first(video)
        with whole_float32(self.device):
            z: Tensor = self.encoder(frames, stream)
            return z.permute(1, 2, 0, 3, 4)

    def _to_video(self, codes: Tensor, stream: Stream | None = None, loop: Loop | None = None) -> Tensor:
        if isinstance(self.decoder, ConditionalDecoder) and loop is not None:
            frames: Tensor = self.decoder.after_pasts(self._time_first(codes), loop.pasts, loop.held)
        else:
            frames = self.decoder(self._time_first(codes), stream)
        return frames.permute(1, 2, 0, 3, 4)

    def _time_first(self, x: Tensor) -> Tensor:
        """Return `b c t h w` as `t b c h w` in the type of the weights, with the channels last in memory.

        That is up to 1.2 times as fast on a CPU, and what a GPU's matrix units want. Some image models are faster with
        contiguous memory on a CPU.
        """
        contiguous = self.config.is_contiguous_on_cpu and x.device.type == "cpu"
        return time_first(x, self.dtype, contiguous=contiguous)

    def _check_causal(self) -> None:
        if not self.is_causal:
            raise ConfigError(
                f"this tokenizer is {NOT_CAUSAL}, so it cannot be streamed; encode and decode whole clips"
            )

    def _check_chunk(self, frames: int, stream: Stream) -> None:
        self._check_causal()
        s = self.strides[0]
        first = 0 if stream.started or s == 1 else 1
        if not torch.compiler.is_compiling() and (frames < 1 or frames % s != first % s):
            rule = f"1 + {s}*n frames at the start" if first else f"a multiple of {s} frames"
            raise BadTensor(
                f"a chunk of a stream has {rule} (found {frames}); encode_stream takes chunks of any length"
            )

    def _check_tile(self, tile: int, stream: Stream | None) -> int:
        """Return the spatial stride. Raises ConfigError where tiles would change tokens."""
        stride = self.strides[2]
        if not self.is_tile_exact:
            raise ConfigError(
                "tile: a tokenizer whose norms, attention or past see more than one position is not tile-exact"
            )
        if stream is not None:
            raise ConfigError("tile: a stream has its own past for every tile; give a tile or a stream, not both")
        if not isinstance(tile, int) or tile < 1 or tile % stride:
            raise ConfigError(f"tile: must be a multiple of {stride} pixels, the spatial stride (found {tile!r})")
        return stride
