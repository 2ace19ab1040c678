"""Parsers of targets: in goes an ONNX file, out come findings about what a parser refuses or misreads.

onnx_file         an ONNX file as plain data: nodes, shapes, types, constants
inference         what ONNX infers of a model: functions are counted before, a process of its own does it
inference_worker  the script of that process
remarks           what is wrong with a node and what to do; checks with their source, and makers of common ones
trt82             TensorRT 8.2: the findings about a model and a node; its table of operators (trt82_operators.csv)
trt82_model       what no model and no node may have, whatever its operator
trt82_layers      convolutions, pools, norms, resizes, recurrent layers, quantisation
trt82_products    matrix products
trt82_shapes      reshapes, transpositions, paddings, slices, gathers
trt82_values      reductions, orders, bounds, casts, constants
trt82_nodes       the checks of all operators by name
lint              `lint`: the findings of a target's parser
"""
