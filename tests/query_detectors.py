"""Detectors of the package transformers that predict a set of boxes, one for each query: DETR, RT-DETR and D-FINE.

They are built offline from their configurations, with random weights. Install the package without its dependencies,
which the zoo has: `pip install --no-deps transformers tokenizers regex`.
"""

from __future__ import annotations

import os
from typing import Any

from torch import nn

from tests.torchvision_shim import import_torchvision

STAGES = ["stage2", "stage3", "stage4"]
SMALL_BODY = {"embedding_size": 16, "hidden_sizes": [16, 32, 32, 48], "depths": [1, 1, 1, 1], "layer_type": "basic"}
SMALL_HGNET = {
    "stem_channels": [3, 16, 16], "stage_in_channels": [16, 32, 32, 48], "stage_mid_channels": [16] * 4,
    "stage_out_channels": [32, 32, 48, 48], "stage_num_blocks": [1] * 4, "stage_numb_of_layers": [2] * 4,
    "hidden_sizes": [32, 32, 48, 48], "use_learnable_affine_block": True,
}  # fmt: skip
SMALL = {
    "d_model": 64, "encoder_ffn_dim": 96, "decoder_ffn_dim": 96, "decoder_layers": 2, "encoder_attention_heads": 4,
    "decoder_attention_heads": 4, "num_queries": 20, "num_labels": 5,
}  # fmt: skip
SMALL_HYBRID = {
    **SMALL, "encoder_hidden_dim": 64, "decoder_in_channels": [64, 64, 64], "hidden_expansion": 0.5,
}  # fmt: skip


def query_detector(name: str, *, small: bool = False) -> nn.Module:
    """The network `name` (detr, rt_detr or d_fine) with a ResNet-50 or an HGNetV2, or a small one for tests."""
    os.environ.setdefault("HF_HUB_OFFLINE", "1")
    import_torchvision()
    import transformers

    if name == "detr":
        body = transformers.ResNetConfig(out_features=["stage4"], **(SMALL_BODY if small else {}))
        options: dict[str, Any] = {**SMALL, "encoder_layers": 2} if small else {}
        config = transformers.DetrConfig(use_timm_backbone=False, backbone=None, backbone_config=body, **options)
        model: nn.Module = transformers.DetrForObjectDetection(config)
    elif name == "rt_detr":
        body = transformers.RTDetrResNetConfig(out_features=STAGES, **(SMALL_BODY if small else {}))
        options = {**SMALL_HYBRID, "encoder_in_channels": [32, 32, 48]} if small else {}
        model = transformers.RTDetrForObjectDetection(transformers.RTDetrConfig(backbone_config=body, **options))
    else:
        body = transformers.HGNetV2Config(out_features=STAGES, **(SMALL_HGNET if small else {}))
        options = {"encoder_in_channels": [32, 48, 48], "head_dim": 16, "lqe_hidden_dim": 16} if small else {}
        options = {**SMALL_HYBRID, **options} if small else {}
        model = transformers.DFineForObjectDetection(transformers.DFineConfig(backbone_config=body, **options))
    return model
