"""Detectors of the package transformers that predict a set of boxes, one for each query: DETR and six that followed it.

They are built offline from their configurations, with random weights. Install the package without its dependencies,
which the zoo has: `pip install --no-deps transformers tokenizers regex`.
"""

from __future__ import annotations

import os
from collections.abc import Callable, Mapping
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
SMALL_VIT = {"hidden_size": 32, "num_attention_heads": 2, "num_hidden_layers": 3}
SMALL_DEFORMABLE = {**SMALL, "encoder_layers": 2, "num_feature_levels": 3}


def query_detector(name: str, *, small: bool = False) -> nn.Module:
    """The network `name`, one of QUERY_DETECTORS, at its usual size, or a small one for tests.

    YOLOS takes images of 160 x 160, RF-DETR of 320 x 320, which gives it more tokens than queries; small ones 96 x 96.
    """
    os.environ.setdefault("HF_HUB_OFFLINE", "1")
    import_torchvision()
    import transformers

    return QUERY_DETECTORS[name](transformers, small)


def _detr(transformers: Any, small: bool) -> nn.Module:
    options: dict[str, Any] = {**SMALL, "encoder_layers": 2} if small else {}
    body = _resnet(transformers, small, ["stage4"])
    config = transformers.DetrConfig(use_timm_backbone=False, backbone=None, backbone_config=body, **options)
    model: nn.Module = transformers.DetrForObjectDetection(config)
    return model


def _deformable_detr(transformers: Any, small: bool) -> nn.Module:
    options: dict[str, Any] = SMALL_DEFORMABLE if small else {}
    body = _resnet(transformers, small, STAGES[1:] if small else STAGES)
    config = transformers.DeformableDetrConfig(backbone_config=body, **options)
    model: nn.Module = transformers.DeformableDetrForObjectDetection(config)
    return model


def _rt_detr(transformers: Any, small: bool) -> nn.Module:
    options = {**SMALL_HYBRID, "encoder_in_channels": [32, 32, 48]} if small else {}
    body = transformers.RTDetrResNetConfig(out_features=STAGES, **(SMALL_BODY if small else {}))
    model: nn.Module = transformers.RTDetrForObjectDetection(transformers.RTDetrConfig(backbone_config=body, **options))
    return model


def _d_fine(transformers: Any, small: bool) -> nn.Module:
    options = {"encoder_in_channels": [32, 48, 48], "head_dim": 16, "lqe_hidden_dim": 16} if small else {}
    options = {**SMALL_HYBRID, **options} if small else {}
    body = transformers.HGNetV2Config(out_features=STAGES, **(SMALL_HGNET if small else {}))
    model: nn.Module = transformers.DFineForObjectDetection(transformers.DFineConfig(backbone_config=body, **options))
    return model


def _yolos(transformers: Any, small: bool) -> nn.Module:
    """YOLOS-tiny: a plain vision transformer with tokens that become boxes."""
    options: dict[str, Any] = {"hidden_size": 192, "num_attention_heads": 3, "intermediate_size": 768}
    if small:
        options = {**SMALL_VIT, "intermediate_size": 48, "num_detection_tokens": 10, "num_labels": 5}
    config = transformers.YolosConfig(image_size=[96, 96] if small else [160, 160], **options)
    model: nn.Module = transformers.YolosForObjectDetection(config)
    return model


def _rf_detr(transformers: Any, small: bool) -> nn.Module:
    """RF-DETR of the small kind of its authors: a DINOv2 with windows, patches of 16 pixels."""
    options: dict[str, Any] = {"hidden_size": 384, "num_attention_heads": 6, "num_hidden_layers": 12}
    options |= {"image_size": 320, "num_windows": 2, "out_features": ["stage3", "stage6", "stage9", "stage12"]}
    decoder: dict[str, Any] = {}
    if small:
        options = {**SMALL_VIT, "image_size": 96, "num_windows": 2, "out_features": ["stage1", "stage3"]}
        decoder = {"d_model": 32, "decoder_ffn_dim": 48, "decoder_layers": 2, "num_queries": 10, "num_labels": 5}
        decoder |= {"decoder_self_attention_heads": 2, "decoder_cross_attention_heads": 4, "c2f_num_blocks": 1}
    body = transformers.models.rf_detr.RfDetrDinov2Config(patch_size=16, **options)
    model: nn.Module = transformers.RfDetrForObjectDetection(transformers.RfDetrConfig(backbone_config=body, **decoder))
    return model


def _resnet(transformers: Any, small: bool, stages: list[str]) -> Any:
    return transformers.ResNetConfig(out_features=stages, **(SMALL_BODY if small else {}))


QUERY_DETECTORS: Mapping[str, Callable[[Any, bool], nn.Module]] = {
    "detr": _detr,
    "rt_detr": _rt_detr,
    "d_fine": _d_fine,
    "deformable_detr": _deformable_detr,
    "yolos": _yolos,
    "rf_detr": _rf_detr,
}
"""What builds each network, given the package and whether a small one will do."""
