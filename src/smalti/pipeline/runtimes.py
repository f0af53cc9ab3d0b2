"""Programs of a tokenizer as files of another runtime, ONNX, and running them."""

import logging
import re
import warnings
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from importlib.util import find_spec
from pathlib import Path
from typing import Any, Literal

import torch
from torch import Tensor

from smalti.errors import MachineError
from smalti.tokenizer.graphs import Program, graph_of

Target = Literal["onnx"]
WeightType = Literal["float32", "float16"]

_OPSET = 20


def check_packages() -> None:
    """Raise MachineError where a package of the extra `export` is not installed."""
    needed = ("onnx", "onnxscript", "onnxruntime")
    absent = [name for name in needed if find_spec(name) is None]
    if absent:
        raise MachineError(f"{', '.join(absent)}: not installed; pip install 'smalti[export]'")


def write_program(program: Program, folder: Path, weights: WeightType) -> dict[str, Any]:
    """Write `NAME.onnx` and return its description: file, inputs and outputs with type and shape."""
    path = folder / f"{program.name}.onnx"
    with _quiet():
        graph = graph_of(program, half=weights == "float16")
        shapes = _write_onnx(program, graph, path)
    ports = {
        name: {"type": _type_of(node), "shape": shape}
        for (name, shape), node in zip(shapes.items(), _ports(graph), strict=True)
    }
    names = list(program.inputs)
    return {
        "file": path.name,
        "inputs": {name: ports[name] for name in names},
        "outputs": {name: ports[name] for name in program.outputs},
    }


def _write_onnx(program: Program, graph: torch.export.ExportedProgram, path: Path) -> dict[str, list[int | str]]:
    made = torch.onnx.export(
        graph,
        input_names=list(program.inputs),
        output_names=list(program.outputs),
        opset_version=_OPSET,
        dynamo=True,
        verbose=False,
    )
    if made is None:  # what the older exporter returns
        raise MachineError("torch.onnx: gave no program; update torch")
    shapes = _shapes(program, graph)
    for value in (*made.model.graph.inputs, *made.model.graph.outputs):
        if value.name is not None and value.shape is not None:
            value.shape = type(value.shape)(shapes[value.name])
    for node in made.model.graph.all_nodes():  # where torch was when it made them: paths of this machine
        node.metadata_props.clear()
        for value in node.outputs:
            value.metadata_props.clear()
    made.save(path, external_data=False)
    return shapes


def _ports(graph: torch.export.ExportedProgram) -> list[Tensor]:
    """Return the tensors that go in, then those that come out, as they were traced."""
    nodes = {node.name: node for node in graph.graph.nodes}
    names = (*graph.graph_signature.user_inputs, *graph.graph_signature.user_outputs)
    return [nodes[str(name)].meta["val"] for name in names]


def _type_of(port: Tensor) -> str:
    return str(port.dtype).removeprefix("torch.")


def _shapes(program: Program, graph: torch.export.ExportedProgram) -> dict[str, list[int | str]]:
    """Return the shape of each input and output, free axes by name and what follows from them as a formula."""
    ports = dict(zip((*program.inputs, *program.outputs), _ports(graph), strict=True))
    words: dict[str, str] = {}
    for name, axes in program.inputs.items():
        for axis, word in axes.items():
            symbol = str(ports[name].shape[axis])  # a number where the axis is not free after all
            if symbol.isidentifier():
                words.setdefault(symbol, word if not word.startswith("axis") else f"{name}_{word}")
    if program.multiple > 1 and not isinstance(ports[next(iter(program.inputs))].shape[2], int):
        groups = re.sub(r"^\d+\*", "", str(ports[next(iter(program.inputs))].shape[2]))
        words[groups] = "groups"
    return {
        name: [size if isinstance(size, int) else _named(str(size), words) for size in port.shape]
        for name, port in ports.items()
    }


def _named(formula: str, words: Mapping[str, str]) -> str:
    return re.sub(r"\bs\d+\b", lambda symbol: words.get(symbol[0], symbol[0]), formula)


@contextmanager
def _quiet() -> Iterator[None]:
    """Keep what torch's exporters say about themselves off the terminal."""
    logger = logging.getLogger("torch.onnx")
    level = logger.level
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        logger.setLevel(logging.ERROR)
        try:
            yield
        finally:
            logger.setLevel(level)


class Exported:
    """The programs in a folder, to be run on tensors by ONNX Runtime."""

    def __init__(self, folder: Path, programs: Mapping[str, Mapping[str, Any]]) -> None:
        import onnxruntime

        options = onnxruntime.SessionOptions()
        options.intra_op_num_threads = torch.get_num_threads()
        options.log_severity_level = 3
        self.programs = programs
        self._sessions = {
            name: onnxruntime.InferenceSession(folder / about["file"], options, providers=["CPUExecutionProvider"])
            for name, about in programs.items()
        }

    def run(self, name: str, *inputs: Tensor) -> Sequence[Tensor]:
        """Run a program on its inputs, in their order."""
        names = self.programs[name]["inputs"]
        arrays = {port: tensor.cpu().numpy() for port, tensor in zip(names, inputs, strict=True)}
        return [torch.from_numpy(array) for array in self._sessions[name].run(None, arrays)]
