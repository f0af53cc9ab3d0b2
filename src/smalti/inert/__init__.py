"""Read what torch.save wrote, as data: nothing in the file is imported, called or run.

Zip files and TorchScript archives, the format before torch 1.6, and bare pickles of numpy arrays. Names of foreign
classes and functions become `Foreign` records. Only the tensors that are asked for are read into memory.
"""

from smalti.inert.records import Foreign, Storage, Stored
from smalti.inert.torchfile import TorchFile, open_torch, read_program, read_torch
from smalti.inert.tree import tensors

__all__ = ["Foreign", "Storage", "Stored", "TorchFile", "open_torch", "read_program", "read_torch", "tensors"]
