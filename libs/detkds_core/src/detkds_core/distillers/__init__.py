"""Hand-designed distillers with learned parts, used like a policy."""

from detkds_core.distillers.modules import DISTILLERS, FGD, MGD, MasKD, MaskTokens

__all__ = ["DISTILLERS", "FGD", "MGD", "MasKD", "MaskTokens"]
