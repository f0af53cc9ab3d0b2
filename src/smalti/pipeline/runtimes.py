"""Programs of a tokenizer as files of another runtime, ONNX or AOTInductor's packages, and running them."""

import logging
import re
import warnings
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from importlib.util import find_spec
from pathlib import Path
from typing import Any, Literal

import torch
from torch import Tensor

from smalti.errors import MachineError
from smalti.text import one_line
from smalti.tokenizer.graphs import Program, graph_of

Target = Literal["onnx", "pt2"]
WeightType = Literal["float32", "float16"]

_OPSET = 20


def check_packages(to: Target) -> None:
    """Raise MachineError where what a target needs is not installed: the extra `export`, or a C++ compiler."""
    if to == "pt2":
        _check_compiler()
        return
    absent = [name for name in ("onnx", "onnxscript", "onnxruntime") if find_spec(name) is None]
    if absent:
        raise MachineError(f"{', '.join(absent)}: not installed; pip install 'smalti[export]'")


def _check_compiler() -> None:
    from torch._inductor.cpp_builder import get_cpp_compiler
    from torch._inductor.exc import InvalidCxxCompiler

    try:
        get_cpp_compiler()
    except InvalidCxxCompiler:
        raise MachineError("pt2: no C++ compiler found; install g++, or name one by the variable CXX") from None


def write_program(program: Program, folder: Path, to: Target, weights: WeightType) -> dict[str, Any]:
    """Write `NAME.onnx` or `NAME.pt2` and return its description: file, inputs and outputs with type and shape.

    Raises MachineError where the compiler fails that `pt2` needs.
    """
    path = folder / f"{program.name}.{to}"
    with _quiet():
        graph = graph_of(program, half=weights == "float16")
        shapes = _shapes(program, graph)
        if to == "onnx":
            _write_onnx(program, graph, path, shapes)
        else:
            _write_pt2(graph, path)
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


def _write_onnx(
    program: Program, graph: torch.export.ExportedProgram, path: Path, shapes: Mapping[str, list[int | str]]
) -> None:
    onnx_program = torch.onnx.export(
        graph,
        input_names=list(program.inputs),
        output_names=list(program.outputs),
        opset_version=_OPSET,
        dynamo=True,
        verbose=False,
    )
    if onnx_program is None:  # what the older exporter returns
        raise MachineError("torch.onnx: gave no program; update torch")
    for value in (*onnx_program.model.graph.inputs, *onnx_program.model.graph.outputs):
        if value.name is not None and value.shape is not None:
            value.shape = type(value.shape)(shapes[value.name])
    for node in onnx_program.model.graph.all_nodes():  # where torch was when it made them: paths of this machine
        node.metadata_props.clear()
        for value in node.outputs:
            value.metadata_props.clear()
    onnx_program.save(path, external_data=False)


def _write_pt2(graph: torch.export.ExportedProgram, path: Path) -> None:
    from torch._inductor import aoti_compile_and_package
    from torch._inductor.exc import CppCompileError

    try:
        aoti_compile_and_package(graph, package_path=str(path))
    except CppCompileError as error:
        reason = " ".join(str(error).split())[:160]
        raise MachineError(f"pt2: the C++ compiler failed ({reason}); install a newer g++") from None


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
    """The programs in a folder, to be run on tensors by ONNX Runtime or by torch."""

    def __init__(self, folder: Path, programs: Mapping[str, Mapping[str, Any]], to: Target) -> None:
        self.programs = programs
        load = _load_onnx if to == "onnx" else _load_pt2
        self._runs = {name: load(folder / about["file"], list(about["inputs"])) for name, about in programs.items()}

    def run(self, name: str, *inputs: Tensor) -> Sequence[Tensor]:
        """Run a program on its inputs, in their order."""
        return self._runs[name](*inputs)


def _load_onnx(path: Path, names: Sequence[str]) -> Callable[..., Sequence[Tensor]]:
    import onnxruntime

    options = onnxruntime.SessionOptions()
    options.intra_op_num_threads = torch.get_num_threads()
    options.log_severity_level = 3
    session = onnxruntime.InferenceSession(path, options, providers=["CPUExecutionProvider"])

    def run(*inputs: Tensor) -> Sequence[Tensor]:
        arrays = {port: tensor.cpu().numpy() for port, tensor in zip(names, inputs, strict=True)}
        try:
            outputs = session.run(None, arrays)
        except Exception as error:  # the runtime's errors have no class in common but this
            what = f"{path.name}: ONNX Runtime cannot run it on {tuple(inputs[0].shape)}, so the export is not valid"
            raise MachineError(f"{what} ({one_line(error)})") from None
        return [torch.from_numpy(array) for array in outputs]

    return run


def _load_pt2(path: Path, names: Sequence[str]) -> Callable[..., Sequence[Tensor]]:
    from torch._inductor import aoti_load_package

    package = aoti_load_package(str(path))

    def run(*inputs: Tensor) -> Sequence[Tensor]:
        # A package reads the memory of a view as if it were contiguous, and gives other ids without a word.
        outputs: Sequence[Tensor] = package(*(x.contiguous() for x in inputs))
        return outputs

    return run
