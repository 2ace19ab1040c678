"""A bundle holds what servers read: Triton's config.pbtxt, and nvinfer.txt for DeepStream. Neither server runs here."""

from __future__ import annotations

import configparser
from pathlib import Path
from typing import Any

import onnx
import pytest
import torch
from torch import Tensor, nn

from l1rr_fx.lowering import Nms, lower

CLASSES = 3


class Scalar(nn.Module):
    """Integers in, a number without axes out."""

    def __init__(self) -> None:
        super().__init__()
        self.table = nn.Embedding(10, 4)

    def forward(self, tokens: Tensor) -> tuple[Tensor, Tensor]:
        found = self.table(tokens)
        return found.sum(), tokens + 1


class Detector(nn.Module):
    """Boxes and scores of 16 anchors, as YOLO's head gives them."""

    def __init__(self) -> None:
        super().__init__()
        self.stem = nn.Conv2d(3, 4 + CLASSES, 3, padding=1)

    def forward(self, image: Tensor) -> Tensor:
        return torch.sigmoid(self.stem(image)).flatten(2)


def bundle(model: nn.Module, out: Path, *args: Tensor, **options: Any) -> Path:
    torch.manual_seed(0)
    return lower(model.eval(), args, out=out / "bundle", half_model=False, **options).path


def message(file: Any, name: str, /, **fields: Any) -> None:
    """Add a message to a protobuf file: of each field its number and type, with a star if it is repeated."""
    made = file.message_type.add(name=name)
    numbers = {"string": 9, "int32": 5, "int64": 3, "DataType": 14}  # type numbers of descriptor.proto; 11: a message
    for field, (number, kind) in fields.items():
        word = kind.rstrip("*")
        added = made.field.add(name=field, number=number, type=numbers.get(word, 11), label=3 if "*" in kind else 1)
        if added.type in (11, 14):
            added.type_name = f".{word}"


def triton(path: Path) -> Any:
    """config.pbtxt as Triton reads it: the fields of its model_config.proto that a bundle uses."""
    from google.protobuf import descriptor_pb2, descriptor_pool, message_factory, text_format

    file = descriptor_pb2.FileDescriptorProto(name="model_config.proto", syntax="proto3")
    kinds = file.enum_type.add(name="DataType")
    words = "INVALID BOOL UINT8 UINT16 UINT32 UINT64 INT8 INT16 INT32 INT64 FP16 FP32 FP64 STRING BF16".split()
    for number, word in enumerate(words):
        kinds.value.add(name=f"TYPE_{word}", number=number)
    message(file, "ModelTensorReshape", shape=(1, "int64*"))
    port = {"name": (1, "string"), "data_type": (2, "DataType"), "reshape": (5, "ModelTensorReshape")}
    message(file, "ModelInput", dims=(4, "int64*"), **port)
    message(file, "ModelOutput", dims=(3, "int64*"), **port)
    message(
        file,
        "ModelConfig",
        platform=(2, "string"),
        max_batch_size=(4, "int32"),
        input=(5, "ModelInput*"),
        output=(6, "ModelOutput*"),
        default_model_filename=(8, "string"),
    )
    pool = descriptor_pool.DescriptorPool()
    pool.Add(file)
    config = message_factory.GetMessageClass(pool.FindMessageTypeByName("ModelConfig"))()
    return text_format.Parse((path / "config.pbtxt").read_text(), config)


def ports(of: Any) -> list[tuple[str, int, list[int]]]:
    return [(port.name, port.data_type, list(port.dims)) for port in of]


INT32, INT64, FP32 = 8, 9, 11


def test_the_configuration_for_triton(tmp_path: Path) -> None:
    config = triton(bundle(Detector(), tmp_path, torch.rand(2, 3, 4, 4), nms=Nms(score=0.1, most=5)))
    assert (config.platform, config.default_model_filename) == ("tensorrt_plan", "engine_fp16.plan")
    assert config.max_batch_size == 0
    assert ports(config.input) == [("image", FP32, [2, 3, 4, 4])]
    assert ports(config.output) == [
        ("num_dets", INT32, [2, 1]),
        ("det_boxes", FP32, [2, 5, 4]),
        ("det_scores", FP32, [2, 5]),
        ("det_classes", INT32, [2, 5]),
    ]


@pytest.mark.parametrize(
    ("target", "platform", "file", "integers"),
    [
        ("jetson-tx2", "tensorrt_plan", "engine_fp16.plan", INT32),  # TensorRT 8.2 has no INT64
        ("tensorrt-10", "tensorrt_plan", "engine_fp16.plan", INT64),
        ("tensorrt-11", "tensorrt_plan", "engine_fp32.plan", INT64),  # no file in FP16
        ("onnxruntime", "onnxruntime_onnx", "model.onnx", INT64),
    ],
)
def test_what_triton_loads_depends_on_the_target(
    target: str, platform: str, file: str, integers: int, tmp_path: Path
) -> None:
    found = bundle(Scalar(), tmp_path, torch.arange(4), target=target)
    config = triton(found)
    assert (config.platform, config.default_model_filename) == (platform, file)
    assert ports(config.input) == [("tokens", integers, [4])]
    (_, kind, sizes), second = ports(config.output)
    assert (kind, sizes) == (FP32, [1]) and config.output[0].HasField("reshape")
    assert second[1:] == (integers, [4]) and not config.output[1].HasField("reshape")
    assert not (found / "nvinfer.txt").exists()


def test_the_configuration_for_deepstream(tmp_path: Path) -> None:
    found = bundle(Detector(), tmp_path, torch.rand(2, 3, 4, 8))
    parser = configparser.ConfigParser(delimiters="=", comment_prefixes="#", strict=True)
    parser.read(found / "nvinfer.txt")
    (group,) = parser.sections()
    values = dict(parser[group])
    assert group == "property"
    assert (found / values["onnx-file"]).exists()
    assert f"--saveEngine={values['model-engine-file']} --fp16" in (found / "README.md").read_text()
    assert (values["network-mode"], values["batch-size"], values["infer-dims"]) == ("2", "2", "3;4;8")
    (output,) = onnx.load(str(found / "model.onnx")).graph.output
    assert values["output-blob-names"] == output.name
    assert (values["network-type"], values["output-tensor-meta"]) == ("100", "1")


def test_what_fp16_does_not_hold_is_served_in_fp32(tmp_path: Path) -> None:
    model = Detector()
    with torch.no_grad():
        model.stem.weight.mul_(1e6)
    found = bundle(model, tmp_path, torch.rand(2, 3, 4, 8))
    assert triton(found).default_model_filename == "engine_fp32.plan"
    assert "network-mode=0" in (found / "nvinfer.txt").read_text().splitlines()
