"""The settings: their model, their types, where they are read from."""
