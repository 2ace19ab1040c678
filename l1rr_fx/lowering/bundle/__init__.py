"""Bundles: in goes a network, out comes a folder that measures itself on a device, and the results it brings back.

writing             `lower`: writes the folder: models, inputs, expected outputs, script, README
folder              where a bundle may be written, and what in its folder is not its own
examples            images as example inputs
half_precision      whether FP16 holds the network's numbers, by module
deploy_files        configurations for Triton and DeepStream
instructions        the commands and the README of a bundle
build_and_measure   the script in the folder, for Python 3.6 and the TensorRT that is installed there
remote              `measure`: copies a bundle to another machine through ssh, runs it and brings results.json back
comparison          `compare`: the results of two bundles, by layer
"""
