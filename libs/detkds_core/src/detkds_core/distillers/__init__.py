"""Hand-designed distillers with learned parts, used like a policy. What they are called and can be set to: `policy.distillers`."""

from detkds_core.distillers.build import build, settings_of, token_settings, tokens_of
from detkds_core.distillers.context import DistillerContext, HeadTail
from detkds_core.distillers.losses import distiller_losses, scale_name

__all__ = ["DistillerContext", "HeadTail", "build", "distiller_losses", "scale_name", "settings_of", "token_settings", "tokens_of"]
