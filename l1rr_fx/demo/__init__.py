"""The demo: in goes an aerial image, out comes a trained tree detector without its zeroed channels (`run.run`).

trees, views               the images with their boxes, and random views to train on
detector, loss, training   the detector, what it learns from, and the training loop
boxes, measure             detections and their precision; cost and precision of a detector
plots, picture             plots, and detections side by side
run                        all of it
"""
