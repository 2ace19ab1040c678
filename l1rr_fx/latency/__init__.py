"""Predicted latency: in goes a network and an example input, out come milliseconds for each kernel on a device.

geometry      a convolution or product as a matrix product
recurrent     the kernels of a recurrent layer, step by step
kernels       the kernels that TensorRT would run for a graph
model         the time of one kernel, from eight coefficients
fit           the coefficients, fitted to measured networks
published     latencies on a Jetson TX2 that others published
cpu_kernels   the kernels that ONNX Runtime would run for a graph on a CPU
cpu_model     the time of one of these kernels, from coefficients that are fitted to timed ones
results       latencies that bundles measured, read from their results.json
prediction    `Latency`: the model of a device, and its predictions
"""
