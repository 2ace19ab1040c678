"""Cost models of machines: in goes the name of a machine, out comes a `passes.assignment.cost_model.Target`.

With it the compiler weighs, in seconds, copies against channels of zeros and wider layers.

    by_name        `machine`: the cost model for a name
    cpu            this CPU under torch, measured once and cached
    onnxruntime    this CPU under ONNX Runtime, measured once and cached
    jetson_tx2     a Jetson TX2, from the latency model
"""
