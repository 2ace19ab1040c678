"""Ultralytics' trainer in two processes and under mixed precision, on a CPU.

It asks for GPUs for both: for NCCL, and a device for each process. The subclass here, which `YOLO.train(trainer=...)`
takes, puts gloo, the CPU and a scaler for it in their places. All else is the stock trainer: it writes its file for the
other processes, starts them by torch.distributed.run, splits batches, wraps the network, scales, unscales, clips,
averages (EMA) and saves. Validation after each epoch is left out: it reduces by a mean, which gloo does not know.
"""

from __future__ import annotations

import gc
import os
from typing import Any
from unittest import mock

import pytest
import torch
from torch import distributed, nn
from torch.nn.parallel import DistributedDataParallel

from l1rr_fx.method.sites.zeroing import unwrapped
from tests.yolo_trees import offline_ultralytics

RANK = int(os.environ.get("LOCAL_RANK", -1))
if RANK != -1:  # one of the processes, which loads this module before Ultralytics' networks
    offline_ultralytics(pytest.MonkeyPatch())

from ultralytics.models.yolo.detect import DetectionTrainer  # noqa: E402


class Wrapped(DistributedDataParallel):
    """On a CPU no device may be named."""

    def __init__(self, module: nn.Module, device_ids: Any, **options: Any) -> None:
        super().__init__(module, **options)


class TwoProcesses(DetectionTrainer):
    """Each process leaves its network in `rank<n>.pt`. The scaler's first scale is too large, so the first step is
    skipped."""

    model: Any

    def __init__(self, *given: Any, **named: Any) -> None:
        super().__init__(*given, **named)
        self.world_size = 2
        self.ddp = RANK == -1  # the process that starts the others

    def _setup_ddp(self) -> None:
        distributed.init_process_group("gloo")

    def _setup_train(self) -> None:
        with mock.patch.object(nn.parallel, "DistributedDataParallel", Wrapped):
            super()._setup_train()  # type: ignore[no-untyped-call]  # theirs
        assert isinstance(self.model, Wrapped)
        self.amp = True
        self.scaler = torch.amp.GradScaler("cpu", init_scale=2.0**127, backoff_factor=2.0**-120)

    def preprocess_batch(self, batch: Any) -> Any:
        assert torch.is_autocast_enabled("cpu") and torch.get_autocast_dtype("cpu") == torch.bfloat16
        return super().preprocess_batch(batch)

    def validate(self) -> tuple[dict[str, float], float]:
        return {}, 0.0

    def final_eval(self) -> None:
        """Nothing."""

    def train(self) -> None:
        super().train()  # type: ignore[no-untyped-call]  # theirs
        if RANK != -1:
            average = unwrapped(self.ema.ema).state_dict()  # as it was averaged: checkpoints round it to FP16
            state = {"scale": self.scaler.get_scale(), "model": unwrapped(self.model).state_dict(), "average": average}
            torch.save(state, self.save_dir / f"rank{RANK}.pt")
            distributed.destroy_process_group()
            self.model = None
            gc.collect()  # gloo's threads must end before Python does
