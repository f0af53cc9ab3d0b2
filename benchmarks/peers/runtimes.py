"""The exported programs of a tokenizer in other runtimes, those that are installed, on as many threads as torch."""

import copy
import tempfile
from collections.abc import Callable, Mapping
from importlib.util import find_spec
from pathlib import Path

import torch
from torch import Tensor

from smalti.pipeline.runtimes import Exported, write_program
from smalti.tokenizer import Tokenizer
from smalti.tokenizer.graphs import programs

RUNTIMES = {"ONNX Runtime": ("onnxruntime", "onnxscript"), "OpenVINO": ("openvino", "onnxscript")}
"""What each needs."""
_AGREES = 1e-3
"""Share of ids or values that a runtime may round otherwise."""

Run = Callable[[], Tensor]


class Runtimes:
    """The export of a tokenizer, in float32, and who can run it."""

    def __init__(self, tokenizer: Tokenizer) -> None:
        self._folder = tempfile.TemporaryDirectory()
        self._names = [name for name, packages in RUNTIMES.items() if all(map(find_spec, packages))]
        if self._names:
            folder = Path(self._folder.name)
            parts = [part for part in programs(copy.deepcopy(tokenizer)) if part.name in ("encode", "decode")]
            self._programs = {part.name: write_program(part, folder, "onnx", "float32") for part in parts}

    def calls(self, way: str, x: Tensor, wanted: Tensor) -> Mapping[str, Run]:
        """Encoding or decoding of x by the runtimes whose result is the one that is wanted."""
        found = {name: self._call(name, way, x) for name in self._names}
        return {name: call for name, call in found.items() if _share(call(), wanted) < _AGREES}

    def _call(self, name: str, way: str, x: Tensor) -> Run:
        folder = Path(self._folder.name)
        if name == "ONNX Runtime":
            exported = Exported(folder, {way: self._programs[way]}, "onnx")
            return lambda: exported.run(way, x)[0]
        import openvino

        core = openvino.Core()
        model = core.read_model(folder / f"{way}.onnx")
        model.reshape({model.inputs[0].any_name: list(x.shape)})  # free sizes take it 1.4 times as long
        # It would choose bfloat16 where the processor multiplies it.
        settings = {"INFERENCE_NUM_THREADS": torch.get_num_threads(), "INFERENCE_PRECISION_HINT": "f32"}
        compiled = core.compile_model(model, "CPU", settings)
        return lambda: torch.from_numpy(compiled(x.numpy())[0])


def _share(found: Tensor, wanted: Tensor) -> float:
    return float(((found - wanted).abs() > _AGREES).float().mean())
