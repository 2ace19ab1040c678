"""Saving and loading of a captured network, without pickle: in goes a module, out comes an equal one.

`save` takes the module, what was kept of each parameter and the report as a JSON text; `load` returns the three. A
saved network is a directory of four files:

    manifest.json         the version of the format, the size and the SHA-256 of each other file, notes on what differs
    graph.json            nodes, modules, and which tensor is which parameter, buffer or kept index
    tensors.safetensors   the tensors, each memory once
    report.json           the text that came with the module

The files of this folder:

    network      `save` and `load`
    encode       a network as a JSON document, and the tensors that the document names
    decode       a network out of its document, refused where it is not as `encode` writes it
    arguments    the arguments of a call as JSON, and back
    constants    the constants that an argument or an option may be
    tensors      the file of tensors, its header checked before torch sees it
    nesting      how inputs and outputs are nested, as JSON, and back
    operators    the operators and names that a saved network may hold
    files        the four files, written all or none, and checked against the manifest

Nothing in it is run when it is loaded. torch.fx generates Python code from a graph, so every name that goes into that
code must be an identifier, and every operator one that computes tensors and numbers from tensors and numbers and writes
to nothing (`operators`).
"""

from __future__ import annotations

from l1rr_fx.archive.network import check_target, load, save

__all__ = ["check_target", "load", "save"]
