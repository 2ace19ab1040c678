"""TensorRT's plugin at the end of a file: what it is given is what torch computes. The plugin itself runs on a GPU."""

from __future__ import annotations

from pathlib import Path

import numpy
import onnx
import onnxruntime
import pytest
import torch
from torch import Tensor, nn

from l1rr_fx import InputError
from l1rr_fx.lowering import Nms, to_onnx

IMAGE = torch.rand(1, 3, 16, 16, generator=torch.Generator().manual_seed(0))


class Head(nn.Module):
    """(1, 4 + 3, 64) detections, and a feature map."""

    def __init__(self) -> None:
        super().__init__()
        torch.manual_seed(0)
        self.conv = nn.Conv2d(3, 7, 3, 2, 1)

    def forward(self, x: Tensor) -> tuple[Tensor, Tensor]:
        y = self.conv(x)
        return torch.cat([y[:, :4].relu(), y[:, 4:].sigmoid()], 1).flatten(2), y


def test_the_plugin_gets_boxes_and_scores(tmp_path: Path) -> None:
    module = Head().eval()
    emitted = to_onnx(module, (IMAGE,), tmp_path / "nms.onnx", nms=Nms(score=0.4, overlap=0.6, most=20))
    assert emitted.deviation is not None and emitted.deviation <= 1e-4
    assert {finding.severity for finding in emitted.findings} == {"note"}
    model = onnx.load(str(tmp_path / "nms.onnx"))
    (plugin,) = (node for node in model.graph.node if node.op_type == "EfficientNMS_TRT")
    given = {each.name: onnx.helper.get_attribute_value(each) for each in plugin.attribute}
    assert given["score_threshold"] == pytest.approx(0.4)
    assert given["iou_threshold"] == pytest.approx(0.6)
    assert (given["max_output_boxes"], given["box_coding"], given["background_class"]) == (20, 1, -1)
    shapes = {o.name: [d.dim_value for d in o.type.tensor_type.shape.dim] for o in model.graph.output}
    assert list(shapes.values())[:4] == [[1, 1], [1, 20, 4], [1, 20], [1, 20]]
    assert list(shapes.values())[4:] == [[1, 7, 8, 8]]

    boxes, scores = _before_the_plugin(model, plugin)
    expected = module(IMAGE)[0].detach().transpose(1, 2)
    torch.testing.assert_close(torch.from_numpy(boxes), expected[..., :4], rtol=1e-4, atol=1e-5)
    torch.testing.assert_close(torch.from_numpy(scores), expected[..., 4:], rtol=1e-4, atol=1e-5)


def _before_the_plugin(model: onnx.ModelProto, plugin: onnx.NodeProto) -> list[numpy.ndarray]:
    """What the plugin's inputs hold, in ONNX Runtime."""
    model.graph.node.remove(plugin)
    del model.graph.output[:]
    model.graph.output.extend(onnx.helper.make_tensor_value_info(n, onnx.TensorProto.FLOAT, None) for n in plugin.input)
    session = onnxruntime.InferenceSession(model.SerializeToString(), providers=["CPUExecutionProvider"])
    return session.run(None, {session.get_inputs()[0].name: IMAGE.numpy()})


@pytest.mark.parametrize(
    ("nms", "target", "message"),
    [
        (Nms(output=1), "jetson-tx2", r"output '.*' is \(1, 7, 8, 8\); expected \(images, 4 \+ classes, anchors\)"),
        (Nms(output=2), "jetson-tx2", "no output 2; it has 2"),
        (Nms(), "onnxruntime", "a plugin of TensorRT"),
    ],
)
def test_bad_input_writes_nothing(nms: Nms, target: str, message: str, tmp_path: Path) -> None:
    with pytest.raises(InputError, match=message):
        to_onnx(Head().eval(), (IMAGE,), tmp_path / "nms.onnx", nms=nms, target=target)
    assert not list(tmp_path.iterdir())


@pytest.mark.parametrize("options", [{"score": 1.5}, {"overlap": 0.0}, {"most": 0}])
def test_bad_options(options: dict[str, float]) -> None:
    with pytest.raises(InputError, match="nms:"):
        Nms(**options)  # type: ignore[arg-type]
