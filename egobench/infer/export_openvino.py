"""The two graphs of a model as OpenVINO files; the decoder keeps its cache inside, as states."""

from __future__ import annotations

from typing import Any, Final

import torch
from torch import nn

from egobench.infer.export_onnx import quiet
from egobench.infer.graphs import Decoder, Vision, dynamic_sizes, examples
from egobench.infer.silent_openvino import silent
from egobench.models.internvl import LoadedModel

VISION: Final = "vision.xml"
DECODER: Final = "decoder.xml"


def convert_vision(loaded: LoadedModel) -> Any:
    """Convert the graph from pictures, uint8 [n, px, px, 3], to features."""
    pixels = torch.zeros(2, loaded.image_px, loaded.image_px, 3, dtype=torch.uint8)
    made = _convert(Vision(loaded).eval(), (pixels,), ({0: torch.export.Dim.DYNAMIC},))
    _name(made, ["pixels"], ["features"])
    return made


def convert_decoder(loaded: LoadedModel) -> Any:
    """Convert the LLM's graph; its caches become states, which begin empty."""
    decoder = Decoder(loaded).eval()
    made = _convert(decoder, examples(decoder), dynamic_sizes(decoder))
    past, present = decoder.cache_names()
    _name(made, ["ids", "num_padding", "features", *past], ["logits", *present])
    for name in past:
        # The converter leaves every size open; a cache that begins empty needs the fixed ones.
        made.input(name).get_node().set_partial_shape(_sizes([-1, decoder.num_cached_heads, -1, decoder.head_dim]))
    made.input("features").get_node().set_partial_shape(_sizes([-1, decoder.hidden]))
    made.validate_nodes_and_infer_types()
    _keep_inside(made, past, present)
    return made


def _convert(module: nn.Module, given: tuple[Any, ...], sizes: tuple[Any, ...]) -> Any:
    openvino = silent("openvino")

    with torch.no_grad(), quiet():
        program = torch.export.export(module, given, dynamic_shapes=sizes)
        return openvino.convert_model(program)


def _sizes(sizes: list[int]) -> Any:
    openvino = silent("openvino")

    return openvino.PartialShape(sizes)


def _name(model: Any, inputs: list[str], outputs: list[str]) -> None:
    for port, name in zip(model.inputs, inputs, strict=True):
        port.get_tensor().set_names({name})
    for port, name in zip(model.outputs, outputs, strict=True):
        port.get_tensor().set_names({name})
    model.validate_nodes_and_infer_types()


def _keep_inside(model: Any, past: list[str], present: list[str]) -> None:
    """Make states of the caches, in the form that OpenVINO's CPU plugin fuses with attention.

    That form has an input `beam_idx`, int32 [rows], which reorders the rows of every state before a step.
    """
    import numpy as np

    openvino = silent("openvino")
    opset13 = silent("openvino").opset13
    apply_make_stateful_transformation = silent("openvino._offline_transformations").apply_make_stateful_transformation

    beam = opset13.parameter([-1], dtype=np.int32, name="beam_idx")
    beam.output(0).get_tensor().set_names({"beam_idx"})
    model.add_parameters([beam])
    for name in past:
        port = model.input(name)
        consumers = port.get_target_inputs()
        ordered = opset13.gather(port, beam, opset13.constant(0, dtype=np.int64))
        for consumer in consumers:
            consumer.replace_source_output(ordered.output(0))
    model.validate_nodes_and_infer_types()
    apply_make_stateful_transformation(model, dict(zip(past, present, strict=True)))
    rows = opset13.gather(
        opset13.shape_of(model.input("ids"), output_type="i64"),
        opset13.constant(np.array([0], dtype=np.int64)),
        opset13.constant(0, dtype=np.int64),
    )
    for node in model.get_ops():
        if node.get_type_name() == "ReadValue":
            node.set_arguments([_empty(node, rows)])
    model.validate_nodes_and_infer_types()
    assert isinstance(model, openvino.Model)


def _empty(node: Any, rows: Any) -> Any:
    """Return a cache of length 0 for as many rows as there are prompts."""
    import numpy as np

    opset13 = silent("openvino").opset13

    _, heads, _, head_dim = node.get_output_partial_shape(0)
    fixed = [np.array([size], dtype=np.int64) for size in (heads.get_length(), 0, head_dim.get_length())]
    shape = opset13.concat([rows, *(opset13.constant(size) for size in fixed)], axis=0)
    zero = opset13.constant(np.zeros((), dtype=np.float32))
    return opset13.broadcast(zero, shape)
