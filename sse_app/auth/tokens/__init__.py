"""Tokens: claims, grants, keys, issuing and verifying; OpenID providers."""
