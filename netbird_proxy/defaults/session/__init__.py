"""Logins: password, PIN, header credentials and single sign-on, the sessions they make, and the pages people see.

Management stores the secrets and checks them. The proxy verifies the session tokens of management, and forwards neither
secrets nor tokens.
"""

from netbird_proxy.defaults.session.plugin import Session, SessionOptions

__all__ = ["Session", "SessionOptions"]
