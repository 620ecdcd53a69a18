"""Logins: the identity provider, single sign-on, and the gates that admit a login."""
