"""Tokens: `issuer` issues and verifies them, and refuses those that are not valid; `grants` says what one allows.

`claims` is what a verified token says, `jose` the checks of its form and signature, `keyring` and `asymmetric` the
keys, `oidc` the tokens of an OpenID provider.
"""
