"""The other nodes of this server: who they are, and how to ask and tell them something."""
