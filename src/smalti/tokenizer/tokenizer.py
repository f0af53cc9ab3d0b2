"""The tokenizer: pixels -> latents -> ids -> latents -> pixels, whole, streamed, or tile by tile."""

from collections.abc import Iterable, Iterator, Mapping
from pathlib import Path
from typing import NamedTuple

import torch
from jaxtyping import Float, Int
from torch import Tensor, nn

from smalti import __version__
from smalti.errors import EnvironmentFault, InputError, IntegrityError
from smalti.files import FORMAT_VERSION, fingerprint, load_tensors, new_folder, read_json, save_tensors, write_json
from smalti.nn.stream import Stream
from smalti.tokenizer.config import TokenizerConfig
from smalti.tokenizer.decoder import Decoder
from smalti.tokenizer.encoder import Encoder
from smalti.video import crop_to, legal_size, pad_to


class Reconstruction(NamedTuple):
    """All that training needs of one forward pass."""

    video: Float[Tensor, "b 3 t h w"]
    ids: Int[Tensor, "b t2 h2 w2"]
    losses: Mapping[str, Tensor]
    """The quantizer's, unweighted."""


class Tokenizer(nn.Module):
    """An encoder, a scalar quantizer and a decoder. A video is `b 3 t h w` in [-1, 1]; an image has t = 1.

    Any height, width and length is taken: a video is padded at the right, the bottom and the end by repeating its last
    column, row and frame up to the next legal size (1 + s*n frames, multiples of the strides), and cropped again.
    """

    def __init__(self, config: TokenizerConfig) -> None:
        super().__init__()
        self.config = config
        self.quantizer = config.quantizer.build()
        self.encoder = Encoder(config, self.quantizer.dim)
        self.decoder = Decoder(config, self.quantizer.dim)
        self.strides = config.total_strides
        """Frames, rows and columns per token."""
        self.levels = self.quantizer.levels
        self.codebook_size = self.quantizer.codebook_size
        self.is_causal = config.norm != "clip"
        """Whether ids and pixels up to a frame are independent of what comes after it."""
        self.is_tile_exact = config.norm == "position"
        """Whether a large frame can be cut into tiles without changing a token."""

    def forward(self, video: Float[Tensor, "b 3 t h w"]) -> Reconstruction:
        """Encode and decode, with gradients; the reconstruction has the size of the video."""
        z = self._to_latent(pad_to(video, legal_size(video.shape[2:], self.strides)))
        quantized = self.quantizer(z)
        pixels = self._to_video(quantized.codes)
        return Reconstruction(crop_to(pixels, video.shape[2:]), quantized.ids, quantized.losses)

    def encode(self, video: Float[Tensor, "b 3 t h w"], stream: Stream | None = None) -> Int[Tensor, "b t2 h2 w2"]:
        """The ids of a video, or of the next chunk of one if its stream is given.

        A chunk has 1 + s*n frames at the start of a stream and s*n after it; raises ValueError otherwise, and for a
        tokenizer that is not causal.
        """
        if stream is None:
            size = legal_size(video.shape[2:], self.strides)
        else:
            self._check_chunk(video.shape[2], stream)
            _, height, width = legal_size(video.shape[2:], self.strides)
            size = (video.shape[2], height, width)
        return self.quantizer.encode(self._to_latent(pad_to(video, size), stream))

    def decode(
        self,
        ids: Int[Tensor, "b t h w"],
        stream: Stream | None = None,
        *,
        size: tuple[int, int, int] | None = None,
    ) -> Float[Tensor, "b 3 t2 h2 w2"]:
        """The video of ids, or of the next chunk of them; cropped to `size` = (frames, rows, columns) if given.

        Raises ValueError for an id outside [0, codebook_size). Values may exceed [-1, 1] by a little: clamp at the end.
        """
        if stream is not None:
            self._check_causal()
        video = self._to_video(self.quantizer.decode(ids), stream)
        return video if size is None else crop_to(video, size)

    def encode_stream(self, chunks: Iterable[Tensor]) -> Iterator[Tensor]:
        """Ids of a video that comes in chunks of any length (`b 3 t h w` each), equal to those of the whole video.

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

    def decode_stream(
        self, chunks: Iterable[Tensor], *, size: tuple[int, int, int] | None = None
    ) -> Iterator[Tensor]:
        """Video of ids that come in chunks of any length (`b t h w` each), cropped to `size` in all if given."""
        self._check_causal()
        stream, left = Stream(), None if size is None else size[0]
        for ids in chunks:
            if not ids.shape[1]:
                continue
            video = self.decode(ids, stream)
            if size is not None and left is not None:
                video = crop_to(video, (min(left, video.shape[2]), *size[1:]))
                left -= video.shape[2]
            if video.shape[2]:
                yield video

    def _to_latent(self, video: Tensor, stream: Stream | None = None) -> Tensor:
        frames = video.permute(2, 0, 1, 3, 4)
        # Channels last in memory: 1.1 to 1.3 times as fast on a CPU, and what a GPU's matrix units want.
        frames = frames.flatten(0, 1).contiguous(memory_format=torch.channels_last).unflatten(0, frames.shape[:2])
        z: Tensor = self.encoder(frames, stream)
        return z.permute(1, 2, 0, 3, 4)

    def _to_video(self, codes: Tensor, stream: Stream | None = None) -> Tensor:
        frames: Tensor = self.decoder(codes.permute(2, 0, 1, 3, 4), stream)
        return frames.permute(1, 2, 0, 3, 4)

    def _check_causal(self) -> None:
        if not self.is_causal:
            raise ValueError(f"a tokenizer with norm={self.config.norm!r} is not causal and cannot be streamed")

    def _check_chunk(self, frames: int, stream: Stream) -> None:
        self._check_causal()
        s = self.strides[0]
        first = 0 if stream.started or s == 1 else 1
        if frames < 1 or frames % s != first % s:
            rule = f"1 + {s}*n frames at the start" if first else f"a multiple of {s} frames"
            raise ValueError(f"a chunk of a stream has {rule} (found {frames}); encode_stream takes chunks of any length")

    @property
    def fingerprint(self) -> str:
        """The sha256 of config and weights: token sets name it, and a file is checked against it when it is read."""
        return fingerprint(self.config.plain(), self.state_dict())

    def save(self, path: str | Path, *, replace: bool = False) -> None:
        """Write the folder `config.json` + `model.safetensors` (the hub's layout), whole or not at all."""
        with new_folder(Path(path), replace=replace) as folder:
            save_tensors(folder / "model.safetensors", self.state_dict())
            about = {"format": FORMAT_VERSION, "smalti": __version__, "fingerprint": self.fingerprint}
            write_json(folder / "config.json", about | {"tokenizer": self.config.plain()})

    @classmethod
    def load(cls, path: str | Path, device: str | torch.device = "cpu") -> "Tokenizer":
        """Read a folder that `save` wrote. Runs no code from it.

        Raises InputError if it is not there, IntegrityError if one bit of it differs from what was written.
        """
        folder = Path(path)
        if not folder.is_dir():
            raise InputError(f"{folder}: no such folder; a tokenizer is a folder with config.json and model.safetensors")
        about = read_json(folder / "config.json")
        if not isinstance(about, dict) or "tokenizer" not in about:
            raise IntegrityError(f"{folder / 'config.json'}: not the config of a smalti tokenizer")
        if about.get("format") != FORMAT_VERSION:
            raise IntegrityError(
                f"{folder / 'config.json'}: format {about.get('format')} by smalti {about.get('smalti')}; "
                f"this is smalti {__version__}, which reads format {FORMAT_VERSION}: update smalti"
            )
        config = TokenizerConfig.parse(about["tokenizer"], where=str(folder / "config.json"))
        tensors = load_tensors(folder / "model.safetensors")
        if fingerprint(config.plain(), tensors) != about.get("fingerprint"):
            raise IntegrityError(f"{folder}: the weights or the config have changed since they were written")
        tokenizer = cls(config)
        _load_strictly(tokenizer, tensors, folder / "model.safetensors")
        return tokenizer.to(device).eval()

    @classmethod
    def from_pretrained(
        cls, name: str | Path, *, revision: str | None = None, device: str | torch.device = "cpu"
    ) -> "Tokenizer":
        """Load from a folder, or from a repository of the Hugging Face hub (downloaded once into its cache)."""
        if Path(name).is_dir():
            return cls.load(name, device)
        from huggingface_hub import snapshot_download
        from huggingface_hub.errors import HFValidationError, HfHubHTTPError, LocalEntryNotFoundError

        try:
            folder = snapshot_download(str(name), revision=revision, allow_patterns=["config.json", "model.safetensors"])
        except HFValidationError:
            raise InputError(f"{name}: neither a folder nor the name of a hub repository (owner/name)") from None
        except (LocalEntryNotFoundError, HfHubHTTPError, OSError) as error:
            reason = " ".join(str(error).split())[:160]
            raise EnvironmentFault(f"{name}: not a local folder, and the hub did not give it: {reason}") from None
        return cls.load(folder, device)

    def push_to_hub(self, repository: str, *, private: bool = False) -> str:
        """Upload to a repository of the Hugging Face hub, made if need be; gives its address."""
        import tempfile

        from huggingface_hub import HfApi

        hub = HfApi()
        hub.create_repo(repository, private=private, exist_ok=True)
        with tempfile.TemporaryDirectory() as scratch:
            self.save(Path(scratch) / "tokenizer")
            return str(hub.upload_folder(repo_id=repository, folder_path=Path(scratch) / "tokenizer"))


def _load_strictly(tokenizer: Tokenizer, tensors: Mapping[str, Tensor], path: Path) -> None:
    """Load weights; IntegrityError with counts and first names of what is missing, unexpected or of another shape."""
    wanted = tokenizer.state_dict()
    faults = {
        "missing": sorted(wanted.keys() - tensors.keys()),
        "unexpected": sorted(tensors.keys() - wanted.keys()),
        "of another shape": sorted(n for n in wanted.keys() & tensors.keys() if wanted[n].shape != tensors[n].shape),
    }
    if any(faults.values()):
        told = "; ".join(f"{len(names)} {what} ({', '.join(names[:5])})" for what, names in faults.items() if names)
        raise IntegrityError(f"{path}: does not fit its config: {told}")
    tokenizer.load_state_dict(dict(tensors))
