"""ONNX files: in goes a network with example inputs, out comes a file that its target reads.

writer        the ONNX graph while it is written: calls, constants, names
operators/    the form of each operator, a file a family
interpret     the network is run on fakes of its inputs, and each operator writes its form
lowered       the result: ports, calls and constants
output_names  the names of outputs, from the fields in which the network returns them
proto         the result in ONNX's own format, written whole or not at all
emission      `to_onnx`: all of it, with the checks before a file exists
runtime       ONNX Runtime, with which a file is compared with its module
timing        networks timed in it
half          a file as hardware computes it in FP16: each result rounded, to run in FP32
ranges        the largest numbers of each node
choices       the comparison for networks that choose (top-k, sort, argmax), where rounding may choose otherwise
nms           TensorRT's plugin for non-maximum suppression at the end of a file
heads         which heads that plugin misreads, by their task
metadata      the keys that Ultralytics reads from a file
"""
