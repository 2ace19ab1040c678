"""Parsers of targets: in goes an ONNX file, out come findings about what a parser refuses or misreads.

onnx_file     an ONNX file as plain data: nodes, shapes, types, constants
remarks       what is wrong with a node and what to do; makers of the checks that many operators need
trt82         TensorRT 8.2: its checks of a model and of a node, and its table of operators (trt82_operators.csv)
trt82_nodes   TensorRT 8.2: what each operator may not have
lint          `lint`: the findings of a target's parser
"""
