"""The README of a bundle, and the commands for each TensorRT."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

WORKSPACE = 1024
"""MiB. TensorRT 8's trtexec has 16 by default, with which it finds no kernel for many layers."""
MEASURED = "--dumpProfile --separateProfileRun --exportProfile=profile.json --exportTimes=times.json"

README = """\
# {label}, lowered for {target}

    sudo nvpmodel -m 0 && sudo jetson_clocks      # a Jetson: highest clocks, until the next boot
    python3 build_and_measure.py                  # builds, checks, measures; writes results.json

`l1rr-fx measure` does this from another machine, `l1rr-fx compare` prints several results.json side by side. The script
needs Python 3.6, numpy and TensorRT. It says in results.json what it used, and what it could not do.

| file | what it is |
|---|---|
| model.onnx | the network in FP32, ONNX opset {opset}, sizes fixed |
| model_fp16.onnx | the same in FP16 (optional): TensorRT 11 and TensorRT for RTX take the precision from the file |
{before_nms}| inputs.npz, expected.npz | an input, and what torch computes for it |
| config.pbtxt | for the Triton Inference Server |
| nvinfer.txt | for DeepStream (only if the input is a picture): set colours and scale to those of the training |
| manifest.json | the hashes of all files, tolerances, and the kernels of which the prediction is made |

Outputs are accepted if they deviate from what is expected, relative to each output's largest value, by at most
{tolerance}.{nms}

{predicted}
{notes}
The same by NVIDIA's own tool:

{commands}
"""

BEFORE_NMS = """\
| model_before_nms.onnx, model_fp16_before_nms.onnx | the same without NMS, for those who do not know the plugin |
"""
NMS = """

In place of the output {output}, model.onnx has the detections that NMS leaves of it (EfficientNMS_TRT, a plugin of
TensorRT): at most {most} an image, with a score of at least {score} and an IoU below {overlap} with better ones of
their class. They are not compared with a list: with rounding, detections near a threshold come and go, and others with
them. They are accepted if they are what NMS gives of the expected output when scores may be off by
{tolerance}, and IoUs by four times as much: each is a candidate of the network, no two overlap,
and each candidate that is missing is overlapped by a detection that scores as much. Predicted latencies are without
NMS."""


def commands(target: str, half_model: bool) -> tuple[str, ...]:
    """Lines for trtexec, one for each precision; none where the target is not TensorRT."""
    if target == "jetson-tx2":
        start = "/usr/src/tensorrt/bin/trtexec --onnx=model.onnx"
        rest = f"--workspace={WORKSPACE} --profilingVerbosity=detailed {MEASURED}"
        return tuple(f"{start} --saveEngine=engine_{p}.plan{flag} {rest}" for p, flag in _flags())
    rest = f"--memPoolSize=workspace:{WORKSPACE} --profilingVerbosity=detailed {MEASURED}"
    if target == "tensorrt-10":
        return tuple(f"trtexec --onnx=model.onnx --saveEngine=engine_{p}.plan{flag} {rest}" for p, flag in _flags())
    if target == "tensorrt-11":
        files = [("fp16", "model_fp16.onnx")] * half_model + [("fp32", "model.onnx")]
        return tuple(f"trtexec --onnx={file} --saveEngine=engine_{p}.plan {rest}" for p, file in files)
    return ()


def _flags() -> tuple[tuple[str, str], ...]:
    return ("fp16", " --fp16"), ("fp32", "")


def readme(facts: Mapping[str, Any]) -> str:
    """The README of a bundle, from its manifest."""
    predicted = [
        f"Predicted, not measured, {precision.upper()} at {each['gpu_ghz']:.2f} GHz: {each['ms']:.2f} ms"
        + (f" (dense: {facts['dense'][precision]['ms']:.2f} ms)." if precision in facts["dense"] else ".")
        for precision, each in facts["predicted"].items()
    ]
    nms = facts["nms"]
    return README.format(
        label=facts["label"],
        target=facts["target"],
        opset=facts["opset"],
        tolerance=_listed(facts["tolerance"]),
        before_nms=BEFORE_NMS if nms else "",
        nms=NMS.format(**{**nms, "tolerance": _listed(nms["tolerance"])}) if nms else "",
        predicted="\n".join(predicted) or "There is no latency model of this target.",
        notes="".join(f"\n{note}.\n" for note in facts["notes"]),
        commands="\n".join(f"    {line}" for line in facts["commands"]) or "(this target is not TensorRT)",
    )


def _listed(tolerance: Mapping[str, float]) -> str:
    return ", ".join(f"{limit:.0e} ({name})" for name, limit in tolerance.items())
