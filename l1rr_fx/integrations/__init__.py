"""The compiler inside other people's tools; docs/integrations.md has an example of each.

dynamo            a backend of torch.compile
inductor          a pass of Inductor under freezing
onnxruntime       plans whose latency is measured in ONNX Runtime
torch_tensorrt    a lowering pass of Torch-TensorRT
traced            graphs that Dynamo made, as the compiler reads them
masks             weights behind `torch.nn.utils.prune` masks and parametrizations, made plain
ultralytics       sparse training, fine-tuning with zeros held, and pruning of YOLO models

Nothing is imported here: each names the package that it needs, and the version, when it is used.
"""
