"""Logins: password, PIN, header credentials and single sign-on, the sessions they make, and the pages people see.

Management knows every secret and judges it; the proxy verifies the tokens that come of it, and forwards none of either.
"""

from netbird_proxy.defaults.session.plugin import Session, SessionOptions

__all__ = ["Session", "SessionOptions"]
