"""Machines: in goes the name of a machine, out comes a target of the compiler (`passes.Target`, `passes.Machine`).

With it the compiler weighs, in seconds, copies against channels of zeros and wider layers, and predicts the time of
whole networks.

    by_name        `machine`: the target for a name
    priced         a target whose prices are those of another
    own            a target of the user's that is a predictor of latency too
    settings       what predictions depend on, for a plan that is stored
    cpu            this CPU under torch, measured once and cached
    profiling      kernels of ONNX models, timed by ONNX Runtime's profiler
    calibration    the kernels that are timed in ONNX Runtime
    onnxruntime    this CPU under ONNX Runtime, measured once and cached; it predicts whole networks
    jetson_tx2     a Jetson TX2, from the latency model
"""
