"""Access restrictions by client address: networks and countries, per service.

Claims `access_restrictions`. Lists guard; `crowdsec_mode` is understood as far as nobody here can enforce it.
"""

from netbird_proxy.defaults.access_restrictions.plugin import AccessRestrictions, AccessRestrictionsOptions

__all__ = ["AccessRestrictions", "AccessRestrictionsOptions"]
