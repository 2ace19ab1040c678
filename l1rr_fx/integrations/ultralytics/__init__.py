"""YOLO models of Ultralytics: sparse training, fine-tuning with zeros held, plans, pruning and files for deployment.

    with sparse(yolo):
        yolo.train(data="trees.yaml", epochs=100)  # the stock trainer: AMP, EMA, DDP and resume as ever
    chosen = plan(yolo, budget=Budget(macs=0.5), data="trees.yaml")
    with held(yolo, chosen):
        yolo.train(data="trees.yaml", epochs=50)
    small = prune(yolo)
    export(small, "small.onnx", yolo)
    YOLO("small.onnx").val(data="trees.yaml")

    training      sparse training, and fine-tuning with zeros held, in the stock trainer
    plans         plans for YOLO networks, and the images of their data sets
    networks      the networks of YOLO objects and checkpoints
    deployment    pruning, and files that Ultralytics and devices run

Ultralytics is licensed under AGPL-3.0, unless you have bought another licence from its makers: whoever distributes a
program with it, or lets others use one over a network, owes them its source. Only `load`, when it is given a file, and
`plan` with data import it. Models need no change: C2f, C3k2, attention and their heads are pruned as they are.
"""

from __future__ import annotations

from l1rr_fx.integrations.ultralytics.deployment import export, lower, onnx_metadata, prune
from l1rr_fx.integrations.ultralytics.networks import load
from l1rr_fx.integrations.ultralytics.plans import labelled_images, plan
from l1rr_fx.integrations.ultralytics.training import held, sparse

__all__ = ["export", "held", "labelled_images", "load", "lower", "onnx_metadata", "plan", "prune", "sparse"]
