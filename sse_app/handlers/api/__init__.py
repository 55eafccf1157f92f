"""The handlers of the API: streams, publishing, login, tokens, administration."""
